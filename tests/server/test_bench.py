"""The load generator: what it draws and adds up, and runs against the real server."""

import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from server.bench.client import Answer, ServerGoneError, complete
from server.bench.figures import Request, markdown, ratios, summarise
from server.bench.load import ALONE, Lengths, Load, arrivals, load_points, mixes
from server.bench.random_weights import SHAPES, write_base, write_bundle
from server.settings import DEMO_MODEL
from tests.e2e.test_modes import metric
from tests.server.cli import Ended, failure, run

BUSY = Load("closed", 64)


def bench(*arguments: str) -> Ended:
    return run("bench", *arguments)


def answered(arm: str, load: Load, round_: int, started: float, seconds: float, **fields: object) -> Request:
    values = {"first_token_seconds": seconds / 2, "tokens": 5, "mode": arm} | fields
    return Request(arm, load, round_, started, Answer(seconds, **values))


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(4.0, 4000, random.Random(0))
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    assert times == sorted(times) == arrivals(4.0, 4000, random.Random(0))
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.1)


def test_load_points() -> None:
    assert load_points("1,64,1", "0.5") == (ALONE, BUSY, Load("open", 0.5))
    assert [load.num_requests(20) for load in load_points("1,2", "1")] == [3, 20, 20]
    for wrong in (("0", ""), ("1.5", ""), ("", "-1"), ("", "inf"), ("", "fast")):
        with pytest.raises(StageError, match="above 0"):
            load_points(*wrong)


def test_a_mix_draws_its_modes_in_shares() -> None:
    direct, latent, mix = mixes("direct,latent:64", "latent:7,explicit:3")
    assert (direct.name, latent.name, mix.name) == ("direct", "latent (64)", "mix")
    assert [arm.body() for arm in latent.draw(2, random.Random(0)) if arm] == [{"mode": "latent", "num_latent_tokens": 64}] * 2
    drawn = Counter(str(arm) for arm in mix.draw(2000, random.Random(0)))
    assert drawn["latent"] / 2000 == pytest.approx(0.7, abs=0.04)
    assert drawn.total() == drawn["latent"] + drawn["explicit"]
    for wrong in ("latent", "latent:0", "latent:-1", "latent:nan", "latent:0.7;explicit:0.3"):
        with pytest.raises(StageError, match="--mix takes modes with shares"):
            mixes("", wrong)


def test_figures_of_a_turn() -> None:
    records = [answered("latent", BUSY, round_, started, 2.0) for round_ in (0, 1) for started in (0.0, 1.0, 2.0)]
    records += [answered("latent", BUSY, 1, 0.0, 1.0, tokens=1), answered("latent", BUSY, 1, 0.0, 0.1, error="HTTP 429")]
    (figures,) = summarise(records)
    assert (figures.requests, figures.errors, figures.modes) == (8, {"HTTP 429": 1}, {"latent": 7})
    assert figures.requests_per_second == pytest.approx((3 / 4 + 4 / 4) / 2)  # a turn lasts to its last answer
    assert figures.milliseconds["end-to-end"]["p50"] == 2000
    assert figures.milliseconds["time to first token"]["p99"] == 1000
    assert figures.milliseconds["time per output token"]["mean"] == pytest.approx((2000 - 1000) / 4)
    assert "1 × HTTP 429" in markdown(records, "")


def test_an_arm_of_which_every_request_failed_has_no_times() -> None:
    records = [answered("latent", ALONE, 0, 0.0, 0.1, error="timeout"), answered("direct", ALONE, 0, 0.0, 0.1)]
    assert summarise(records)[0].milliseconds["end-to-end"] == {}
    assert ratios(summarise(records)) == {}


def test_ratios_need_their_arms_and_load_points() -> None:
    seconds = {"direct": 1.0, "latent": 2.0, "explicit": 8.0}
    alone = [answered(arm, ALONE, 0, 0.0, value) for arm, value in seconds.items()]
    assert ratios(summarise(alone)) == {"latent ÷ direct, time alone": 2.0, "explicit ÷ latent, time alone": 4.0}
    busy = [answered(arm, load, 0, 0.0, value) for load in (Load("closed", 8), BUSY) for arm, value in seconds.items()]
    compared = answered("compared", BUSY, 0, 0.0, 4.0)
    assert ratios(summarise([*busy, compared])) == {
        "latent ÷ explicit, throughput": 4.0,
        "latent ÷ direct, throughput": 0.5,
        "explicit ÷ compared server, throughput": 0.5,
    }
    assert ratios(summarise([answered(arm, Load("open", 4), 0, 0.0, 1.0) for arm in seconds])) == {}
    talk = [answered(arm, Load("turn", turn), 0, 0.0, value) for arm, value in seconds.items() for turn in (1, 2)]
    assert ratios(summarise(talk)) == {"latent ÷ explicit, first token of turn 2": 0.25}


