import math

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics import exposition, parser

from reasoning_net.bundle import Bundle
from router.policy import Decision, Mode, Scores
from router.router import Options, Router
from server.observe.metrics import Metrics
from server.observe.record import Ask, Record


def total(name: str, **labels: str) -> float:
    """Of all samples of that name with those labels."""
    samples = (sample for family in REGISTRY.collect() for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def answered(mode: Mode) -> Record:
    record = Record(Ask("auto"), decision=Decision(mode, 0.9, 0.8, "worth_it"), scores=Scores(latent=0.9, tokens=200.0))
    record.prompt_tokens, record.generated_tokens, record.latent_tokens = 50, 6, 16
    record.ended = record.started + 0.1
    return record


def test_keys_are_told_apart_and_their_number_is_bounded(metrics: Metrics) -> None:
    for i in range(150):
        metrics.answered(answered(Mode.LATENT), f"Bearer secret-{i}")
    samples = [s for family in REGISTRY.collect() if family.name == "latentserve_amplification" for s in family.samples]
    keys = {s.labels["key"] for s in samples}
    assert "others" in keys
    assert 100 < len(keys) <= 102
    assert not any("secret" in key for key in keys)


def test_what_auto_saved_is_what_a_chain_was_expected_to_cost(metrics: Metrics) -> None:
    before = total("latentserve_thinking_tokens_saved_total")
    metrics.answered(answered(Mode.LATENT), None)
    metrics.answered(answered(Mode.EXPLICIT), None)
    assert total("latentserve_thinking_tokens_saved_total") - before == pytest.approx(194)


def test_a_routers_scores_can_be_added_up_over_replicas_and_its_version_compared(metrics: Metrics, bundle: Bundle) -> None:
    router = Router(bundle.manifest.calibration)
    metrics.watch_router(router)
    assert math.isnan(total("latentserve_router_drift_psi"))
    edges = bundle.manifest.calibration.score_edges
    for score in [edges[0] - 1e-6] * 90 + [1.0] * 20:
        router.drift.add(score)
    assert total("latentserve_router_part_scores_total", part="0") == 90
    assert total("latentserve_router_part_scores_total", part=str(len(edges))) == 20
    assert total("latentserve_router_part_share") == pytest.approx(1)
    assert total("latentserve_router_drift_psi") > 0.25
    router.switch(Options(policy="diffadapt"), "v2")
    assert total("latentserve_router_info", policy="diffadapt", version="v2") == total("latentserve_router_info") == 1


def test_an_exemplar_names_the_request_however_long_its_id_is(metrics: Metrics) -> None:
    record = answered(Mode.LATENT)
    record.request_id, record.trace_id = "chatcmpl-" + "x" * 300, "f" * 32
    metrics.answered(record, None)
    # vLLM's series may be in the registry, too, whose names clash once their colons are escaped.
    ours = REGISTRY.restricted_registry(["latentserve_request_seconds_bucket"])
    text = exposition.generate_latest(ours).decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    exemplars = [s.exemplar.labels for s in families["latentserve_request_seconds"].samples if s.exemplar]
    assert {"request_id": record.request_id[:64], "trace_id": "f" * 32} in exemplars
