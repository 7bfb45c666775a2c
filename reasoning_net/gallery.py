"""Where bundles are kept for others: directories, and repositories of the hub. What is pushed is signed; only that is read.

    owner/name[@revision]      a repository of the hub, where there is no such directory
    file:/gallery/owner/name   a directory, as is any path; with @fingerprint it must be that very bundle

The signature holds the SHA-256 of every file and the bundle's fingerprint. It tells a bundle that is cut short, or was changed
on its way, from the one that was pushed. It does not tell who pushed it: pin a fingerprint, or a revision, for that.
Needs no torch: a server reads a bundle's manifest first.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from reasoning_net.errors import BundleError, sentence

SIGNATURE, CARD = "signature.json", "README.md"
_PARTS = ("bundle.json", "*.safetensors", "*.png")  # of a bundle: what is signed
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SignedFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class Signature(BaseModel):
    """`signature.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    files: dict[str, SignedFile]


def local(name: str | Path) -> Path:
    """The directory of a bundle: that one, or a copy of the hub's in its cache, which is downloaded once.

    Raises `BundleError` for one that is nowhere, or is not as it was signed.
    """
    text = str(name).removeprefix("file:")
    bare, _, revision = text.rpartition("@") if "@" in Path(text).name else (text, "", "")
    path = Path(text).expanduser()
    if path.exists():
        _verify(path)
        return path
    if revision and (pinned := Path(bare).expanduser()).is_dir():
        _check_fingerprint(pinned, revision)
        _verify(pinned)
        return pinned
    if str(name) != text or not is_repository(bare):
        return path  # whoever reads its manifest says that there is none
    directory = _download(bare, revision or None)
    if not (directory / SIGNATURE).is_file():
        raise BundleError(f"{name} on the hub has no {SIGNATURE}: it was not pushed with `latentserve bundle push`.")
    _verify(directory)
    return directory


def is_repository(name: str) -> bool:
    """Whether it is written as owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def in_hub_cache(directory: Path) -> bool:
    """Whether what lies there belongs to the hub's cache, whose files several revisions share."""
    from huggingface_hub import constants

    return directory.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())


def fingerprint_of(directory: Path) -> str:
    """A short hash of a whole bundle."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(path.read_bytes())
    digest.update((directory / "bundle.json").read_bytes())
    return digest.hexdigest()[:16]


def sign(directory: Path) -> Signature:
    """Write the signature of what is there."""
    files = {path.name: SignedFile(num_bytes=path.stat().st_size, sha256=_sha256(path)) for path in parts_of(directory)}
    signature = Signature(fingerprint=fingerprint_of(directory), files=files)
    (directory / SIGNATURE).write_text(signature.model_dump_json(indent=2) + "\n")
    return signature


def parts_of(directory: Path) -> Iterator[Path]:
    """The files of a bundle, without card and signature."""
    return (path for pattern in _PARTS for path in sorted(directory.glob(pattern)))


def push_directory(staged: Path, target: Path) -> None:
    """Copy a signed bundle into a gallery: whoever reads there meanwhile sees the old one or the new one.

    Raises `BundleError` where something else is.
    """
    if target.exists() and not (target / "bundle.json").is_file() and (target.is_file() or any(target.iterdir())):
        raise BundleError(f"{target} holds something else than a bundle. Name another target.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as beside:
        new, old = Path(beside) / "new", Path(beside) / "old"
        shutil.copytree(staged, new)
        if target.exists():
            target.rename(old)
        new.rename(target)


def push_hub(staged: Path, repository: str, revision: str | None, *, private: bool) -> str:
    """Upload a signed bundle to the hub, with the token of the environment; where it is. Raises `BundleError`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client it uses

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository,
                folder_path=staged,
                revision=revision,
                commit_message="A bundle of latentserve",
                delete_patterns=list(_PARTS),  # parts of a former bundle that this one does not have
            )
        )
    except (HTTPError, OSError, ValueError) as error:
        raise BundleError(
            f"{repository} cannot be pushed to the hub: {_first_line(error)} A token that may write belongs into HF_TOKEN (or "
            "`hf auth login`). A directory is written as ./owner/name or file:/gallery/owner/name."
        ) from error


def pull(source: str, directory: Path, fingerprint: str | None) -> Path:
    """Copy a bundle to a directory of one's own, where it may be changed. Raises `BundleError`."""
    found = local(source)
    if not (found / "bundle.json").is_file():
        raise BundleError(f"there is no bundle in {source}: it has no bundle.json.")
    if fingerprint:
        _check_fingerprint(found, fingerprint)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BundleError(f"{directory} is not empty. Name another directory, or remove it.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as beside:
        new = Path(beside) / "new"
        new.mkdir()
        for path in (*parts_of(found), found / CARD, found / SIGNATURE):
            if path.is_file():
                shutil.copyfile(path, new / path.name)  # follows the links of the hub's cache
        if directory.exists():
            directory.rmdir()
        new.rename(directory)
    _verify(directory)
    return directory


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    nowhere = f"There is no directory {repository} here"
    at = f" at {revision}" if revision else ""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*_PARTS, CARD, SIGNATURE]))
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise BundleError(
            f"{nowhere}, the hub's cache has no bundle {repository}{at}, and the hub cannot be reached (or HF_HUB_OFFLINE is "
            f"set). Pull it where there is a network (`latentserve bundle pull {repository} DIR`), and name that directory."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise BundleError(f"The bundle {repository} on the hub has no revision {revision}.") from error
    except hub.GatedRepoError as error:
        raise BundleError(f"{repository} on the hub asks for consent first: give it on its page, and set HF_TOKEN.") from error
    except hub.RepositoryNotFoundError as error:
        raise BundleError(
            f"{nowhere}, and no bundle {repository} on the hub that you may read. A private one needs HF_TOKEN."
        ) from error
    except (hub.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise BundleError(f"{nowhere}, and {repository}{at} cannot be had from the hub: {_first_line(error)}") from error


def _verify(directory: Path) -> None:
    """Raise `BundleError` for a signed bundle that is not as it was signed."""
    path = directory / SIGNATURE
    if not path.is_file():
        return
    signature, again = _read(path), "Pull it again, or ask whoever pushed it."
    for name, signed in signature.files.items():
        part = directory / name
        if part.name != name or not part.is_file():
            raise BundleError(f"{directory} has no {name}, which its {SIGNATURE} names. {again}")
        if (found := part.stat().st_size) != signed.num_bytes:
            raise BundleError(f"{part} has {found:,} bytes; {signed.num_bytes:,} were signed. {again}")
        if _sha256(part) != signed.sha256:
            raise BundleError(f"{part} is not what was signed: its SHA-256 differs. {again}")
    if fingerprint_of(directory) != signature.fingerprint:
        raise BundleError(f"{directory} has parts that its {SIGNATURE} does not name. {again}")


def _check_fingerprint(directory: Path, wanted: str) -> None:
    if not (directory / "bundle.json").is_file() or (found := fingerprint_of(directory)) == wanted:
        return
    raise BundleError(f"{directory} has the fingerprint {found}, not {wanted}: it is another bundle than the one you name.")


def _read(path: Path) -> Signature:
    try:
        return Signature.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path} cannot be used: {sentence(error)}.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return f"{text}."
