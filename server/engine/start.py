"""Start vLLM with our engine: its flags, and the defaults that hybrid reasoning needs."""

import asyncio
import difflib
import re
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import httpx
from transformers import AutoTokenizer
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from reasoning_net.bundle import Bundle
from reasoning_net.manifest import Manifest
from router.user_probe import ProbeFile, average, output_names, read_probes
from server.engine.base import Base
from server.engine.errors import ConfigurationError
from server.engine.helper import Helper
from server.engine.pace import Pace
from server.engine.passes import ENTROPY_LOGPROBS
from server.engine.seam import HybridEngine
from server.engine.work import Verdict
from server.engine.worker.networks import with_networks
from server.observe.metrics import Metrics
from server.settings import OUR_FLAGS, Settings, split_file

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
except ModuleNotFoundError:  # vLLM 0.33 moved it
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args

CPU_BLOCK_SIZE = 32  # the smallest that vLLM's CPU attention takes: short questions fill whole blocks
_DRAFTERS = ("ngram", "suffix")
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")  # what `train pear` adapts; vLLM would wrap the embedding, too
_END_SECONDS = 5.0  # for the engine's process to tidy up; vLLM would kill it at once


class _Parser(FlexibleArgumentParser):
    """vLLM's flags. What it does not know is one sentence, instead of vLLM's whole usage; what is ours is no flag of its."""

    def error(self, message: str) -> NoReturn:
        sentence = f"{message[:1].upper()}{message[1:]}."
        if (unknown := re.match(r"unrecognized arguments: (\S+)", message)) is not None:
            flag, known = unknown[1].split("=")[0], [*self._option_string_actions, *OUR_FLAGS]
            near = difflib.get_close_matches(flag.replace("_", "-"), known, n=1)
            sentence = f"There is no flag {flag}." + (f" Did you mean {near[0]}?" if near else "")
        raise ConfigurationError(f"{sentence} `latentserve serve --help` lists our flags, `vllm serve --help=all` vLLM's.")

    def load_config_file(self, file_path: str) -> list[str]:
        ours, mine = False, []
        for word in super().load_config_file(file_path):
            if word.startswith("--"):
                ours = word.replace("_", "-") in OUR_FLAGS
            if not ours:
                mine.append(word)
        return mine


