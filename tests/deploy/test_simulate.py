"""The simulated replica answers as fast as the measured one, and the policies do what their names say."""

import simpy

from deploy.simulate.load import Load
from deploy.simulate.replica import ANSWER_TOKENS, CHAIN_TOKENS, HOLD, Replica, Request
from deploy.simulate.routing import POLICIES
from deploy.simulate.scaling import Fleet


def closed_loop(mode: str, clients: int, count: int) -> tuple[float, list[Request]]:
    """Requests a second, as `latentserve bench` measures: so many at once, until `count` are answered."""
    env = simpy.Environment()
    replica, asked = Replica(env, {}), list[Request]()
    tokens = CHAIN_TOKENS if mode == "explicit" else ANSWER_TOKENS

    def client():
        while len(asked) < count:
            request = Request(mode, tokens, tokens, len(asked), 1, env.now)
            asked.append(request)
            replica.take(request)
            while request.ended > env.now:
                yield env.timeout(0.005)

    for _ in range(clients):
        env.process(client())
    env.run(120)
    return count / max(one.ended for one in asked), asked


def test_a_replica_is_as_fast_as_the_readme_says() -> None:
    """Within a quarter: neither HTTP nor a measurement's last chains, which leave the others behind, are simulated."""
    for mode, crowd_per_second, crowd_seconds, alone_seconds in (
        ("direct", 31.8, 1.679, 0.140), ("latent", 16.6, 3.604, 0.191), ("explicit", 2.8, 17.723, 3.826),
    ):  # fmt: skip
        per_second, asked = closed_loop(mode, 64, 96)
        seconds = sorted(one.ended - one.arrived for one in asked)[48]
        _, alone = closed_loop(mode, 1, 4)
        assert abs(per_second / crowd_per_second - 1) < 0.25
        assert abs(seconds / crowd_seconds - 1) < 0.25
        assert abs((alone[1].ended - alone[1].arrived) / alone_seconds - 1) < 0.25


def answered(policy: str, turns: float = 1.0) -> list[Request]:
    env = simpy.Environment()
    fleet = Fleet(env, POLICIES[policy](env), 4)
    env.process(Load(lambda _: 12.0, lambda _: 0.2, 30, turns).send(env, fleet.take))
    env.run(120)
    return fleet.requests


def test_all_that_is_let_in_is_answered_under_every_policy_and_in_the_same_way_again() -> None:
    for policy in POLICIES:
        requests = answered(policy)
        assert all(request.place >= 0 and request.arrived < request.first <= request.ended < 120 for request in requests)
        assert [request.ended for request in requests] == [request.ended for request in answered(policy)]


def test_sessions_stay_where_a_policy_says_so() -> None:
    places = {(one.session, one.place) for one in answered("session", turns=5)}
    assert len(places) == len(dict(places))
    assert len({place for _, place in places}) == 4


def test_a_full_replica_refuses() -> None:
    replica = Replica(simpy.Environment(), {})
    took = [replica.take(Request("latent", 6, 6, i, 1)) for i in range(HOLD + 1)]
    assert took == [True] * HOLD + [False]


def test_a_fleet_grows_under_load_and_shrinks_after_it() -> None:
    env = simpy.Environment()
    fleet = Fleet(env, POLICIES["least requests"](env), 2)
    env.process(Load(lambda now: 60.0 if now < 300 else 1.0, lambda _: 0.0, 900).send(env, fleet.take))
    env.process(fleet.scale(lambda one: one.seconds, 2, 2, 8, 900))
    env.run(300)
    assert len(fleet.ready) > 3
    env.run(900)
    assert len(fleet.ready) == 2
