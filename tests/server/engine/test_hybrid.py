"""The engine under stress, compared with transformers: chunked prefill, many different requests at once, preemption.

The KV cache of this engine holds a fraction of what 32 requests need, and a step computes 96 tokens at most.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import GenerationError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from reasoning_net.bundle import Bundle
from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase
from reasoning_net.rollouts import prepare_environment
from router.helper import HelpRule
from router.policy import Mode
from router.probe_config import rung
from router.router import Options, Router
from router.soft import SoftThinking
from server.engine.budgets import Reserve
from server.engine.helper import Helper
from server.engine.seam import HybridEngine
from server.engine.shadow import Shadows
from server.engine.start import hybrid_config
from server.observe.metrics import Metrics
from server.observe.record import Ask, Record, current
from server.settings import DEMO_MODEL

NUM_LATENTS = 16
MAX_TOKENS = 24


@pytest.fixture(scope="session")
async def engine(bundle: Bundle, base: FrozenBase, metrics: Metrics) -> AsyncIterator[HybridEngine]:
    prepare_environment(str(DEMO_MODEL))
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    args = AsyncEngineArgs(
        str(DEMO_MODEL),
        dtype="float32",
        enable_prompt_embeds=True,
        enforce_eager=True,
        max_model_len=1024,
        reasoning_parser="qwen3",
        block_size=32,
        num_gpu_blocks_override=48,
        max_num_batched_tokens=96,
        max_num_seqs=32,
    )
    engine = HybridEngine.from_vllm_config(hybrid_config(args, bundle))
    router = Router(bundle.manifest.calibration)
    layout = bundle.manifest.layout.token_ids(base.tokenizer)
    await engine.install(bundle, layout, router, metrics, num_latents=NUM_LATENTS, soft_thinking=True)
    yield engine
    engine.shutdown()


async def generate(
    engine: HybridEngine, token_ids: list[int], mode: Mode | Ask, name: str, **params: Any
) -> tuple[Record, list[int]]:
    """Greedy; in a task of its own, so that each request has its own record."""

    async def run() -> tuple[Record, list[int]]:
        record = Record(mode if isinstance(mode, Ask) else Ask(mode))
        current.set(record)
        options = {"max_tokens": MAX_TOKENS, "temperature": 0, "output_kind": RequestOutputKind.FINAL_ONLY} | params
        async for output in engine.generate({"type": "token", "prompt_token_ids": token_ids}, SamplingParams(**options), name):
            last = output
        return record, list(last.outputs[0].token_ids)

    return await asyncio.create_task(run())


@pytest.fixture(scope="session")
def prompts(base: FrozenBase, asked: list[Question]) -> list[list[int]]:
    return [base.prompt_ids([{"role": "user", "content": question.question}]) for question in asked[:32]]


@pytest.fixture(scope="session")
def expected(base: FrozenBase, bundle: Bundle, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """What transformers computes for each prompt alone."""
    return [transformers_answers(base, bundle, token_ids) for token_ids in prompts]


def transformers_answers(base: FrozenBase, bundle: Bundle, token_ids: list[int]) -> dict[str, Any]:
    net, layout = bundle.reasoning_net(), bundle.manifest.layout.token_ids(base.tokenizer)
    prompt = base.read([token_ids])
    with torch.no_grad():
        z = net(prompt.hidden_states, prompt.embeddings, prompt.mask, NUM_LATENTS)
    direct = base.embed(torch.tensor([layout.direct]))
    return {
        "states": prompt.hidden_states[0],
        "z": z[0],
        Mode.LATENT: base.generate(base.read([token_ids]), base.prefix(layout, z), MAX_TOKENS)[0],
        Mode.LATENT_EXPLICIT: base.generate(base.read([token_ids]), base.between(layout.before_latents, z, ()), MAX_TOKENS)[0],
        Mode.DIRECT: base.generate(base.read([token_ids]), direct, MAX_TOKENS)[0],
    }


async def test_hidden_states_and_latents_equal_transformers(
    engine: HybridEngine, prompts: list[list[int]], expected: list[dict[str, Any]]
) -> None:
    alone = [await engine.inspect(prompts[0], NUM_LATENTS)]
    together = await asyncio.gather(*(engine.inspect(token_ids, NUM_LATENTS) for token_ids in prompts))
    for want, (states, z) in zip([expected[0], *expected], [*alone, *together], strict=True):
        assert torch.tensor(states).shape == want["states"].shape
        assert cosine_similarity(torch.tensor(states), want["states"], dim=-1).min() > 0.9999
        assert cosine_similarity(torch.tensor(z), want["z"], dim=-1).min() > 0.999


async def test_what_the_prefix_cache_holds_is_read_with_it(
    engine: HybridEngine, prompts: list[list[int]], base: FrozenBase, bundle: Bundle
) -> None:
    """Whoever computed it: a question that was read, or a chain that was written; while others evict it, and after a reset."""
    asked = [[*prompts[i], *prompts[i + 1]] for i in range(4)]
    for attempt in range(4):
        wrote = await generate(engine, asked[0], Mode.EXPLICIT, f"wrote-{attempt}", max_tokens=70, ignore_eos=True)
        conversation = [*asked[0], *wrote[1], *prompts[9]]  # its middle was generated
        found = await asyncio.gather(*(engine.inspect(ids, NUM_LATENTS) for ids in (conversation, *asked[1:], *prompts[10:20])))
        for ids, (states, z) in zip((conversation, *asked[1:]), found, strict=False):
            prompt = base.read([ids])
            with torch.no_grad():
                want = bundle.reasoning_net()(prompt.hidden_states, prompt.embeddings, prompt.mask, NUM_LATENTS)[0]
            assert cosine_similarity(torch.tensor(states), prompt.hidden_states[0], dim=-1).min() > 0.9999
            assert cosine_similarity(torch.tensor(z), want, dim=-1).min() > 0.999
        record, _ = await generate(engine, conversation, Mode.LATENT, f"turn-{attempt}")
        assert record.cached_tokens >= (len(conversation) - 1) // 32 * 32 - 32, "nothing of this was read from the cache"
        if attempt == 2:
            await engine.reset_prefix_cache()


async def test_seeds_repeat_and_survive_prefill_in_parts(engine: HybridEngine, prompts: list[list[int]]) -> None:
    long = [[*prompts[i], *prompts[i + 1]] for i in range(8)]  # more than one step computes
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 12}
    for mode in (Mode.EXPLICIT, Mode.LATENT):
        crowd = [generate(engine, token_ids, mode, f"seeded-{mode}-{i}", **options) for i, token_ids in enumerate(long)]
        assert all(tokens for _, tokens in await asyncio.gather(*crowd))
        first, again = [await generate(engine, long[0], mode, f"again-{mode}-{i}", **options) for i in range(2)]
        assert first[1] == again[1]


async def test_greedy_tokens_equal_transformers_for_32_at_once(
    engine: HybridEngine, prompts: list[list[int]], expected: list[dict[str, Any]], base: FrozenBase
) -> None:
    end = base.tokenizer.eos_token_id
    modes = (Mode.LATENT, Mode.DIRECT, Mode.LATENT_EXPLICIT)
    # One pass for latents, and two where an answer cannot be begun: here because it is wanted from the start in each output.
    kinds = (RequestOutputKind.FINAL_ONLY, RequestOutputKind.CUMULATIVE)
    requests = [(i, mode, kind) for i in range(len(prompts)) for mode in modes for kind in kinds]
    preempted = await preemptions(engine)
    # Explicit requests fill the cache and are preempted, and preempt.
    crowd = [generate(engine, prompts[i], Mode.EXPLICIT, f"crowd-{i}", max_tokens=200, ignore_eos=True) for i in range(16)]
    answers = await asyncio.gather(
        *crowd, *(generate(engine, prompts[i], mode, f"many-{i}-{mode}", output_kind=kind) for i, mode, kind in requests)
    )
    assert await preemptions(engine) > preempted, "the cache was large enough: this test tests nothing"
    for (i, mode, _), (record, tokens) in zip(requests, answers[len(crowd) :], strict=True):
        assert record.mode is mode
        assert [token for token in tokens if token != end] == expected[i][mode]


async def preemptions(engine: HybridEngine) -> int:
    def count(worker: Any) -> int:
        return int(worker.latentserve_state()["preemptions"])

    (value, *_) = await engine.collective_rpc(count)
    return value


async def test_reads_are_batched_per_engine_step(engine: HybridEngine, prompts: list[list[int]]) -> None:
    (before, *_) = await engine.collective_rpc("latentserve_state")
    short = [token_ids[-12:] for token_ids in prompts]  # several fit in a step of 96 tokens
    await asyncio.gather(
        *(generate(engine, token_ids, Mode.LATENT, f"batched-{i}", max_tokens=1) for i, token_ids in enumerate(short))
    )
    (after, *_) = await engine.collective_rpc("latentserve_state")
    assert after["reads"] - before["reads"] == len(short)
    assert after["steps_with_reads"] - before["steps_with_reads"] < len(short) / 2


async def test_scores_equal_transformers(
    engine: HybridEngine, prompts: list[list[int]], base: FrozenBase, bundle: Bundle
) -> None:
    probe, net = bundle.probe(), bundle.reasoning_net()
    routed = await asyncio.gather(
        *(generate(engine, token_ids, Mode.AUTO, f"scored-{i}", max_tokens=1) for i, token_ids in enumerate(prompts))
    )
    for token_ids, (record, _) in zip(prompts, routed, strict=True):
        prompt = base.read([token_ids])
        with torch.no_grad():
            z = net(prompt.hidden_states, prompt.embeddings, prompt.mask, NUM_LATENTS)
            expected = probe.scores(probe.features(prompt.all_states, prompt.mask, z))
        found = asdict(record.scores) | {rung(number): correct for number, correct in record.scores.by_latents}
        for target, value in expected.items():
            assert found[target] == pytest.approx(float(value), rel=0.05, abs=0.02), target


async def test_nothing_is_kept_when_requests_end(engine: HybridEngine, prompts: list[list[int]]) -> None:
    await asyncio.gather(*(generate(engine, prompts[i], Mode.AUTO, f"kept-{i}", n=1) for i in range(8)))
    leaving = [
        asyncio.create_task(generate(engine, prompts[i], Mode.LATENT, f"leaving-{i}", max_tokens=500, ignore_eos=True))
        for i in range(8)
    ]
    await asyncio.sleep(0.05)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    for attempt in range(50):
        await generate(
            engine, prompts[0], Mode.DIRECT, f"flush-{attempt}", max_tokens=1
        )  # an engine step reports finished requests
        (state, *_) = await engine.collective_rpc("latentserve_state")
        if not state["latents"]:
            break
        await asyncio.sleep(0.05)
    assert state["latents"] == 0


async def test_idle_time_compares_answers_with_another_modes(
    engine: HybridEngine, prompts: list[list[int]], metrics: Metrics
) -> None:
    def shadowed() -> float:
        samples = [s for family in metrics._shadows.collect() for s in family.samples if s.name.endswith("_total")]
        return sum(s.value for s in samples if s.labels["outcome"] in ("agrees", "differs"))

    engine._shadows = Shadows(engine, 1.0, metrics, engine.get_tokenizer().decode)
    try:
        await asyncio.gather(*(generate(engine, prompts[i], Mode.AUTO, f"shadowed-{i}", max_tokens=300) for i in range(3)))
        for _ in range(600):
            if shadowed() == 3:
                break
            await asyncio.sleep(0.05)
        assert shadowed() == 3
    finally:
        engine._shadows.close()
        engine._shadows = None


@pytest.mark.parametrize("kind", [RequestOutputKind.FINAL_ONLY, RequestOutputKind.CUMULATIVE], ids=["begun", "two passes"])
async def test_lost_latents_fail_their_request_and_poison_nothing(
    engine: HybridEngine, asked: list[Question], base: FrozenBase, bundle: Bundle, kind: RequestOutputKind
) -> None:
    question = asked[40 + (kind is RequestOutputKind.CUMULATIVE)].question  # not in the prefix cache
    token_ids = base.prompt_ids([{"role": "user", "content": question}])

    def lose(worker: Any) -> None:
        worker.latentserve.reader._keep = lambda key, z: None

    def mend(worker: Any) -> None:
        worker.latentserve.reader._keep = worker.latentserve.store.put

    await engine.collective_rpc(lose)
    try:
        with pytest.raises(GenerationError, match="latents"):
            await generate(engine, token_ids, Mode.LATENT, "lost", output_kind=kind)
    finally:
        await engine.collective_rpc(mend)
    _, tokens = await generate(engine, token_ids, Mode.LATENT, "found", output_kind=kind)
    expected = transformers_answers(base, bundle, token_ids)[Mode.LATENT]
    assert [token for token in tokens if token != base.tokenizer.eos_token_id] == expected


async def test_a_latent_answer_is_one_engine_request(
    engine: HybridEngine, prompts: list[list[int]], base: FrozenBase, bundle: Bundle
) -> None:
    """Wherever the question ends in a block, also when all before it is cached; parameters that forbid it make it two."""
    long = [*prompts[0], *prompts[1]]
    with counted(engine) as ids:
        for length in (63, 64, 65, 66, 95, 96, 97):
            token_ids = long[-length:]
            expected = transformers_answers(base, bundle, token_ids)[Mode.LATENT]
            for attempt in range(3):
                record, tokens = await generate(engine, token_ids, Mode.LATENT, f"one-{length}-{attempt}")
                assert [token for token in tokens if token != base.tokenizer.eos_token_id] == expected
                assert record.scores.latent is not None
                assert record.cached_tokens == (0 if not attempt else (length - 1) // 32 * 32)
        assert len(ids) == 21
        for number, options in enumerate(
            ({"n": 2, "temperature": 1}, {"logprobs": 1}, {"output_kind": RequestOutputKind.CUMULATIVE})
        ):
            await generate(engine, long, Mode.LATENT, f"two-{number}", **options)
            assert len(ids) == 23 + 2 * number


@contextlib.contextmanager
def counted(engine: HybridEngine) -> Iterator[list[str]]:
    """The engine requests that are made."""
    ids, run = list[str](), engine.run

    def counting(prompt: Any, params: SamplingParams, request_id: str, **options: Any) -> AsyncGenerator[Any, None]:
        ids.append(request_id)
        return run(prompt, params, request_id, **options)

    engine.run = counting
    try:
        yield ids
    finally:
        del engine.run


@contextlib.contextmanager
def another(engine: HybridEngine, **fields: Any) -> Iterator[None]:
    """As if the bundle, or the base, were others."""
    before = engine.hybrid
    engine.hybrid = replace(before, **fields)
    try:
        yield
    finally:
        engine.hybrid = before


async def test_without_a_probe_auto_computes_no_latents(engine: HybridEngine, prompts: list[list[int]]) -> None:
    with another(engine, has_probe=False, router=Router(None, entropy_threshold=100.0)), counted(engine) as ids:
        record, _ = await generate(engine, prompts[0], Mode.AUTO, "no-probe")
        assert (record.mode, record.decision.reason, record.latent_tokens) == (Mode.DIRECT, "entropy_low", 0)
        assert record.scores.entropy is not None
        assert len(ids) == 2, "the first token of a direct answer, and the answer"
        record, _ = await generate(engine, prompts[0], Mode.LATENT, "no-probe-latent")
        assert record.latent_tokens == NUM_LATENTS, "who asks for latents gets them"


async def test_a_base_that_cannot_think_in_text_is_never_made_to(engine: HybridEngine, prompts: list[list[int]]) -> None:
    always = Router(engine.hybrid.router.calibration, policy="always-explicit")
    with another(engine, can_think_in_text=False, router=always):
        record, _ = await generate(engine, prompts[0], Mode.AUTO, "no-thinking")
        assert (record.mode, record.decision.reason) == (Mode.LATENT, "no_thinking")
        with pytest.raises(VLLMValidationError, match="--thinking-prompt"):
            await generate(engine, prompts[0], Mode.EXPLICIT, "no-thinking-explicit")
    with another(engine, tags=(None, None), hides_ends=True, router=always):
        schema = StructuredOutputsParams(choice=["1", "2"])
        record, _ = await generate(engine, prompts[0], Mode.AUTO, "no-end", structured_outputs=schema)
        assert (record.mode, record.decision.reason) == (Mode.LATENT, "demoted_schema")
        with pytest.raises(VLLMValidationError, match="cannot keep to a schema"):
            await generate(engine, prompts[0], Mode.EXPLICIT, "no-end-explicit", structured_outputs=schema)


async def test_more_latents_than_the_network_has_do_not_reach_the_engine(
    engine: HybridEngine, prompts: list[list[int]]
) -> None:
    most = engine.hybrid.max_latents
    with pytest.raises(VLLMValidationError, match=f"between 1 and {most}"):
        await generate(engine, prompts[0], Ask(Mode.LATENT, most + 1), "too-many")
    with pytest.raises(ValueError, match=f"at most {most}"):
        await engine.inspect(prompts[0], most + 1)


async def test_latents_that_are_not_finite_fall_back_to_explicit(
    engine: HybridEngine, prompts: list[list[int]], base: FrozenBase
) -> None:
    def spoil(worker: Any) -> float:
        scale = worker.latentserve.reader._net.scale
        before = float(scale)
        scale.fill_(float("nan"))
        return before

    (before, *_) = await engine.collective_rpc(spoil)
    try:
        record, tokens = await generate(engine, prompts[2], Mode.LATENT, "not-finite", max_tokens=4)
        assert (record.mode, record.decision.reason, record.latent_tokens) == (Mode.EXPLICIT, "latents_not_finite", 0)
        assert base.tokenizer.decode(tokens).startswith("<think>")
        record, _ = await generate(engine, prompts[2], Mode.AUTO, "not-finite-auto", max_tokens=4)
        assert record.mode is Mode.EXPLICIT
        with another(engine, can_think_in_text=False):
            record, _ = await generate(engine, prompts[2], Mode.LATENT, "not-finite-plain", max_tokens=4)
            assert (record.mode, record.latent_tokens) == (Mode.DIRECT, 0)
    finally:

        def mend(worker: Any) -> None:
            worker.latentserve.reader._net.scale.fill_(before)

        await engine.collective_rpc(mend)


@pytest.mark.parametrize("mode", [Mode.EXPLICIT, Mode.LATENT_EXPLICIT, Mode.AUTO])
async def test_a_chain_leaves_room_for_its_answer(
    engine: HybridEngine, prompts: list[list[int]], base: FrozenBase, mode: Mode
) -> None:
    """Where the reply's limit, or the model's length, would end within it."""
    end, before = base.tokenizer.convert_tokens_to_ids("</think>"), engine.hybrid
    ask = Ask(mode, options=Options(policy="always-explicit") if mode is Mode.AUTO else Options())
    long = (prompts[0] * 20)[-(1024 - 60 - NUM_LATENTS) :]
    try:
        for prompt, limit in ((prompts[0], 60), (prompts[0], 25), (long, 500)):
            engine.hybrid = replace(before, reserve=None)
            record, tokens = await generate(engine, prompt, ask, "unbounded", max_tokens=limit, ignore_eos=True)
            assert record.is_unanswered == (end not in tokens)
            engine.hybrid = replace(before, reserve=Reserve(12))
            record, bounded = await generate(engine, prompt, ask, "bounded", max_tokens=limit, ignore_eos=True)
            assert len(bounded) == len(tokens)
            assert 12 <= len(bounded) - bounded.index(end) - 1 <= 14 or bounded.index(end) == tokens.index(end)
            assert (record.is_unanswered, record.public()["unanswered"]) == (False, False)
            assert record.thinking_tokens <= record.public()["thinking_budget"] + 2
        record, tokens = await generate(engine, prompts[0], ask, "own", max_tokens=60, thinking_token_budget=5)
        assert record.public()["thinking_budget"] == 5
        assert tokens.index(end) <= 6
    finally:
        engine.hybrid = before


async def test_reserved_tokens_are_refused(engine: HybridEngine, bundle: Bundle, prompts: list[list[int]]) -> None:
    reserved = bundle.manifest.layout.placeholder_token_id
    for mode in Mode:
        with pytest.raises(VLLMValidationError, match="reserved"):
            await generate(engine, [*prompts[0], reserved], mode, f"reserved-{mode}")


async def test_embeddings_enter_by_no_route(engine: HybridEngine, prompts: list[list[int]], base: FrozenBase) -> None:
    rows = torch.full((len(prompts[0]), base.hidden_size), float("nan"))
    mixed = {"prompt_token_ids": prompts[0], "is_token_ids": [False] * len(prompts[0])}
    for prompt in ({"type": "embeds", "prompt_embeds": rows}, {"type": "embeds", "prompt_embeds": rows, **mixed}, "Hello"):
        with pytest.raises(VLLMValidationError, match="only this server writes embeddings"):
            async for _ in engine.generate(prompt, SamplingParams(max_tokens=1), "embeds"):
                pass
    assert not engine.model_config.enable_prompt_embeds, "vLLM's front end decodes no tensor of a client"


async def test_a_mode_takes_one_prompt_a_request(engine: HybridEngine, prompts: list[list[int]]) -> None:
    """Several prompts of one HTTP request share its record; none may be answered on another's decision."""

    async def several() -> list[Any]:
        current.set(Record(Ask("auto")))

        async def one(token_ids: list[int]) -> None:
            prompt = {"type": "token", "prompt_token_ids": token_ids}
            async for _ in engine.generate(prompt, SamplingParams(max_tokens=4), "several"):
                pass

        return await asyncio.gather(*(one(token_ids) for token_ids in prompts[:4]), return_exceptions=True)

    first, *others = await asyncio.create_task(several())
    assert first is None
    assert all(isinstance(error, VLLMValidationError) and "one prompt" in str(error) for error in others)


