import hashlib
import os
from pathlib import Path

import pytest

from server.engine.errors import ConfigurationError
from server.http.keys import Key, KeyRing, read_keys, salt_of


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write(path: Path, *lines: str) -> None:
    """With another time than before, whatever the clock of the file system resolves."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text("\n".join(("keys:", *lines)) + "\n")
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_keys_are_rotated_while_the_server_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.yaml"
    write(file, f"- {{name: alice, sha256: {digest('old')}, requests_per_minute: 5}}")
    ring = KeyRing(["plain"], file)
    assert ring.find("old").requests_per_minute == 5
    assert ring.find("plain").trusted
    write(file, f"- {{name: alice, sha256: {digest('new')}}}")
    assert ring.find("old") is None
    assert ring.find("new").name == "alice"
    write(file, "- {name: alice}")
    assert ring.find("new").name == "alice", "a broken file locks nobody out"
    file.unlink()
    assert ring.find("new").name == "alice"
    assert ring.find("") is None
    assert ring.find("\udcff" * 10) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("- {name: alice}", "sha256"),
        ("- {name: alice, sha256: abc}", "sha256"),
        (f"- {{name: a b, sha256: {'a' * 64}}}", "name"),
        (f"- {{name: alice, sha256: {'a' * 64}, request_per_minute: 5}}", "request_per_minute"),
        (f"- {{name: alice, sha256: {'a' * 64}, requests_per_minute: 0}}", "requests_per_minute"),
        (f"- {{name: a, sha256: {'a' * 64}}}\n- {{name: a, sha256: {'b' * 64}}}", "names a key twice"),
        ("- [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, line: str, says: str) -> None:
    write(tmp_path / "keys.yaml", line)
    with pytest.raises(ConfigurationError, match=says):
        read_keys(tmp_path / "keys.yaml")


def test_no_salt_of_a_client_is_another_keys(tmp_path: Path) -> None:
    alice, bob = Key(name="alice", sha256="0" * 64), Key(name="bob", sha256="1" * 64)
    assert salt_of(alice, None) == salt_of(alice, None)
    salts = {salt_of(key, salt) for key in (alice, bob) for salt in (None, "x", salt_of(alice, None))}
    assert len(salts) == 6
