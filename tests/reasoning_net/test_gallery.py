"""Bundles for others: through directories, and through the hub's real client against a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasoning_net import gallery
from reasoning_net.bundle import Bundle, BundleError
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.stages.push import PullConfig, PushConfig, pull, push
from tests.reasoning_net.hub import running_hub

OURS = Bundle.load(DEMO_BUNDLE).fingerprint()


@pytest.fixture
def pushed(tmp_path: Path) -> Path:
    target = tmp_path / "gallery" / "me" / "demo"
    assert push(PushConfig(DEMO_BUNDLE, f"file:{target}", base="me/base"))["fingerprint"] == OURS
    return target


def test_a_directory_gives_what_was_pushed(pushed: Path, tmp_path: Path) -> None:
    assert pull(PullConfig(f"file:{pushed}", tmp_path / "mine", fingerprint=OURS))["fingerprint"] == OURS
    assert Bundle.load(f"{pushed}@{OURS}").manifest == Bundle.load(DEMO_BUNDLE).manifest
    assert f"| Fingerprint | `{OURS}` |" in (tmp_path / "mine" / "README.md").read_text()
    with pytest.raises(BundleError, match=f"has the fingerprint {OURS}, not other"):
        Bundle.load(f"{pushed}@other")
    with pytest.raises(BundleError, match="not empty"):
        pull(PullConfig(str(pushed), tmp_path / "mine"))
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        push(PushConfig(DEMO_BUNDLE, f"file:{tmp_path}"))


def test_a_card_of_ones_own_stays_and_a_second_push_replaces_the_first(
    pushed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pull(PullConfig(str(pushed), tmp_path / "mine"))
    Bundle.load(tmp_path / "mine").update(trained_on="other questions")
    push(PushConfig(tmp_path / "mine", str(pushed)))
    assert f"is the card of another bundle ({OURS})" in caplog.text
    (tmp_path / "mine" / "README.md").write_text("# Mine")
    (tmp_path / "mine" / "reliability.png").unlink()
    changed = Bundle(tmp_path / "mine", Bundle.load(DEMO_BUNDLE).manifest).update(trained_on="others")
    assert push(PushConfig(tmp_path / "mine", str(pushed)))["fingerprint"] == changed.fingerprint() != OURS
    assert (pushed / "README.md").read_text() == "# Mine"
    assert not (pushed / "reliability.png").exists()
    assert [path.name for path in pushed.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize("change", ["cut", "altered", "missing", "added", "no signature"])
def test_what_is_not_as_it_was_signed(pushed: Path, tmp_path: Path, change: str) -> None:
    part = pushed / "probe.safetensors"
    content = part.read_bytes()
    match change:
        case "cut":
            part.write_bytes(content[:-8])
            said = "102,514 bytes; 102,522 were signed"
        case "altered":
            part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            said = "its SHA-256 differs"
        case "missing":
            part.unlink()
            said = "has no probe.safetensors"
        case "added":
            shutil.copy(part, pushed / "more.safetensors")
            said = "has parts that its signature.json does not name"
        case _:
            (pushed / "signature.json").write_text("{}")
            said = "signature.json cannot be used"
    with pytest.raises(BundleError, match=said):
        Bundle.load(pushed)
    with pytest.raises(BundleError, match=said):
        pull(PullConfig(str(pushed), tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_a_signature_names_files_of_the_bundle_only(pushed: Path) -> None:
    signature = json.loads((pushed / "signature.json").read_text())
    signature["files"]["../../secret"] = {"num_bytes": 1, "sha256": "0"}
    (pushed / "signature.json").write_text(json.dumps(signature))
    (pushed.parents[1] / "secret").write_text("x")
    with pytest.raises(BundleError, match=r"has no \.\./\.\./secret"):
        Bundle.load(pushed)


def test_a_bundle_that_is_changed_is_signed_no_more(pushed: Path, tmp_path: Path) -> None:
    pull(PullConfig(str(pushed), tmp_path / "mine"))
    Bundle.load(tmp_path / "mine").update(trained_on="others")
    assert Bundle.load(tmp_path / "mine").manifest.trained_on == "others"


_THROUGH_THE_HUB = """
import json, sys
from pathlib import Path
from reasoning_net import gallery
from reasoning_net.errors import BundleError

def said(do, *arguments, **options):
    try:
        return str(do(*arguments, **options))
    except BundleError as error:
        return str(error)

print(json.dumps([said(getattr(gallery, name), *arguments, **options) for name, arguments, options in json.loads(sys.argv[1])]))
"""


def through_the_hub(url: str, home: Path, *calls: tuple[str, list[Any], dict[str, Any]]) -> list[str]:
    """What `gallery` says with that hub; in a process of its own, since the client reads its address when it is imported."""
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_token",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", _THROUGH_THE_HUB, json.dumps(calls)]
    done = subprocess.run(
        command, env=os.environ | settings | {"HF_HUB_OFFLINE": "0"}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_hub_gives_what_was_pushed(pushed: Path, tmp_path: Path) -> None:
    get = lambda name: ("local", [name], {})  # noqa: E731
    home = tmp_path / "home"
    with running_hub() as (url, hub):
        signed = ("push_hub", [str(pushed), "me/demo", None], {"private": True})
        _, found, nobody, unborn = through_the_hub(url, home, signed, *map(get, ("me/demo", "me/none", "me/demo@v9")))
        assert hub.private == {"me/demo": True}
        assert hub.repositories["me/demo"]["README.md"].startswith(b"---\nbase_model: me/base")
        assert gallery.fingerprint_of(Path(found)) == OURS
        assert "no bundle me/none on the hub that you may read" in nobody
        assert "has no revision v9" in unborn
        pinned = Path(found).name
        hub.repositories["me/demo"]["bundle.json"] += b" "
        hub.repositories["me/bare"] = {"bundle.json": b"{}"}
        hub.private["me/bare"] = False
        altered, unsigned = through_the_hub(url, home, get("me/demo"), get("me/bare"))
        assert "were signed" in altered
        assert "was not pushed with `latentserve bundle push`" in unsigned
    offline, missing, refused = through_the_hub(
        url, home, get(f"me/demo@{pinned}"), get("me/other"), ("push_hub", [str(pushed), "me/demo", None], {"private": True})
    )
    assert offline == found
    assert "the hub cannot be reached" in missing
    assert "cannot be pushed to the hub" in refused
    assert "HF_TOKEN" in refused


def test_what_lies_in_the_hubs_cache_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DEMO_BUNDLE, tmp_path / "hub" / "snapshot")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BundleError, match="latentserve bundle pull"):
        Bundle.load(tmp_path / "hub" / "snapshot").update(trained_on="others")


def test_names_of_repositories() -> None:
    assert gallery.is_repository("me/demo-1.7B")
    assert not any(map(gallery.is_repository, ("demo", "./me/demo", "/me/demo", "a/b/c", "../demo", "~/demo")))
    with pytest.raises(BundleError, match="There is no directory runs/none here, the hub's cache has no bundle"):
        gallery.local("runs/none")
    assert gallery.local("file:me/none") == Path("me/none")