async def test_a_doubtful_answer_stops_at_its_first_doubtful_token(engine: HybridEngine, prompts: list[list[int]]) -> None:
    """Streamed or not; its permit is given back before the chain begins."""
    for kind in (RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY):
        options = {"max_tokens": 200, "output_kind": kind}
        asked = [generate(engine, token_ids, Mode.AUTO, f"doubt-{kind}-{i}", **options) for i, token_ids in enumerate(prompts)]
        escalated = [record for record, _ in await asyncio.gather(*asked) if record.escalated]
        assert escalated
        assert min(record.discarded_tokens for record in escalated) < 6, "of answers that have six tokens"
    assert engine.room._value == 2 * 32


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"thinking_token_budget": 2**70}, "thinking_token_budget"),
        ({"stop": ["\ud800"]}, "stop"),
        ({"extra_args": {"kv_transfer_params": "x"}}, "vllm_xargs"),
        ({"extra_args": {"latentserve": {"kind": "forget", "key": "x"}}}, "vllm_xargs"),
        ({"logit_bias": {2: 100.0}}, "logit_bias"),
        ({"allowed_token_ids": [2]}, "allowed_token_ids"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids"),
    ],
)
async def test_parameters_that_would_hurt_are_refused(
    engine: HybridEngine, prompts: list[list[int]], bundle: Bundle, params: dict[str, Any], name: str
) -> None:
    reserved = bundle.manifest.layout.placeholder_token_id
    if name in ("logit_bias", "allowed_token_ids"):
        params = {name: {reserved: 100.0} if name == "logit_bias" else [reserved]}
    for mode in ("latent", "explicit"):
        with pytest.raises(VLLMValidationError) as caught:
            await generate(engine, prompts[0], Mode(mode), "label \ud800", **params)
        assert caught.value.parameter == name


