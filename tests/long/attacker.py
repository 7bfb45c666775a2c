"""Who sends the prompts of `attack`: a process of its own, of the lowest priority, for an attacker has a machine of its own.

It says when the first answers are there, and what came of all when its standard input ends. It imports next to nothing.
"""

import asyncio
import itertools
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

CHAT, CONNECTIONS = "/v1/chat/completions", 32


@dataclass
class Attack:
    """What came of the prompts."""

    codes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    generated: int = 0
    predicted: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def body(question: str, **options: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0} | options


async def attack(client: httpx.AsyncClient, key: str, prompts: "itertools.cycle[str]", found: Attack) -> None:
    while True:
        answer = await client.post(CHAT, json=body(next(prompts), mode="explicit", max_tokens=1500), headers=headers(key))
        found.codes[answer.headers.get("x-reject-reason", str(answer.status_code))] += 1
        if answer.status_code == 200:
            content = answer.json()
            found.prompt_tokens += content["usage"]["prompt_tokens"]
            found.generated += content["usage"]["completion_tokens"]
            if predicted := (content["route"].get("scores") or {}).get("tokens"):
                found.predicted.append(predicted)
                found.real.append(content["usage"]["completion_tokens"])
        else:
            await asyncio.sleep(0.5)


async def attack_until_told(url: str, key: str, prompts: list[str]) -> Attack:
    """Until the standard input ends."""
    found, cycle = Attack(), itertools.cycle(prompts)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=CONNECTIONS)) as client:
        tasks = [asyncio.create_task(attack(client, key, cycle, found)) for _ in range(CONNECTIONS)]
        while not found.codes and not any(task.done() for task in tasks):
            await asyncio.sleep(0.1)
        print("begun", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


if __name__ == "__main__":
    os.nice(19)
    print(json.dumps(vars(asyncio.run(attack_until_told(*sys.argv[1:3], json.loads(Path(sys.argv[3]).read_text()))))))
