"""Bases of the shapes that people have, served with a network: the engine sees, and overlays, what training did: `make bases`.

Ready says that hidden states and latents are those of transformers; a first token's log-probabilities that the latents stand
in the prompt as they do there, whatever a base does to its embeddings.
"""

from pathlib import Path

import httpx
import pytest

from reasoning_net.config import Conditioner
from tests.bases import SHAPES, Tags, first_of_latent_answer, served_first, write_base, write_bundle
from tests.conftest import running_server

QUESTION = "Tom has 7 pens. He buys 2 pens. How many pens does Tom have now?"
TAGS: dict[str, Tags] = {"mistral": "text"}
CONDITIONERS: dict[str, Conditioner] = {"mistral": "last"}
"""All of its layers have a window, and what reads every position keeps states beside the cache of one that has none."""
TOLERANCE = 0.05
"""Of a log-probability: the network computes in bf16 where a CPU does."""


@pytest.mark.parametrize("shape", SHAPES)
def test_latents_of_every_shape(shape: str, tmp_path: Path) -> None:
    base = write_base(shape, tmp_path / "base", TAGS.get(shape, "tokens"))
    bundle = write_bundle(base, tmp_path / "bundle", conditioner=CONDITIONERS.get(shape, "all+embeddings"))
    flags = ("--model", str(base), "--bundle", str(bundle.directory), "--served-model-name", "base")
    with running_server(tmp_path / "log.txt", *flags, "--dtype", "float32", "--enforce-eager", "--max-model-len", "512") as url:
        assert httpx.get(f"{url}/ready").json()["parity"] > 0.999
        expected = first_of_latent_answer(base, bundle, QUESTION)
        assert served_first(url, QUESTION, "latent") == pytest.approx(expected, abs=TOLERANCE)
        assert served_first(url, QUESTION, "direct") != pytest.approx(expected, abs=TOLERANCE), "latents say something"