def soft(**fields: Any) -> Ask:
    return Ask("soft", soft=SoftThinking(**fields))


async def test_a_mixture_of_one_token_is_greedy_decoding(engine: HybridEngine, prompts: list[list[int]]) -> None:
    """Also where requests are preempted and compute their rows again."""
    plain = [
        await generate(engine, token_ids, Mode.EXPLICIT, f"plain-{i}", max_tokens=64)
        for i, token_ids in enumerate(prompts[:16])
    ]
    preempted = await preemptions(engine)
    crowd = [generate(engine, prompts[i], Mode.EXPLICIT, f"soft-crowd-{i}", max_tokens=200, ignore_eos=True) for i in range(12)]
    mixed = (generate(engine, prompts[i], soft(k=1), f"soft-{i}", max_tokens=64) for i in range(16))
    answers = await asyncio.gather(*crowd, *mixed)
    assert await preemptions(engine) > preempted, "the cache was large enough: this test tests nothing"
    for (_, greedy), (record, tokens) in zip(plain, answers[len(crowd) :], strict=True):
        assert tokens == greedy
        assert record.mode is Mode.EXPLICIT
        assert record.soft["mean_entropy"] == 0
        assert record.soft["steps"] == record.thinking_tokens - record.chain_has_ended


WIDE = {"temperature": 2.0, "top_p": 1.0, "min_p": 0.0}
"""Mixtures of a base that is nearly always sure."""


