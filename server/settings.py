"""Our settings: `latentserve serve` flags, or environment variables with the prefix LATENTSERVE_. All else is vLLM's."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from router.policy import Mode

DEMO = Path(__file__).resolve().parent.parent / "reasoning_net" / "demo" / "weights"
DEMO_MODEL, DEMO_BUNDLE = DEMO / "base", DEMO / "bundle"


class Settings(BaseSettings):
    """One frozen object; what can be derived is derived."""

    model_config = SettingsConfigDict(env_prefix="LATENTSERVE_", env_ignore_empty=True, frozen=True, extra="forbid")

    model: str = Field(str(DEMO_MODEL), description="Checkpoint directory or Hugging Face id; the embedded demo by default.")
    bundle: str | None = Field(None, description="Bundle directory; the demo's own for the demo, else none.")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    device: Literal["cpu", "cuda"] = "cpu"
    default_mode: Mode = Field(Mode.AUTO, description="For requests that say nothing about their mode.")
    num_latent_tokens: int | None = Field(None, gt=0, description="Latents per question; the bundle's own number by default.")
    policy: str | None = Field(None, description="Of mode auto, by name; utility with a calibrated probe, else entropy.")
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
    entropy_threshold: float = Field(
        0.5,
        ge=0,
        description="Without a probe: no explicit thinking up to this entropy (nats) of a direct answer's first token.",
    )
    reasoning_content: bool = Field(False, description="Repeat thinking text as `reasoning_content`, its older name.")
    console: bool = Field(True, description="The console in the browser, at /.")
    kv_cache_gib: int = Field(1, gt=0, description="Memory for the KV cache on a CPU, in GiB.")

    @property
    def is_demo(self) -> bool:
        return Path(self.model).resolve() == DEMO_MODEL

    @property
    def bundle_directory(self) -> Path | None:
        if self.bundle:
            return Path(self.bundle)
        return DEMO_BUNDLE if self.is_demo else None
