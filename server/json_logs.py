"""LATENTSERVE_LOG_FORMAT=json: every line that the server's processes write is one JSON object.

The loggers, vLLM's and uvicorn's among them, follow `logging.json` in each process. What others print (libraries in C++,
progress bars, a traceback that ends it all) is wrapped on its way out, by a process of its own that outlives a crash.
"""

import json
import logging.config
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).with_name("logging.json")


def write_json_logs() -> None:
    """From here on, in this process and those that it starts. A logging configuration that the user has set wins."""
    config = os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIG))
    wrapper = subprocess.Popen([sys.executable, "-I", __file__], stdin=subprocess.PIPE)  # noqa: S603
    assert wrapper.stdin is not None, "a pipe was asked for"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(wrapper.stdin.fileno(), stream.fileno())
    wrapper.stdin.close()
    logging.config.dictConfig(json.loads(Path(config).read_text()))


def wrap() -> None:
    """Copy lines, wrapping those that are no objects."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # the last words are yet to come
    for line in sys.stdin.buffer:
        text = line.decode(errors="replace").rstrip()
        if text:
            print(text if _is_object(text) else json.dumps(_wrapped(text)), flush=True)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _wrapped(text: str) -> dict[str, str]:
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now % 1 * 1000):03}"
    return {"time": stamp, "level": "INFO", "logger": "output", "message": text}


if __name__ == "__main__":
    wrap()