async def test_mixtures_equal_those_of_transformers(engine: HybridEngine, prompts: list[list[int]], base: FrozenBase) -> None:
    ask, wanted = soft(k=5, **WIDE), [mixed_by_transformers(base, token_ids, 5) for token_ids in prompts[:4]]
    alone = [await generate(engine, prompts[0], ask, "mixed-alone")]
    together = await asyncio.gather(*(generate(engine, prompts[i % 4], ask, f"mixed-{i}") for i in range(24)))
    for want, (record, tokens) in zip([wanted[0], *(wanted[i % 4] for i in range(24))], [*alone, *together], strict=True):
        assert tokens == want
        assert record.soft["mean_entropy"] > 0.03


def mixed_by_transformers(base: FrozenBase, token_ids: list[int], k: int) -> list[int]:
    prompt, written = base.read([token_ids]), list[int]()
    state = prompt.hidden_states[:, -1]
    for _ in range(MAX_TOKENS):
        weights, ids = (base.model.lm_head(state)[0] / WIDE["temperature"]).softmax(-1).topk(k)
        written.append(int(ids[0]))
        row = (base.embed(ids) * (weights / weights.sum())[:, None]).sum(0)[None, None]
        states, prompt = base.read_on(prompt, row, prompt.mask.new_ones(1, 1))
        state = states[:, -1]
    return written


