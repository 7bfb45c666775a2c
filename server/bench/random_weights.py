"""A server of a named model's shape with random weights: what it answers is noise, how long it takes is not.

Nothing is downloaded. The base is a config that vLLM fills with random numbers; the tokenizer is the demo's, with as many more
words as the shape has rows; the reasoning network has the shape of the paper's (Qwen3-Embedding-0.6B, reading the last
position) and computes 256 latents. Without weights there is nothing to compare the engine with: no parity check.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import torch
from transformers import AutoTokenizer, Qwen3Config

from reasoning_net.bundle import Bundle, Manifest, fingerprint
from reasoning_net.config import SIZES, ReasoningNetConfig
from reasoning_net.errors import StageError
from reasoning_net.layout import default_layout
from reasoning_net.model import ReasoningNet
from server.settings import DEMO_MODEL

NUM_LATENTS = 256
NOTE = "Random weights: the answers are noise, and of fixed lengths. Only the times mean something."
_START_SECONDS = 1800
_MAX_PROMPT_TOKENS = 512
_PAPER = dict(zip(SIZES, (1024, 3072, 28, 16, 8, 128), strict=True))


@dataclass(frozen=True, slots=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    vocab_size: int = 151_936
    tie_word_embeddings: bool = True

    @property
    def kv_bytes(self) -> int:
        """Of one token in the KV cache, in bf16."""
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def config(self) -> Qwen3Config:
        rope = {"rope_type": "default", "rope_theta": 1_000_000}
        return Qwen3Config(
            **asdict(self), architectures=["Qwen3ForCausalLM"], dtype="bfloat16", rope_parameters=rope,
            max_position_embeddings=40_960, eos_token_id=2,
        )  # fmt: skip

    def network(self) -> ReasoningNetConfig:
        """The paper's for models of a size that it may stand beside, else one of the base's own shape."""
        own = {name: getattr(self, name) for name in SIZES}
        sizes = _PAPER if self.hidden_size >= _PAPER["hidden_size"] else own
        return ReasoningNetConfig(
            base_hidden_size=self.hidden_size, num_latent_tokens=NUM_LATENTS, conditioner="last", rope_theta=1_000_000, **sizes
        )


SHAPES = {
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, 8),
    "qwen3-1.7b": Shape(2048, 6144, 28, 16, 8),
    "qwen3-4b": Shape(2560, 9728, 36, 32, 8),
    "qwen3-8b": Shape(4096, 12_288, 36, 32, 8, tie_word_embeddings=False),
    "tiny": Shape(64, 128, 2, 2, 1, head_dim=32, vocab_size=1088),
}


def write_base(shape: Shape, directory: Path) -> None:
    """A checkpoint without weights, whose tokenizer has a word for every row of the embedding."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, directory / name)
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}  # else they go to the end
    words |= {f"Ġword{token}": token for token in set(range(shape.vocab_size)) - set(words.values())}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    shape.config().save_pretrained(directory)


def write_bundle(shape: Shape, base: Path, directory: Path) -> None:
    """A random reasoning network for `base`."""
    torch.manual_seed(0)
    manifest = Manifest(
        base=fingerprint(str(base)),
        layout=default_layout(AutoTokenizer.from_pretrained(base), shape.vocab_size),
        reasoning_net=shape.network(),
        num_latent_tokens=NUM_LATENTS,
        trained_on="nothing: random weights",
    )
    Bundle(directory, manifest).save({"reasoning_net": ReasoningNet(shape.network())})


@contextlib.contextmanager
def serve(name: str, directory: Path, concurrency: int, max_reply_tokens: int, flags: str) -> Iterator[str]:
    """`latentserve serve` on random weights of a named shape, in a process of its own; its URL.

    There is room in the KV cache for `concurrency` requests. Raises `StageError` with the server's last words when it does
    not start.
    """
    if name not in SHAPES:
        raise StageError(f"There is no shape {name!r}. There are {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    write_base(shape, directory / "base")
    write_bundle(shape, directory / "base", directory / "bundle")
    tokens = _MAX_PROMPT_TOKENS + NUM_LATENTS + max_reply_tokens
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        sys.executable, "-m", "server.cli", "serve", "--model", str(directory / "base"), "--bundle", str(directory / "bundle"),
        "--port", str(port), "--served-model-name", name, "--load-format", "dummy",
        "--max-model-len", str(tokens), *shlex.split(flags),
    ]  # fmt: skip
    gib = max(1, -(-concurrency * tokens * shape.kv_bytes // 2**30))
    environment = {"LATENTSERVE_KV_CACHE_GIB": str(gib)} | os.environ
    log = directory / "server.log"
    with log.open("w") as output:
        # A session of its own: Ctrl-C is for the bench, which stops the server then.
        process = subprocess.Popen(  # noqa: S603
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            ready = httpx.get(f"{url}/ready")
            if ready.status_code == 200:
                return
            if problem := ready.json()["problem"]:
                raise StageError(f"The server with random weights is not ready: {problem}")
        if process.poll() is not None or time.monotonic() > deadline:
            last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "it said nothing")
            raise StageError(f"The server with random weights did not start: {last}")
        time.sleep(0.2)
