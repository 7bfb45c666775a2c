"""A hub on this machine: as much of its protocol as the real client needs to create, upload, and take a snapshot."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """Repositories by name, with the files of their one branch."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)

    def commit_of(self, name: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def reply(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def read(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self) -> None:
        body = self.read()
        path = self.path.split("?")[0]
        for pattern, action in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                action(self, body, **found.groupdict())
                return
        self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.hub.repositories.setdefault(name, {})
        self.hub.private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
        self.reply(200, {"url": f"{self.address}/{name}"})

    def preupload(self, body: bytes, name: str) -> None:
        files = json.loads(body)["files"]
        binary = (".safetensors", ".png")
        modes = {one["path"]: "lfs" if one["path"].endswith(binary) else "regular" for one in files}
        self.reply(200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def batch(self, body: bytes, name: str) -> None:
        asked = json.loads(body)["objects"]
        objects = [one | {"actions": {"upload": {"href": f"{self.address}/blob/{one['oid']}"}}} for one in asked]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self.reply(200)

    def commit(self, body: bytes, name: str) -> None:
        files = self.hub.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.hub.commit_of(name)
        self.reply(
            200, {"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}", "hookOutput": ""}
        )

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        if (files := self.hub.repositories.get(name)) is None:
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif revision not in ("main", self.hub.commit_of(name)):
            self.reply(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        else:
            listed = [{"rfilename": path} for path in files]
            self.reply(
                200, {"id": name, "sha": self.hub.commit_of(name), "siblings": listed, "private": self.hub.private[name]}
            )

    def tree(self, body: bytes, name: str, revision: str) -> None:
        files = self.hub.repositories[name].items()
        self.reply(200, [{"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for p, b in files])

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        content = self.hub.repositories[name][file]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.reply(200, content, ETag=tag, X_Repo_Commit=self.hub.commit_of(name))

    def yaml(self, body: bytes) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    @property
    def address(self) -> str:
        return "http://{}:{}".format(*self.server.server_address)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{_NAME}/preupload/\w+", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /blob/(?P<oid>\w+)", _Handler.put),
    (r"POST /api/validate-yaml", _Handler.yaml),
    (rf"POST /api/models/{_NAME}/commit/\w+", _Handler.commit),
    (rf"GET /api/models/{_NAME}", _Handler.info),
    (rf"GET /api/models/{_NAME}/revision/(?P<revision>[\w.-]+)", _Handler.info),
    (rf"GET /api/models/{_NAME}/tree/(?P<revision>[\w.-]+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(?P<revision>[\w.-]+)/(?P<file>[\w.-]+)", _Handler.resolve),
]


@contextmanager
def running_hub() -> Iterator[tuple[str, Hub]]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "http://{}:{}".format(*server.server_address), hub
    finally:
        server.shutdown()
        server.server_close()