async def test_nobody_finds_mixtures_in_the_prefix_cache(
    engine: HybridEngine, prompts: list[list[int]], base: FrozenBase
) -> None:
    """Their rows are no function of the tokens that were written."""
    token_ids = [*prompts[20], *prompts[21]]
    _, written = await generate(engine, token_ids, soft(k=5, **WIDE), "kept-apart", max_tokens=96, ignore_eos=True)
    conversation = [*token_ids, *written]
    record, tokens = await generate(engine, conversation, Mode.EXPLICIT, "reads-on", max_tokens=8)
    assert record.cached_tokens <= len(token_ids)
    expected = base.generate(base.read([conversation]), base.embed(torch.empty(1, 0, dtype=torch.long)), 8)[0]
    assert tokens[: len(expected)] == expected


@pytest.mark.parametrize("noise", ["gumbel", "dirichlet"])
async def test_noise_is_of_the_requests_seed(engine: HybridEngine, prompts: list[list[int]], noise: str) -> None:
    ask = soft(k=5, noise=noise, noise_scale=1.0, **WIDE)
    one, again, other = [await generate(engine, prompts[3], ask, f"{noise}-{i}", seed=seed) for i, seed in enumerate((1, 1, 2))]
    assert one[1] == again[1]
    assert one[0].soft["mean_entropy"] == again[0].soft["mean_entropy"] != other[0].soft["mean_entropy"]


