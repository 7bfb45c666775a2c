"""Start vLLM with our engine: its flags, and the defaults that hybrid reasoning needs."""

from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from transformers import AutoTokenizer
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from reasoning_net.bundle import Bundle
from reasoning_net.layout import Layout
from router.router import Router
from server.engine.errors import ConfigurationError
from server.engine.seam import HybridEngine
from server.observe.metrics import Metrics
from server.settings import Settings

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
except ModuleNotFoundError:  # vLLM 0.33 moved it
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args

CPU_BLOCK_SIZE = 32  # the smallest that vLLM's CPU attention takes: short questions fill whole blocks


def parse_vllm_args(settings: Settings, flags: Sequence[str], bundle: Bundle | None) -> Namespace:
    """vLLM's own flags on top of our defaults; a flag that the user gives wins."""
    defaults = ["--model", settings.model, "--host", settings.host, "--port", str(settings.port)]
    defaults += ["--enable-prompt-embeds", "--enable-prompt-tokens-details"]
    given = {flag.split("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}

    def default(flag: str, *values: str) -> None:
        if flag not in given:
            defaults.extend([flag, *values])

    default("--reasoning-parser", bundle.manifest.reasoning_parser if bundle else "qwen3")
    if settings.device == "cpu":
        default("--block-size", str(CPU_BLOCK_SIZE))
    if settings.is_demo:
        default("--served-model-name", "demo")
        default("--tool-call-parser", "hermes")
        default("--enable-auto-tool-choice")
        default("--dtype", "float32" if settings.device == "cpu" else "bfloat16")
        default("--max-model-len", "2048")
        # Left free, a model that has never seen JSON fills it with white space.
        default("--structured-outputs-config.backend", "xgrammar")
        default("--structured-outputs-config.disable_any_whitespace", "true")
        default("--enforce-eager")  # a model of three million parameters: starting faster beats compiling
    parser = make_arg_parser(FlexibleArgumentParser(prog="latentserve serve"))
    args = parser.parse_args([*defaults, *flags])
    if settings.operator_key and args.api_key:
        args.api_key.append(settings.operator_key.get_secret_value())  # an operator is a client, too
    args.worker_extension_cls = "server.engine.worker.HybridWorker"
    if args.served_model_name is None:
        args.served_model_name = [args.model]
    _refuse_unsupported(args)
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
    if getattr(args, "speculative_config", None):
        raise ConfigurationError("Speculative decoding is not supported together with latents. Remove --speculative-config.")


def add_aliases(args: Namespace, modes: Sequence[str]) -> None:
    """Serve `name:mode` beside `name`, so that every client that can choose a model can choose a mode."""
    args.served_model_name = [*args.served_model_name, *(f"{args.served_model_name[0]}:{mode}" for mode in modes)]


def hybrid_config(engine_args: AsyncEngineArgs) -> VllmConfig:
    """vLLM's configuration, with our scheduler: blocks that hold latents are private."""
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    name = "HybridAsyncScheduler" if config.scheduler_config.async_scheduling else "HybridScheduler"
    config.scheduler_config.scheduler_cls = f"server.engine.worker.hooks.{name}"
    return config


def router_of(bundle: Bundle | None, settings: Settings) -> Router:
    """Raises `RouterError` for a policy that this bundle cannot have."""
    manifest = bundle.manifest if bundle else None
    return Router(
        manifest.calibration if manifest else None,
        policy=settings.policy,
        entropy_threshold=settings.entropy_threshold,
        has_entropy=manifest is None or (manifest.probe is None and manifest.reasoning_net is None),
    )


@asynccontextmanager
async def start_engine(
    args: Namespace, settings: Settings, bundle: Bundle | None, metrics: Metrics
) -> AsyncIterator[HybridEngine]:
    """The engine with the bundle installed in its worker; shut down on exit."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = hybrid_config(engine_args)
    engine = HybridEngine.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )
    try:
        layout = bundle.manifest.layout if bundle else Layout()
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
        await engine.install(
            bundle,
            layout.token_ids(tokenizer),
            router_of(bundle, settings),
            metrics,
            num_latents=settings.num_latent_tokens,
            shadow_share=settings.shadow_share,
        )
        await engine.reset_mm_cache()
        yield engine
    finally:
        engine.shutdown(timeout=config.shutdown_timeout)
