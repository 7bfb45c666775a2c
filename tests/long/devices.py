"""An engine on two devices, and one that checks drafts, answer as one alone: `make devices`.

Under tensor parallelism every rank computes the same latents from the same hidden states; on a CPU each takes a core.
"""

import asyncio
import json
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import SEEN, final_number, questions
from tests.conftest import running_server

CHAT = "/v1/chat/completions"
# Of families whose answers are sure: where two tokens are as likely, sums in another order choose another one.
QUESTIONS = list(islice(questions(88, "test", families=SEEN), 16))
MODES = ("direct", "latent", "explicit", "auto")


async def answers(url: str, modes: tuple[str, ...] = MODES, temperature: float = 0) -> dict[tuple[str, str], Any]:
    """All at once; by mode and question."""

    async def answer(mode: str, question: str) -> Any:
        messages = [{"role": "user", "content": question}]
        body = {"model": "demo", "mode": mode, "temperature": temperature, "max_tokens": 400, "messages": messages}
        response = (await client.post(CHAT, json=body)).json()
        message, route = response["choices"][0]["message"], response["route"]
        return message["content"], message.get("reasoning"), route["mode"], route["reason"]

    asked = [(mode, question.question) for mode in modes for question in QUESTIONS]
    async with httpx.AsyncClient(base_url=url, timeout=280) as client:
        found = await asyncio.gather(*(answer(mode, question) for mode, question in asked))
    return dict(zip(asked, found, strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    with running_server(tmp_path_factory.mktemp("alone") / "log.txt") as url:
        found = asyncio.run(answers(url))
    assert {answer[2] for answer in found.values()} == {"direct", "latent", "explicit"}, "each way to answer was taken"
    return found


async def test_two_devices(alone: dict[tuple[str, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(str(core) for core in sorted(os.sched_getaffinity(0))[:2]))
    with running_server(tmp_path / "log.txt", "--tensor-parallel-size", "2") as url:
        assert await answers(url) == alone


async def test_drafts_from_the_text(alone: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    """Chains repeat what the question says: a draft is looked up there, and several of its tokens are checked in one step."""
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    with running_server(tmp_path / "log.txt", "--speculative-config", json.dumps(drafts)) as url:
        assert await answers(url) == alone
        sampled = await answers(url, ("explicit",), temperature=0.6)
        metrics = httpx.get(f"{url}/metrics").text
    right = [final_number(sampled["explicit", question.question][0] or "") == question.answer for question in QUESTIONS]
    assert sum(right) >= len(right) - 2, "vLLM 0.32 samples nonsense here, unless its expansion of temperatures is mended"
    accepted = re.search(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    assert accepted
    assert float(accepted[1]) > 0