async def test_thinking_goes_to_text_and_back_by_entropy_and_ends(engine: HybridEngine, prompts: list[list[int]]) -> None:
    ask = soft(switch="lead", window=1, max_returns=2, **WIDE)
    record, _ = await generate(engine, prompts[5], ask, "lead", max_tokens=200)
    assert record.soft["switches"] == 5, "into text three times, the third of which ends thinking"
    assert 0 < record.soft["steps"] < record.thinking_tokens
    assert record.chain_has_ended
    cold, _ = await generate(engine, prompts[5], soft(cold_entropy=9.0, cold_steps=7, **WIDE), "cold", max_tokens=200)
    assert cold.thinking_tokens == 7
    (state, *_) = await engine.collective_rpc("latentserve_state")
    assert state["mixtures"] <= 1


EVERY_STEP = HelpRule(policy="random", share=1.0)


@contextlib.asynccontextmanager
async def with_helper(engine: HybridEngine, url: str, *, starts: bool) -> AsyncIterator[None]:
    engine.helper = Helper(url, None, None, EVERY_STEP, engine.get_tokenizer())
    before, engine.hybrid = engine.hybrid, replace(engine.hybrid, help=EVERY_STEP)
    try:
        if starts:
            await engine.helper.start()
        yield
    finally:
        await engine.helper.close()
        engine.helper, engine.hybrid = None, before


