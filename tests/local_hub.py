"""A Hub of our own on 127.0.0.1: enough of the protocol for the real client to push and load.

    with LocalHub() as hub:
        hub.commit("lab/model", {"config.json": b"..."})
        hub.fail("GET", r"model\\.safetensors", "cut")          # the next such request goes wrong
        subprocess.run(..., env=hub.env(home, token=hub.token))

Endpoints, headers and error codes are those that huggingface_hub 2.x was seen to use.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Files = dict[str, bytes]


@dataclass
class Commit:
    sha: str
    message: str
    files: Files


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> sha

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def add(self, files: Files, message: str, ref: str = "main") -> str:
        seed = f"{len(self.commits)} {message} {sorted(files)} {time.time_ns()}"
        sha = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = Commit(sha, message, files)
        self.refs[ref] = sha
        return sha


@dataclass
class Fault:
    method: str
    path: re.Pattern[str]
    action: str | int
    left: int


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".png", ".bin"))


def git_sha1(content: bytes) -> str:
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class LocalHub(ThreadingHTTPServer):
    daemon_threads = True
    token = "hf_may_write_to_lab"
    read_token = "hf_may_read_lab"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}  # LFS objects by sha256
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.stopped = threading.Event()
        self.mutex = threading.Lock()

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that a fault cut are no news."""

    def commit(self, repo: str, files: Files, *, private: bool = False, gated: bool = False) -> str:
        """A commit to `main` with these files in place of the old; makes the repo if missing."""
        found = self.repos.setdefault(repo, Repo(private, gated))
        return found.add(files, "by the test")

    def head(self, repo: str, revision: str = "main") -> str | None:
        return self.repos[repo].refs.get(revision)

    def files(self, repo: str, revision: str = "main") -> Files:
        found = self.repos[repo].at(revision)
        return dict(found.files) if found else {}

    def fail(self, method: str, path: str, action: str | int, times: int = 1) -> None:
        """What happens to the next such requests: an HTTP status, or

        drop: no answer; cut: half the body, then the end; flip: one bit of the body is another;
        html: a page in place of the answer; stall: no answer until the server stops; lost: done,
        but the answer never arrives.
        """
        self.faults.append(Fault(method, re.compile(path), action, times))

    def fault(self, method: str, path: str) -> str | int | None:
        with self.mutex:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.left and fault.method == method and fault.path.search(path):
                    fault.left -= 1
                    return fault.action
        return None

    def env(self, home: Path, *, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """The environment of a client process that knows only this Hub and this cache."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        plain |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # whether it is used is not the server's to say
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "OMP_NUM_THREADS": "1",
        }
        return (
            plain
            | ({"HF_TOKEN": token} if token else {})
            | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        )


class Answer(Exception):
    """An answer that is an error, with the Hub's headers."""

    def __init__(self, status: int, code: str = "", message: str = "", **body: Any) -> None:
        super().__init__(status)
        self.status, self.code, self.message, self.body = status, code, message, body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    # --- from a request to an answer ---

    def serve(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.body = self.read_body()
        self.action = self.server.fault(self.command, path)
        if self.action == "drop":
            self.close_connection = True
            return
        if self.action == "stall":
            self.server.stopped.wait()
            return
        if isinstance(self.action, int):
            self.error(Answer(self.action, message="a fault of the test"))
            return
        if self.action == "html":
            self.send(
                200, b"<html>Please log in to this hotel</html>", {"Content-Type": "text/html"}
            )
            return
        try:
            self.route(path)
        except Answer as answer:
            self.error(answer)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self.action == "lost":
            self.close_connection = True
            return
        if self.action == "flip" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.action == "cut" else body)
        if self.action == "cut":
            self.close_connection = True

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send(status, body, {"Content-Type": "application/json"} | (headers or {}))

    def error(self, answer: Answer) -> None:
        headers = {"X-Error-Message": answer.message or "an error"}
        if answer.code:
            headers["X-Error-Code"] = answer.code
        if answer.status == 429:
            headers["Retry-After"] = "0"
        self.json({"error": answer.message, **answer.body}, answer.status, headers)

    # --- who may do what ---

    def may(self, name: str, *, write: bool = False) -> Repo:
        """The repo, if it is there for whoever asks; the Hub does not tell missing from private."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (self.server.token, self.server.read_token):
            raise Answer(401, message="Invalid credentials in Authorization header")
        found = self.server.repos.get(name)
        if found is None or (found.private and not token):
            raise Answer(404 if token else 401, "RepoNotFound", "Repository not found")
        if found.gated and not token:
            raise Answer(403, "GatedRepo", "Access to this model is restricted")
        if write and (token != self.server.token or not name.startswith("lab/")):
            raise Answer(403, message="You have no right to write here")
        return found

    def at(self, repo: Repo, revision: str) -> Commit:
        found = repo.at(revision)
        if found is None:
            raise Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # --- the endpoints ---

    def route(self, path: str) -> None:
        for method, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                handle(self, *match.groups())
                return
        raise Answer(404, message=f"no such page: {self.command} {path}")

    def whoami(self) -> None:
        self.json({"type": "user", "name": "tester", "orgs": [{"name": "lab"}]})

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        if name in self.server.repos:
            raise Answer(409, message="exists", url=f"{self.server.url}/{name}")
        self.server.repos[name] = Repo(private=wanted.get("visibility") == "private")
        try:
            self.may(name, write=True)
        except Answer:
            del self.server.repos[name]
            raise
        self.server.repos[name].add({}, "initial commit")
        self.json({"url": f"{self.server.url}/{name}", "name": name})

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self.may(name)
        commit = self.at(repo, revision or "main")
        self.json(self.described(name, repo, commit, "blobs" in self.query))

    def described(self, name: str, repo: Repo, commit: Commit, blobs: bool) -> dict[str, Any]:
        card = commit.files.get("README.md", b"").decode()
        front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
        siblings = []
        for file, content in commit.files.items():
            sibling: dict[str, Any] = {"rfilename": file}
            if blobs:
                sibling |= {"size": len(content), "blobId": git_sha1(content)}
            siblings.append(sibling)
        return {
            "_id": name, "id": name, "modelId": name, "sha": commit.sha, "private": repo.private,
            "tags": data.get("tags", []), "library_name": data.get("library_name"),
            "cardData": data, "siblings": siblings,
        }  # fmt: skip

    def list_models(self) -> None:
        author = self.query.get("author", [""])[0]
        wanted = set(self.query.get("filter", []))
        found = []
        for name, repo in self.server.repos.items():
            if not repo.private and name.startswith(author + "/") and "main" in repo.refs:
                described = self.described(name, repo, self.at(repo, "main"), False)
                if wanted <= set(described["tags"]):
                    found.append(described)
        self.json(found)

    def paths_info(self, name: str, revision: str) -> None:
        commit = self.at(self.may(name), revision)
        wanted = (
            parse_qs(self.body.decode())["paths"]
            if self.body[:1] != b"{"
            else (json.loads(self.body)["paths"])
        )
        found = []
        for file in wanted:
            if file in commit.files:
                content = commit.files[file]
                row: dict[str, Any] = {"type": "file", "path": file, "size": len(content)}
                row["oid"] = git_sha1(content)
                if is_lfs(file):
                    row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 1}
                found.append(row)
        self.json(found)

    def resolve(self, name: str, revision: str, file: str) -> None:
        commit = self.at(self.may(name), revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if file not in commit.files:
            raise Answer(404, "EntryNotFound", f"{file} is not in the repo")
        content = commit.files[file]
        headers["ETag"] = f'"{sha256(content) if is_lfs(file) else git_sha1(content)}"'
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span:
            start, end = int(span[1]), int(span[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self.send(206, content[start : end + 1], headers)
        else:
            self.send(200, content, headers)

    def validate_yaml(self) -> None:
        self.json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        self.at(self.may(name, write=True), revision)
        files = json.loads(self.body)["files"]
        self.json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if is_lfs(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in files
                ]
            }
        )

    def lfs_batch(self, name: str) -> None:
        self.may(name, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.server.uploads:
                row["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            objects.append(row)
        self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if sha256(self.body) != oid:
            raise Answer(400, message="not the announced content")
        self.server.uploads[oid] = self.body
        self.send(200, b"")

    def commit(self, name: str, revision: str) -> None:
        repo = self.may(name, write=True)
        before = self.at(repo, revision)
        files, message = dict(before.files), ""
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, before.sha):
                    raise Answer(412, message="A commit has happened since")
            elif row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        pull = "create_pr" in self.query and self.query["create_pr"][0] == "1"
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = f"refs/pr/{number}" if pull else revision
        sha = repo.add(files, message, ref)
        url = f"{self.server.url}/{name}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        if pull:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        self.json(answer)

    def branch(self, name: str, branch: str) -> None:
        repo = self.may(name, write=True)
        if branch in repo.refs:
            raise Answer(409, message="Reference already exists")
        repo.refs[branch] = self.at(repo, "main").sha
        self.json({})

    def tag(self, name: str, revision: str) -> None:
        repo = self.may(name, write=True)
        tag = json.loads(self.body)["tag"]
        if tag in repo.refs:
            raise Answer(409, message="Reference already exists")
        repo.refs[tag] = self.at(repo, revision).sha
        self.json({})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("GET", r"/api/models", Handler.list_models),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/(.+)", Handler.info),
    ("POST", rf"/api/models/{REPO}/paths-info/(.+)", Handler.paths_info),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", Handler.commit),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/models/{REPO}/tag/(.+)", Handler.tag),
    ("GET HEAD", rf"/{REPO}/resolve/(.+?)/(.+)", Handler.resolve),
]
