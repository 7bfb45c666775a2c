"""Bundles for others: sign one and push it, or pull one to change it.

latentserve bundle push runs/bundle owner/name
latentserve bundle pull owner/name@main runs/theirs
"""

import logging
import shutil
import tempfile
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from reasoning_net import gallery
from reasoning_net.bundle import Bundle
from reasoning_net.card import fingerprint_in, model_card

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushConfig:
    bundle: Path
    """Bundle directory."""
    target: str
    """owner/name on the hub, or a directory: ./owner/name, file:/gallery/owner/name."""
    _: KW_ONLY
    base: str | None = None
    """The base's id on the hub, for the card."""
    license: str | None = None
    """The license's id, such as apache-2.0, for the card."""
    private: bool = True
    """A new repository of the hub is seen by its owner alone."""
    revision: str | None = None
    """Branch of the hub's repository; made where there is none."""


@dataclass(frozen=True, slots=True)
class PullConfig:
    source: str
    """owner/name[@revision] on the hub, or a directory."""
    directory: Path
    """Where it goes: a new directory."""
    _: KW_ONLY
    fingerprint: str | None = None
    """That it must have."""


def push(config: PushConfig) -> dict[str, Any]:
    """Sign, with a card where the bundle has none of its own."""
    bundle = Bundle.load(config.bundle)
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "bundle"
        staged.mkdir()
        for path in gallery.parts_of(bundle.directory):
            shutil.copyfile(path, staged / path.name)
        signature = gallery.sign(staged)
        if (card := bundle.directory / gallery.CARD).is_file():
            shutil.copyfile(card, staged / gallery.CARD)
            named = fingerprint_in(card.read_text(encoding="utf-8"))
            if named not in (None, signature.fingerprint):
                logger.warning("%s is the card of another bundle (%s): remove it, and one of this is written.", card, named)
        else:
            plots = [path.name for path in sorted(staged.glob("*.png"))]
            text = model_card(
                bundle.manifest, config.target.removeprefix("file:"), base=config.base, license_id=config.license,
                fingerprint=signature.fingerprint, plots=plots,
            )  # fmt: skip
            (staged / gallery.CARD).write_text(text)
        where = config.target.removeprefix("file:")
        if where == config.target and gallery.is_repository(where):
            where = gallery.push_hub(staged, where, config.revision, private=config.private)
        else:
            gallery.push_directory(staged, Path(where).expanduser())
    return {"pushed to": where, "fingerprint": signature.fingerprint, "files": sorted(signature.files)}


def pull(config: PullConfig) -> dict[str, Any]:
    """Copy, and read it as a server would."""
    bundle = Bundle.load(gallery.pull(config.source, config.directory, config.fingerprint))
    return {"bundle": str(bundle.directory), "fingerprint": bundle.fingerprint()}