def test_random_weights_answer_at_fixed_lengths() -> None:
    (latent,), (explicit,) = ([arm for arm, _ in mix.shares] for mix in mixes("latent,explicit", ""))
    lengths = Lengths(answer_tokens=32, thinking_tokens=256)
    assert lengths.limit(latent) == {"ignore_eos": True, "max_tokens": 32}
    assert lengths.limit(explicit) == lengths.limit(None) == {"ignore_eos": True, "max_tokens": 288}


def test_a_base_of_random_weights_has_a_word_for_every_token(tmp_path: Path) -> None:
    shape, base = SHAPES["tiny"], tmp_path / "base"
    write_base(shape, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert len(tokenizer) == shape.vocab_size
    assert all(tokenizer.decode([token]) for token in range(shape.vocab_size))
    assert tokenizer.encode("</think>") == AutoTokenizer.from_pretrained(DEMO_MODEL).encode("</think>")
    write_bundle(shape, base, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    bundle.check_base(str(base))
    assert bundle.manifest.num_latent_tokens == 256
    net = bundle.reasoning_net()
    assert net is not None
    assert net.config.base_hidden_size == shape.hidden_size


def test_bad_options_are_one_sentence(tmp_path: Path) -> None:
    assert "above 0" in failure("bench", "--concurrency", "many")
    assert "is no arm" in failure("bench", "--modes", "fast")
    assert "Nothing to measure" in failure("bench", "--modes", "")
    assert "cannot be written" in failure("bench", "--output", str(Path(__file__) / "bench"))
    assert "There is no shape 'huge'" in failure("bench", "--random-weights", "huge")
    assert "without --url" in failure("bench", "--random-weights", "tiny", "--url", "http://127.0.0.1:1")
    assert "by chance" in failure("bench", "--random-weights", "tiny", "--modes", "auto")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert "Is the server running?" in failure("bench", "--url", f"http://127.0.0.1:{sock.getsockname()[1]}")


def event(**fields: object) -> str:
    return f"data: {json.dumps({'choices': []} | fields)}\n\n"


TEXT = event(choices=[{"delta": {"content": "4"}}])
END = event(usage={"completion_tokens": 2}, route={"mode": "latent"}) + "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (200, TEXT + END, None),
        (200, event(choices=[{"delta": {"role": "assistant", "content": ""}}]) + END, None),
        (429, '{"error": {"message": "busy"}}', "HTTP 429"),
        (502, "<html>", "HTTP 502"),
        (200, TEXT + event(error={"message": "the engine died"}), "error in the stream"),
        (200, TEXT, "incomplete"),
        (200, TEXT + event(usage={"completion_tokens": 2}), "no route"),
        (200, "data: {no JSON\n\n", "not OpenAI's protocol"),
    ],
)
async def test_what_goes_wrong_has_a_kind(status: int, content: str, error: str | None) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=content))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await complete(client, {"mode": "latent"}, due=0.0)
    assert answer.error == error
    if error is None:
        assert (answer.tokens, answer.mode) == (2, "latent")
        assert (answer.first_token_seconds is not None) == (TEXT in content)


async def test_a_request_that_is_sent_late_has_waited() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=TEXT + END))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await complete(client, {"mode": "latent"}, due=time.perf_counter() - 60)
    assert answer.first_token_seconds is not None
    assert answer.seconds >= answer.first_token_seconds >= 60


@pytest.mark.parametrize(("kind", "error"), [(httpx.ReadTimeout, "timeout"), (httpx.RemoteProtocolError, "connection")])
async def test_a_broken_connection_is_counted(kind: type[httpx.TransportError], error: str) -> None:
    async with client_that_fails(kind) as client:
        assert (await complete(client, {}, due=0.0)).error == error


async def test_a_refused_connection_ends_the_run() -> None:
    async with client_that_fails(httpx.ConnectError) as client:
        with pytest.raises(ServerGoneError, match="http://server cannot be reached any more"):
            await complete(client, {}, due=0.0)


def client_that_fails(kind: type[httpx.TransportError]) -> httpx.AsyncClient:
    def fails(request: httpx.Request) -> httpx.Response:
        raise kind("no", request=request)

    return httpx.AsyncClient(transport=httpx.MockTransport(fails), base_url="http://server")


