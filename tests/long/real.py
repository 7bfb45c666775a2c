"""Every command on a real public base, SmolLM2-135M-Instruct, from its weights to a probe that routes: `make test-real`.

What is printed, and written to runs/real/transcript.md, is a newcomer's session with measured times. The problems are small: a
base of 135 million parameters has to have some of them right.
"""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import running_server

RUNS = Path("runs/real")
BASE, BUNDLE, PROBLEMS = RUNS / "base", RUNS / "bundle", RUNS / "problems.jsonl"
PROMPT = "Let's think step by step."
DATA = f"--data {PROBLEMS} --columns question=question,answer=answer"
_THINGS, _NAMES = ("pens", "cups", "apples", "books", "coins"), ("Tom", "Ann", "Ben", "Eva", "Max")


class Transcript:
    def __init__(self) -> None:
        RUNS.mkdir(parents=True, exist_ok=True)
        self._file = RUNS / "transcript.md"
        self._file.write_text("")

    def write(self, text: str) -> None:
        print(text, flush=True)
        with self._file.open("a") as file:
            file.write(f"{text}\n")

    def run(self, command: str, status: int = 0) -> str:
        """A command of ours, with the seconds that it took; what it says."""
        started = time.monotonic()
        words = [sys.executable, "-m", "server.cli", *shlex.split(command)]
        quiet = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=quiet)
        said = done.stdout if status == 0 else done.stderr.strip().splitlines()[-1]
        self.write(f"$ latentserve {command}\n{said.rstrip()}\n# {time.monotonic() - started:.0f} s\n")
        assert done.returncode == status, done.stderr[-2000:]
        return said


def write_problems(number: int) -> None:
    """Sums of one or two steps in words."""
    rng = random.Random(0)
    lines = set[str]()
    while len(lines) < number:
        name, thing, have = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(2, 9)
        said = f"{name} has {have} {thing}."
        for _ in range(rng.randint(1, 2)):
            count = rng.randint(1, max(1, have // 2))
            buys = rng.random() < 0.6
            have += count if buys else -count
            said += f" {name} {'buys' if buys else 'gives away'} {count} {thing}."
        lines.add(json.dumps({"question": f"{said} How many {thing} does {name} have now?", "answer": str(have)}))
    PROBLEMS.write_text("".join(f"{line}\n" for line in sorted(lines)))


@pytest.fixture(scope="module")
def transcript() -> Transcript:
    return Transcript()


def test_from_weights_to_a_bundle(transcript: Transcript) -> None:
    if not BASE.is_dir():
        transcript.run(f"demo smollm2 --output {BASE}")
    write_problems(200)
    assert "Tokenizer:" in transcript.run(f"check --tokenizer --model {BASE}")
    assert "--thinking-prompt" in transcript.run(f"train traces --model {BASE} {DATA} --output {RUNS}/traces", status=1)
    transcript.run(f"bundle --model {BASE} --thinking-prompt {shlex.quote(PROMPT)} --trained-on SmolLM2 --output {BUNDLE}")


def test_a_probe_is_fitted(transcript: Transcript) -> None:
    transcript.run(
        f"router fit --model {BASE} --bundle {BUNDLE} {DATA} --whole --n 120 --explicit-questions 40 --samples 2 "
        "--max-reply-tokens 64 --max-thinking-tokens 96"
    )
    transcript.run(f"router calibrate --bundle {BUNDLE} --explicit-share 0.3")


def test_one_command_does_it(transcript: Transcript) -> None:
    """The look says whether chains are worth anything; `--anyway` goes on where so small a base is better without."""
    shutil.rmtree(RUNS / "adapted", ignore_errors=True)
    look = (
        f"adapt {BASE} {DATA} --thinking-prompt {shlex.quote(PROMPT)} --n 32 --max-thinking-tokens 128 --output {RUNS}/adapted"
    )
    assert "--probe" in transcript.run(look)
    said = transcript.run(f"{look} --probe --anyway")
    assert f"--bundle {RUNS}/adapted/bundle-probe" in said


def test_it_is_served_and_asked(transcript: Transcript) -> None:
    flags = ("--model", str(BASE), "--bundle", str(BUNDLE), "--served-model-name", "smol", "--max-model-len", "2048")
    transcript.write(f"$ latentserve serve {' '.join(flags)} --enforce-eager")
    started = time.monotonic()
    with running_server(RUNS / "server.log", *flags, "--enforce-eager") as url:
        transcript.write(f"# ready after {time.monotonic() - started:.0f} s\n")
        question = shlex.quote(json.loads(PROBLEMS.read_text().splitlines()[0])["question"])
        for mode in ("direct", "explicit", "auto"):
            transcript.run(f"ask {question} --mode {mode} --temperature 0 --max-tokens 160 --url {url}")
        body = {"model": "smol", "mode": "explicit", "exit": True, "messages": [{"role": "user", "content": "?"}]}
        refused = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert refused.status_code == 400
        transcript.write(f"exit=true: {refused.json()['error']['message']}\n")
        transcript.run(
            f"eval --url {url} {DATA} --whole --modes direct,explicit,auto --n 60 --max-tokens 160 --output {RUNS}/eval"
        )
        transcript.run(
            f"bench --url {url} --modes direct,explicit --requests 16 --rounds 1 --warmup 2 --concurrency 8 --max-tokens 96"
        )
