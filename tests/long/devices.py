"""Two devices: `make devices`. On a CPU each worker takes a core.

Under tensor parallelism every rank computes the same latents from the same hidden states.
"""

import asyncio
import os
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import SEEN, questions
from tests.conftest import running_server

CHAT = "/v1/chat/completions"
# Of families whose answers are sure: where two tokens are as likely, sums in another order choose another one.
ASKED = [question.question for question in islice(questions(88, "test", families=SEEN), 16)]
MODES = ("direct", "latent", "explicit", "auto")


async def answers(url: str) -> dict[tuple[str, str], Any]:
    """Greedy, all at once; by mode and question."""

    async def answer(mode: str, question: str) -> Any:
        messages = [{"role": "user", "content": question}]
        body = {"model": "demo", "mode": mode, "temperature": 0, "max_tokens": 400, "messages": messages}
        response = (await client.post(CHAT, json=body)).json()
        message, route = response["choices"][0]["message"], response["route"]
        return message["content"], message.get("reasoning"), route["mode"], route["reason"]

    asked = [(mode, question) for mode in MODES for question in ASKED]
    async with httpx.AsyncClient(base_url=url, timeout=280) as client:
        found = await asyncio.gather(*(answer(mode, question) for mode, question in asked))
    return dict(zip(asked, found, strict=True))


async def test_two_devices_answer_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(tmp_path / "one.txt") as url:
        one = await answers(url)
    assert {answer[2] for answer in one.values()} == {"direct", "latent", "explicit"}, "each way to answer was taken"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(str(core) for core in sorted(os.sched_getaffinity(0))[:2]))
    with running_server(tmp_path / "two.txt", "--tensor-parallel-size", "2") as url:
        two = await answers(url)
    assert two == one