class StubServer(ThreadingHTTPServer):
    """Answers so many requests. What comes then, a real server cannot be made to do in time."""

    def __init__(self, answers: int, then: str) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.answers, self.then = answers, then
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class StubHandler(BaseHTTPRequestHandler):
    server: StubServer

    def do_GET(self) -> None:
        self._answer('{"data": [{"id": "stub"}]}' if self.path == "/v1/models" else "{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.answers -= 1
        if self.server.answers >= 0:
            self._answer(TEXT + END)
        elif self.server.then == "dies":
            self.server.shutdown()
            self.server.server_close()
        else:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)

    def _answer(self, body: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("then", "sentence"), [("dies", "cannot be reached any more"), ("is interrupted", "interrupted after 10 requests")]
)
def test_a_run_that_is_cut_short_keeps_what_it_has_measured(tmp_path: Path, then: str, sentence: str) -> None:
    stub = StubServer(answers=10, then=then)
    result = bench(
        "--url", stub.url, "--modes", "latent", "--concurrency", "1", "--requests", "160", "--warmup", "0", "--output",
        str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert sentence in result.stderr.splitlines()[-1]
    content = json.loads((tmp_path / "bench.json").read_text())
    assert sentence in content["problem"]
    assert content["figures"][0]["modes"] == {"latent": 10}


def test_a_run_in_which_everything_fails(server: str) -> None:
    result = bench("--url", server, "--modes", "latent:100000", "--concurrency", "2", "--requests", "2", "--rounds", "1")
    assert result.exit_code == 1
    assert "all 2 requests failed: 2 × error in the stream (num_latent_tokens must be" in result.stderr.splitlines()[-1]


def test_all_arms_at_all_load_points(server: str, tmp_path: Path) -> None:
    result = bench(
        "--url", server, "--compare", server, "--concurrency", "1,3", "--rate", "20", "--requests", "4", "--rounds", "2",
        "--warmup", "1", "--max-tokens", "6", "--mix", "direct:1,latent:1", "--api-key", "secret", "--output", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    assert "secret" not in (tmp_path / "bench.json").read_text()
    assert content["problem"] is None
    assert content["environment"]["servers"][server]["model"] == "demo"
    arms = ("direct", "latent", "explicit", "mix", "compared")
    figures = {(f["load"]["loop"], f["load"]["value"], f["arm"]): f for f in content["figures"]}
    assert set(figures) == {(*load, arm) for load in (("closed", 1), ("closed", 3), ("open", 20)) for arm in arms}
    for (loop, value, arm), f in figures.items():
        assert f["requests"] == (2 if (loop, value) == ("closed", 1) else 8)
        assert f["errors"] == {}
        assert f["requests_per_second"] > 0
        assert 1 <= f["tokens"] <= 6
        if arm in ("direct", "latent", "explicit"):
            assert set(f["modes"]) == {arm}
        first, per_token, whole = f["milliseconds"].values()
        assert 0 < first["p50"] <= whole["p50"] <= whole["p90"] <= whole["p95"] <= whole["p99"]
        assert 0 < per_token["mean"] < whole["mean"]
    assert set(figures["open", 20, "mix"]["modes"]) <= {"direct", "latent"}
    assert len(content["ratios"]) == 5
    tables = (tmp_path / "bench.md").read_text()
    assert tables.strip() in result.stdout
    assert "| explicit ÷ compared server, throughput |" in tables
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(requests) == 5 * 2 * (1 + 4 + 4)
    for arm in arms:  # each meets the same arrivals
        due = [r["started"] for r in requests if (r["arm"], r["round"], r["load"]["loop"]) == (arm, 1, "open")]
        assert sorted(due) == pytest.approx(arrivals(20.0, 4, random.Random("arrivals 1 1")))
    assert len(list(tmp_path.glob("*.png"))) == 7


def test_a_conversation_is_measured_turn_by_turn(server: str, tmp_path: Path) -> None:
    """What came before stands in each prompt, and is not computed again."""
    before = metric(server, "vllm:prefix_cache_hits_total")
    result = bench(
        "--url", server, "--conversation", "4", "--modes", "latent,explicit", "--requests", "64", "--rounds", "1",
        "--max-tokens", "4", "--system-words", "100", "--warmup", "0", "--output", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    figures = {(f["load"]["value"], f["arm"]): f for f in content["figures"]}
    assert set(figures) == {(turn, arm) for turn in (1, 2, 3, 4) for arm in ("latent", "explicit")}
    assert all(f["requests"] == 2 and f["errors"] == {} for f in figures.values())
    assert set(content["ratios"]) == {"latent ÷ explicit, first token of turn 4"}
    hits = metric(server, "vllm:prefix_cache_hits_total") - before
    assert hits > 2 * 2 * 3 * 96, "the system prompt, from the second turn on"
    assert (tmp_path / "turns.png").is_file()


def test_vllm_bench_serve(server: str) -> None:
    """vLLM's own load generator, unmodified."""
    code = "from vllm.benchmarks.serve import *; p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
    result = subprocess.run(
        [
            sys.executable, "-c", code, "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", server,
            "--model", "demo", "--tokenizer", str(DEMO_MODEL), "--dataset-name", "random", "--random-input-len", "16",
            "--random-output-len", "4", "--num-prompts", "3", "--extra-body", '{"mode": "latent"}',
        ],
        capture_output=True, text=True, timeout=240, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.search(r"Successful requests: +3\b", result.stdout), result.stdout
