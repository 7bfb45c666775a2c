"""The whole of `latentserve adapt --latents --grpo` on a base of another shape than the demo's, undisturbed, and killed three
times at random moments: the same figures, and the same bytes. `make adapt` (SECONDS=600: that the base is trained for).

The base is a small Llama, trained for a minute: its answers are guesses, so `--anyway`. Speeds are others in each run, so the
second one is given the first one's plan.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from reasoning_net.bundle import Bundle
from reasoning_net.demo.base import BaseConfig, draw_sample
from reasoning_net.demo.tokenizer import train_tokenizer
from reasoning_net.padding import padded
from reasoning_net.training import Optimizer, OptimizerConfig

SECONDS = float(os.environ.get("SECONDS", "60"))
DATA = "demo:counting@2"
KILLS = 3
FLAGS = ("--data", DATA, "--quick", "--latents", "--grpo", "2", "--anyway", "--n", "16", "--max-thinking-tokens", "128")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 wide, 3 layers, all heads with one key: what the demo's Qwen3 is not."""
    torch.manual_seed(0)
    directory, tokenizer = tmp_path_factory.mktemp("llama") / "base", train_tokenizer(corpus_size=2000)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.05,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model, rng = LlamaForCausalLM(shape), random.Random(0)
    optimizer = Optimizer(model, OptimizerConfig())
    config, started, step = BaseConfig(output=directory, families=("counting",)), time.monotonic(), 0
    while (share := (time.monotonic() - started) / SECONDS) < 1:
        samples = [draw_sample(rng, tokenizer, config, 2) for _ in range(16)]
        ids = padded([sample.token_ids for sample in samples], fill=int(tokenizer.pad_token_id))
        labels = padded([sample.labels for sample in samples])
        logits = model(input_ids=ids).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step(step, share)
        step += 1
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def start(base: Path, output: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "server.cli", "adapt", str(base), "--output", str(output), *FLAGS]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def whole(base: Path, output: Path, log: Path) -> None:
    assert start(base, output, log).wait() == 0, log.read_text()[-3000:]


def test_a_run_that_is_killed_three_times_comes_to_the_same_figures(llama: Path, tmp_path: Path) -> None:
    log, first, second = tmp_path / "log", tmp_path / "undisturbed", tmp_path / "killed"
    started = time.monotonic()
    whole(llama, first, log)
    seconds = time.monotonic() - started
    said = log.read_text()
    assert "LlamaForCausalLM" in said
    assert "latents about" in said
    assert "Serve it: latentserve serve --model" in said

    (second / "done").mkdir(parents=True)
    for name in ("plan.json", "done/sample.json", "done/trial.json"):
        shutil.copyfile(first / name, second / name)
    rng = random.Random(int(os.environ.get("SEED", "0")))
    for _ in range(KILLS):
        process = start(llama, second, log)
        time.sleep(rng.uniform(5, seconds / 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = sorted(path.stem for path in (second / "done").glob("*.json"))
        print(f"killed; done were {', '.join(done)}")
    whole(llama, second, log)

    ours, theirs = (Bundle.load(directory / "bundle-grpo-2") for directory in (first, second))
    assert ours.manifest == theirs.manifest
    assert ours.fingerprint() == theirs.fingerprint()
    for path in (first / "done").glob("*.json"):
        results = [json.loads((directory / "done" / path.name).read_text())["result"] for directory in (first, second)]
        assert results[0] == results[1], path.name
    card = (second / "bundle-grpo-2" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "adapt, before" in card
    assert "curves.png" in card
    print(f"{seconds:.0f} s undisturbed; router fit: {ours.manifest.scores['router fit']['accuracy']}")
