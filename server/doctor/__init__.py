"""`latentserve doctor`: what this machine has, what a server would take of it, and what is missing. It starts no engine.

machine.py    Python, libraries, processors, GPUs, limits
software.py   torch and vLLM, and whether one fits the other and the machine
model.py      the model's files, its layout, the bundle
memory.py     what of the memory is left for the KV cache
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    text: str
    mend: str | None = None
    """The command, or what else to do."""


def ok(subject: str, text: str) -> Finding:
    return Finding("ok", subject, text)


def table(findings: Sequence[Finding]) -> str:
    """One line each, and what to do under those that need it."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for one in findings:
        lines.append(f"{one.level:<8} {one.subject:<{width}}  {one.text}")
        if one.mend:
            lines.append(f"{'':<8} {'':<{width}}  → {one.mend}")
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    said = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    return "\n".join([*lines, f"\n{', '.join(said) or 'Nothing is missing'}."])


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False)
