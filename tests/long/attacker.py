"""Who sends the prompts of `attack`: a process of its own, of the lowest priority, for an attacker has a machine of its own.

It says when the first answers are there, and what came of all when its standard input ends. It imports next to nothing, and
speaks HTTP by itself: a client library would take more of the two cores than the server that refuses its requests.
"""

import asyncio
import itertools
import json
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHAT, CONNECTIONS = "/v1/chat/completions", 32


@dataclass
class Attack:
    """What came of the prompts."""

    codes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    generated: int = 0
    predicted: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)

    def count(self, content: dict[str, Any]) -> None:
        """An answer."""
        self.prompt_tokens += content["usage"]["prompt_tokens"]
        self.generated += content["usage"]["completion_tokens"]
        if predicted := (content["route"].get("scores") or {}).get("tokens"):
            self.predicted.append(predicted)
            self.real.append(content["usage"]["completion_tokens"])


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def body(question: str, **options: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0} | options


async def attack(url: str, key: str, prompts: "itertools.cycle[str]", found: Attack) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    while True:
        content = json.dumps(body(next(prompts), mode="explicit", max_tokens=1500)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Authorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        answered = dict(line.split(": ", 1) for line in lines if line)
        answer = await reader.readexactly(int(answered["content-length"]))
        found.codes[answered.get("x-reject-reason", status.split()[1])] += 1
        if status.split()[1] == "200":
            found.count(json.loads(answer))
        else:
            await asyncio.sleep(random.uniform(0.25, 0.75))


async def attack_until_told(url: str, key: str, prompts: list[str]) -> Attack:
    """Until the standard input ends."""
    found, cycle = Attack(), itertools.cycle(prompts)
    tasks = [asyncio.create_task(attack(url, key, cycle, found)) for _ in range(CONNECTIONS)]
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
