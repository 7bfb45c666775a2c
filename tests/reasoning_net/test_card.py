import yaml

from reasoning_net.card import model_card
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.manifest import Manifest


def front_of(card: str) -> dict[str, object]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_card_says_what_the_hub_asks_for_and_what_was_measured() -> None:
    manifest = Manifest.read(DEMO_BUNDLE)
    card = model_card(
        manifest, "me/bundle", base="Qwen/Qwen3-1.7B", license_id="apache-2.0", fingerprint="abc",
        figures={"adapt": {"explicit": {"accuracy": 0.5}}}, plots=["reliability.png"],
    )  # fmt: skip
    front = front_of(card)
    assert (front["base_model"], front["library_name"], front["license"]) == ("Qwen/Qwen3-1.7B", "latentserve", "apache-2.0")
    assert {"latent", "auto", "latentserve"} <= set(front["tags"])
    assert "latentserve serve --model Qwen/Qwen3-1.7B --bundle me/bundle" in card
    assert f"| accuracy, latent | {manifest.scores['router fit']['accuracy']['latent']:.4g} |" in card
    assert "| explicit, accuracy | 0.5 |" in card
    assert "![reliability.png](reliability.png)" in card


def test_what_is_not_known_is_left_out() -> None:
    manifest = Manifest.read(DEMO_BUNDLE).model_copy(update={"scores": {}, "probe": None, "calibration": None})
    card = model_card(manifest, "runs/bundle", base="/models/mine")
    front = front_of(card)
    assert not {"base_model", "license"} & set(front)
    assert "auto" not in front["tags"]
    assert "Fingerprint" not in card
    assert "`/models/mine`" in card
