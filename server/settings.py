"""Our settings: `latentserve serve` flags, environment variables with the prefix LATENTSERVE_, or lines of a `--config` file.

All else is vLLM's. Flags come before the environment, that before the file, and the file before the defaults.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import Parameter
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from reasoning_net.demo import DEMO_BUNDLE, DEMO_MODEL
from reasoning_net.gallery import local
from reasoning_net.manifest import Manifest
from reasoning_net.options import HOST, PORT, commas
from router.exits import Exits
from router.helper import HelpRule
from router.helper import Policy as HelpPolicy
from router.policies.named import Name
from router.policy import Mode, NumLatents
from router.router import Router
from server.http.efforts import parse_budgets

Device = Literal["cpu", "cuda"]
__all__ = ["DEMO_BUNDLE", "DEMO_MODEL", "OUR_FLAGS", "Settings", "split_file"]


class Settings(BaseSettings):
    """One frozen object; what can be derived is derived."""

    model_config = SettingsConfigDict(env_prefix="LATENTSERVE_", env_ignore_empty=True, frozen=True, extra="forbid")

    model: Annotated[str, Parameter(show_default=False)] = Field(
        str(DEMO_MODEL), description="Checkpoint directory or Hugging Face id; the embedded demo by default."
    )
    bundle: str | None = Field(
        None, description="Bundle directory, or owner/name[@revision] on the hub; the demo's own for the demo, else none."
    )
    host: str = Field(HOST, description="Address to listen on.")
    port: int = Field(PORT, ge=0, le=65535, description="Port to listen on.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the engine runs; auto: on the GPU that torch sees, else on the CPU."
    )
    default_mode: Mode = Field(Mode.AUTO, description="Of requests that name none.")
    thinking_prompt: str | None = Field(
        None, description="What chains in text start with; a base without think tags has no mode explicit without one."
    )
    num_latent_tokens: int | str | None = Field(
        None, description="Latents per question, the bundle's own number by default; auto: as few as suffice."
    )
    policy: Name | None = Field(None, description="Of mode auto; utility with a calibrated probe, else entropy.")
    exits: Exits = Field(
        "auto", description="Whose chains may end early: off; auto: mode auto's, by a calibrated rule; always: all."
    )
    helper: str | None = Field(None, description="A stronger model's server, which writes some steps of chains in text.")
    helper_model: str | None = Field(None, description="Its name there; the first by default.")
    helper_key: SecretStr | None = Field(None, description="Its API key.")
    helper_policy: HelpPolicy = Field("glimp", description="Which steps: glimp, by entropy; reflect, by words; random.")
    helper_share: float = Field(0.2, ge=0, le=1, description="Of the steps, at most.")
    soft_thinking: bool = Field(False, description="Experimental: offer mode soft, which thinks in mixtures of tokens.")
    probe: Annotated[tuple[Path, ...], NoDecode, commas(Path)] = Field(
        (), description="Files of probes of your own, whose scores stand in `route.scores.probes`."
    )
    operator_key: SecretStr | None = Field(None, description="Who sends it may switch the router while the server runs.")
    decision_log: Path | None = Field(None, description="File for one JSON line a routed request.")
    decision_log_mib: int = Field(64, gt=0, description="Size at which the decision log is rotated; four old files are kept.")
    log_questions: bool = Field(False, description="Write the conversations into the decision log, too.")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: the loggers' lines are objects, and each routed request has one."
    )
    shadow_share: float = Field(
        0.0, ge=0, le=1, description="Share of auto's answers that are compared with another mode's in idle time."
    )
    router_file: str | None = Field(
        None, description="Policy and calibrated point of all replicas: a JSON file or http(s) URL that each of them watches."
    )
    router_file_seconds: float = Field(10.0, gt=0, description="Between two looks at the router file.")
    entropy_threshold: float = Field(
        0.5,
        ge=0,
        description="Without a probe: no explicit thinking up to this entropy (nats) of a direct answer's first token.",
    )
    reasoning_content: bool = Field(False, description="Repeat thinking text as `reasoning_content`, its older name.")
    console: bool = Field(True, description="The console in the browser, at /.")
    api_keys_file: Path | None = Field(
        None, description="YAML file of clients' keys, hashed, with their limits; read again when it changes."
    )
    quota_store: SecretStr | None = Field(
        None, description="Redis in which limits of keys are counted for all replicas: redis://HOST:PORT/DATABASE."
    )
    max_thinking_tokens: int | None = Field(None, gt=0, description="Of any answer; after the cut the model answers.")
    effort_budgets: str | None = Field(
        None, description="Thinking tokens by reasoning effort, such as low=256,medium=1024; of efforts not named, no limit."
    )
    answer_reserve_tokens: int | None = Field(
        None,
        gt=0,
        description="Of a reply's max_tokens, that its chain leaves to the answer; at most half of them.",
    )
    long_slots: int | None = Field(
        None, gt=0, description="Chains that are not predicted to be ordinary run at once; half of --max-num-seqs by default."
    )
    max_body_mib: int = Field(16, gt=0, description="Larger bodies are refused.")
    client_timeout_seconds: float = Field(
        30.0, gt=0, description="That a client may take to send its headers, or its body, or to read what was sent."
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="That an answer may take; a request may ask for less with its field timeout_seconds."
    )
    drain_seconds: float = Field(30.0, ge=0, description="That running requests get to end after SIGTERM.")
    kv_cache_gib: int = Field(1, gt=0, description="Memory for the KV cache on a CPU, in GiB.")

    @field_validator("num_latent_tokens")
    @classmethod
    def _above_zero_or_auto(cls, value: int | str | None) -> NumLatents | None:
        if value is None or value == "auto":
            return cast("NumLatents | None", value)
        if (number := int(value) if str(value).isdigit() else 0) > 0:
            return number
        raise ValueError("must be greater than 0, or auto")

    @field_validator("probe", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("effort_budgets")
    @classmethod
    def _of_known_efforts(cls, value: str | None) -> str | None:
        parse_budgets(value)
        return value

    @property
    def budgets_by_effort(self) -> dict[str, int]:
        return parse_budgets(self.effort_budgets)

    @property
    def num_latents(self) -> NumLatents | None:
        return cast("NumLatents | None", self.num_latent_tokens)

    @property
    def is_demo(self) -> bool:
        return Path(self.model).resolve() == DEMO_MODEL

    @cached_property
    def runs_on(self) -> Device:
        """The device, found where it was not named. Loads torch."""
        if self.device != "auto":
            return self.device
        from reasoning_net.precision import found_device

        return found_device()

    @cached_property
    def bundle_directory(self) -> Path | None:
        """Raises `BundleError` for one that is on the hub and cannot be had, or is not as it was signed."""
        if self.bundle:
            return local(self.bundle)
        return DEMO_BUNDLE if self.is_demo else None

    def completed(self, file: Mapping[str, Any]) -> "Settings":
        """With the lines of a `--config` file that are ours, where neither a flag nor the environment says otherwise."""
        ours = {name: value for key, value in file.items() if (name := key.replace("-", "_")) in type(self).model_fields}
        return Settings(**(ours | self.model_dump(exclude_unset=True)))

    @property
    def help_rule(self) -> HelpRule:
        return HelpRule(policy=self.helper_policy, share=self.helper_share)

    def router(self, manifest: Manifest | None) -> Router:
        """Raises `RouterError` for a policy that this bundle cannot have."""
        return Router(
            manifest.calibration if manifest else None,
            policy=self.policy,
            entropy_threshold=self.entropy_threshold,
            has_entropy=manifest is None or manifest.probe is None,
        )


OUR_FLAGS = frozenset(f"--{name.replace('_', '-')}" for name in Settings.model_fields)


def split_file(flags: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that `--config` names, and the other flags."""
    rest = list(flags)
    for index, flag in enumerate(flags):
        name, has_value, value = flag.partition("=")
        if name == "--config":
            del rest[index : index + (1 if has_value else 2)]
            return Path(value if has_value else "".join(flags[index + 1 : index + 2])), rest
    return None, rest