async def test_a_chain_whose_steps_the_same_model_writes_elsewhere_is_the_same(
    engine: HybridEngine, prompts: list[list[int]], server: str
) -> None:
    plain = [
        await generate(engine, token_ids, Mode.EXPLICIT, f"alone-{i}", max_tokens=500)
        for i, token_ids in enumerate(prompts[:3])
    ]
    async with with_helper(engine, server, starts=True):
        asked = [generate(engine, prompts[i], Mode.EXPLICIT, f"helped-{i}", max_tokens=500) for i in range(3)]
        helped = await asyncio.gather(*asked)
    for (_, tokens), (record, same) in zip(plain, helped, strict=True):
        assert same == tokens
        assert record.help.helped
        assert all(record.help.helped)
        assert record.help.tokens > len(tokens) / 2


async def test_where_the_helper_is_away_the_own_model_goes_on(engine: HybridEngine, prompts: list[list[int]]) -> None:
    _, tokens = await generate(engine, prompts[0], Mode.EXPLICIT, "unhelped", max_tokens=200)
    async with with_helper(engine, "http://127.0.0.1:9", starts=False):
        record, same = await generate(engine, prompts[0], Mode.EXPLICIT, "in-vain", max_tokens=200)
    assert same == tokens
    assert (record.help.failed, sum(record.help.helped), record.help.tokens) == (1, 0, 0)
