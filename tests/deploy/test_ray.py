"""How many replicas are wanted; `make ray` sees them come and go."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve")

from deploy.ray import SECONDS_OUTSTANDING, ExpectedWork, Load, Options


def load(*seconds: float, queued: float = 0, running: float = 0) -> Load:
    metrics = {SECONDS_OUTSTANDING: dict(enumerate(seconds))}
    return SimpleNamespace(aggregated_metrics=metrics, total_queued_requests=queued, total_running_requests=running)


def test_as_many_replicas_as_there_is_work() -> None:
    wanted = ExpectedWork(target_seconds=10)
    assert wanted(load(25, 5, running=4))[0] == 3
    assert wanted(load(0))[0] == 0  # Serve keeps `min_replicas`
    assert wanted(load(10, running=4, queued=8))[0] == 3  # what waits is like what runs
    assert wanted(SimpleNamespace(aggregated_metrics=None, total_queued_requests=3, total_running_requests=0))[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"setting": {}}, "setting"),
        ({"settings": {"default_mod": "latent"}}, "default_mod"),
        ({"settings": {"default_mode": "fast"}}, "default_mode"),
        ({"settings": {"port": 8001}}, "Serve's: port"),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Options.model_validate(options)