def _given(flags: Sequence[str]) -> set[str]:
    names = {flag.split("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    return names | {"--" + name.removeprefix("--no-") for name in names}


def _defaults(settings: Settings) -> list[list[str]]:
    """Our own, flag by flag."""
    flags = [["--block-size", str(CPU_BLOCK_SIZE)]] if settings.runs_on == "cpu" else []
    if settings.is_demo:
        flags += [
            ["--served-model-name", "demo"],
            ["--tool-call-parser", "hermes"],
            ["--enable-auto-tool-choice"],
            ["--dtype", "float32" if settings.runs_on == "cpu" else "bfloat16"],
            ["--max-model-len", "2048"],
            # Left free, a model that has never seen JSON fills it with white space.
            ["--structured-outputs-config.backend", "xgrammar"],
            ["--structured-outputs-config.disable_any_whitespace", "true"],
            ["--enforce-eager"],  # a model of three million parameters: starting faster beats compiling
        ]
    return flags


def parse_vllm_args(settings: Settings, flags: Sequence[str], bundle: Bundle | None) -> Namespace:
    """vLLM's own flags. Those that the user gives win over those in the user's `--config` file, and both over our defaults."""
    parser = make_arg_parser(_Parser(prog="latentserve serve"))
    file, flags = split_file(flags)
    if file:
        flags = [*parser.load_config_file(str(file)), *flags]
    given = _given(flags)
    ours = ["--model", settings.model, "--host", settings.host, "--port", str(settings.port)]
    ours += ["--enable-prompt-embeds", "--enable-prompt-tokens-details"]
    for flag, *values in _defaults(settings):
        name = flag.replace("_", "-")
        if name not in given and name.split(".")[0] not in given:
            ours += [flag, *values]
    args = parser.parse_args([*ours, *flags])
    if args.model_tag:
        raise ConfigurationError(f"{args.model_tag} is no flag. A model is named with --model.")
    if args.enable_lora and not args.lora_target_modules:
        args.lora_target_modules = list(_ADAPTED)
    if args.served_model_name is None:
        args.served_model_name = [args.model]
    _refuse_unsupported(args)
    if settings.soft_thinking and args.speculative_config:
        raise ConfigurationError("--soft-thinking cannot be combined with --speculative-config: drafts are no mixtures.")
    if bundle and bundle.manifest.probe and bundle.manifest.probe.layers and not args.enforce_eager:
        raise ConfigurationError(
            "The bundle's probe reads earlier layers, which a compiled model does not give. Serve with --enforce-eager, or fit "
            "a probe without --layers."
        )
    validate_parsed_serve_args(args)
    return args


def _refuse_unsupported(args: Namespace) -> None:
    for name, single in (("pipeline_parallel_size", 1), ("data_parallel_size", 1), ("api_server_count", None)):
        value = getattr(args, name, single)
        if value not in (single, 1):
            raise ConfigurationError(
                f"--{name.replace('_', '-')} {value} is not supported: the latents of a request live in one worker's memory, "
                "beside the first and the last layer. Use tensor parallelism, or several servers behind a load balancer."
            )
    if args.enable_mm_embeds:
        raise ConfigurationError("--enable-mm-embeds is not supported: only this server writes embeddings. Remove it.")
    if adapted := {"embed_tokens", "lm_head"} & set(args.lora_target_modules or ()):
        raise ConfigurationError(
            f"--lora-target-modules {', '.join(sorted(adapted))} is not supported: latents need the base's own. "
            f"Name others, such as {' '.join(_ADAPTED)}."
        )
    if args.speculative_config and (method := args.speculative_config.get("method")) not in _DRAFTERS:
        raise ConfigurationError(
            f"--speculative-config with the method {method} is not supported: latents are not in what a draft model reads. "
            f"Use one that looks drafts up in the text: {', '.join(_DRAFTERS)}."
        )


def add_aliases(args: Namespace, modes: Sequence[str]) -> None:
    """Serve `name:mode` beside `name`, so that every client that can choose a model can choose a mode."""
    args.served_model_name = [*args.served_model_name, *(f"{args.served_model_name[0]}:{mode}" for mode in modes)]
    if taken := adapters(args) & set(args.served_model_name):
        raise ConfigurationError(
            f"--lora-modules {', '.join(sorted(taken))}: that is the base, or a mode of it. Choose another name."
        )


def adapters(args: Namespace) -> frozenset[str]:
    """Models that `--lora-modules` adds."""
    return frozenset(module.name for module in args.lora_modules or ())


async def start_helper(settings: Settings, args: Namespace) -> Helper | None:
    """The server that `--helper` names. Raises `ConfigurationError` where it is not there."""
    if settings.helper is None:
        return None
    key = settings.helper_key.get_secret_value() if settings.helper_key else None
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    helper = Helper(settings.helper, settings.helper_model, key, settings.help_rule, tokenizer)
    try:
        await helper.start()
    except (httpx.HTTPError, LookupError, ValueError) as error:
        raise ConfigurationError(f"--helper {settings.helper} cannot be asked for its model: {error}") from error
    return helper


_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "server.engine.worker.cpu.HybridCpuWorker",
    "vllm.v1.worker.gpu_worker.Worker": "server.engine.worker.cuda.HybridGpuWorker",
}


def hybrid_config(engine_args: AsyncEngineArgs, bundle: Bundle | None, probes: Sequence[ProbeFile] = ()) -> VllmConfig:
    """vLLM's configuration, with our scheduler (blocks with latents are private) and our worker (which loads the bundle and the
    operator's probes, if these fit: else it raises `RouterError`)."""
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    name = "HybridAsyncScheduler" if config.scheduler_config.async_scheduling else "HybridScheduler"
    config.scheduler_config.scheduler_cls = f"server.engine.worker.hooks.{name}"
    worker = config.parallel_config.worker_cls
    if worker not in _WORKERS:
        raise ConfigurationError(f"vLLM's worker here is {worker}: only those for CPUs and for NVIDIA's GPUs are supported.")
    config.parallel_config.worker_cls = _WORKERS[worker]
    _fit_reading(config, bundle.manifest if bundle else None, probes)
    with_networks(config, bundle, probes)
    return config


def _fit_reading(config: VllmConfig, manifest: Manifest | None, probes: Sequence[ProbeFile]) -> None:
    """Make room for what reading a question brings, or refuse what cannot be read."""
    for probe in probes:
        probe.check(config.model_config.get_hidden_size(), has_latents=bool(manifest and manifest.reasoning_net))
    reads_all = average(probes) or bool(manifest and manifest.num_states)
    if reads_all and config.kv_transfer_config is not None:
        raise ConfigurationError(
            "The bundle, or a probe, reads every position of a prompt, whose states no KV connector brings. Remove "
            "--kv-transfer-config."
        )
    most, ladder = config.model_config.max_logprobs, manifest.probe.ladder if manifest and manifest.probe else ()
    if 0 <= most < ENTROPY_LOGPROBS:
        raise ConfigurationError(
            f"--max-logprobs {most} is too few: the router reads {ENTROPY_LOGPROBS} log-probabilities of a token. Leave it out."
        )
    if most >= 0:  # a verdict travels in log-probabilities
        config.model_config.max_logprobs = max(most, Verdict.num_values(ladder, output_names(probes)))


@asynccontextmanager
async def start_engine(
    args: Namespace, settings: Settings, bundle: Bundle | None, base: Base, helper: Helper | None = None
) -> AsyncIterator[HybridEngine]:
    """The engine with the bundle installed in its worker; shut down on exit, as is the helper's client."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    probes = read_probes(settings.probe)
    config = hybrid_config(engine_args, bundle, probes)
    knows_chains = config.reasoning_config is not None and config.reasoning_config.enabled
    if not knows_chains and (settings.effort_budgets or settings.answer_reserve_tokens):
        raise ConfigurationError(
            "--effort-budgets and --answer-reserve-tokens need to know where a chain ends. Name the base's --reasoning-parser."
        )
    pace = None if engine_args.disable_log_stats else Pace()
    engine = HybridEngine.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
        stat_loggers=[pace] if pace else None,
    )
    engine.pace = pace
    try:
        await engine.install(
            bundle,
            base.layout.token_ids(base.tokenizer),
            settings.router(bundle.manifest if bundle else None),
            Metrics(),
            num_latents=settings.num_latents,
            shadow_share=settings.shadow_share,
            long_slots=settings.long_slots,
            exits=settings.exits,
            soft_thinking=settings.soft_thinking,
            helper=helper,
            max_thinking_tokens=settings.max_thinking_tokens,
            answer_reserve_tokens=settings.answer_reserve_tokens,
            probes=probes,
        )
        await engine.reset_mm_cache()
        yield engine
    finally:
        if helper is not None:
            await helper.close()
        if engine.output_handler is not None:
            engine.output_handler.cancel()  # it would take this end for an error
        await asyncio.to_thread(engine.shutdown, max(config.shutdown_timeout, _END_SECONDS))
