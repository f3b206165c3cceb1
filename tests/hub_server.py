"""A small Hub on 127.0.0.1 that answers only the calls of huggingface_hub that publish and load.

It checks the token of every write, and the SHA-256 and the size of every large file. It refuses all other calls and
keeps them in a list.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "LoopbackOnly" * 3
# A token that may read but not write.
READER = "hf_" + "LoopbackReader" * 3
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Commit:
    """A commit with the whole tree after it."""

    oid: str
    message: str
    files: dict[str, bytes]
    large: set[str]


@dataclass
class Repo:
    """A model repository."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list)

    def add(self, message: str, files: dict[str, bytes], large: set[str] = frozenset()) -> Commit:
        before = self.commits[-1] if self.commits else Commit("", "", {}, set())
        oid = hashlib.sha1(f"{len(self.commits)} {message} {id(self)}".encode()).hexdigest()
        self.commits.append(Commit(oid, message, {**before.files, **files}, (before.large - set(files)) | large))
        return self.commits[-1]

    @property
    def head(self) -> Commit:
        return self.commits[-1]


class Hub:
    """A server in a thread, with its repositories and stored files."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        # The large files, by their SHA-256.
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.refused_uploads: list[str] = []
        # If it is set, every answer has this status.
        self.status: int | None = None
        # The owners whose repositories the token may write to.
        self.writers = {"me"}
        self.on_commit = lambda repo: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_folder(self, repo: str, folder: Path) -> None:
        """Make a repository from the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        large = {name for name in files if name.endswith(".safetensors")}
        self.repos.setdefault(repo, Repo()).add("first", files, large)

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Return the environment of a process that knows only this Hub and has a cache of its own."""
        drop = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
        return {
            **{key: value for key, value in os.environ.items() if key not in drop},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        }


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("GET", rf"/api/models/{REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/large/(?P<oid>[0-9a-f]{64})/(?P<size>\d+)", "store"),
        ("POST", r"/verify", "verify"),
        ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._route()

    do_POST = do_PUT = do_HEAD = do_GET

    def _route(self) -> None:
        self.body = self._read()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path))
        if self.hub.status:
            return self._answer(self.hub.status, {"error": "as the test wants it"})
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {TOKEN}", f"Bearer {READER}"):
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        self.known, self.writes = sent is not None, sent == f"Bearer {TOKEN}"
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                return getattr(self, f"_{name}")(**match.groupdict())
        self.hub.unknown.append((self.command, path))
        return self._answer(500, {"error": f"no route {self.command} {path}"})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: object = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _commit_of(self, repo: str, revision: str | None) -> Commit | None:
        """Return the commit; if there is none, answer so and return None."""
        held = self.hub.repos.get(repo)
        if held is None or (held.private and not self.known):
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if revision in (None, "main"):
            return held.head if held.commits else Commit("0" * 40, "", {}, set())
        for commit in held.commits:
            if commit.oid == revision:
                return commit
        self._answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        return None

    def _may_write(self, repo: str) -> bool:
        if not self.known:
            self._answer(401, {"error": "Unauthorized"})
        elif repo.partition("/")[0] not in self.hub.writers or not self.writes:
            self._answer(403, {"error": f"You have no permission with {self.headers['Authorization']}"})
        else:
            return True
        return False

    def _whoami(self) -> None:
        if not self.known:
            return self._answer(401, {"error": "Unauthorized"})
        return self._answer(
            200,
            {
                "type": "user",
                "name": "me",
                "orgs": [],
                "auth": {
                    "type": "access_token",
                    "accessToken": {"role": "write" if self.writes else "read"},
                },
            },
        )

    def _validate(self) -> None:
        asked = json.loads(self.body)
        good = asked["content"].startswith("---\n") and asked["repoType"] == "model"
        errors = [] if good else [{"message": "no metadata"}]
        self._answer(200 if good else 400, {"errors": errors, "warnings": []})

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        if not self._may_write(repo):
            return
        if repo in self.hub.repos:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.endpoint}/{repo}"})
        self.hub.repos[repo] = Repo(private=asked.get("private") or asked.get("visibility") == "private")
        self._answer(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo})

    def _preupload(self, repo: str, revision: str) -> None:
        if not self._may_write(repo) or not (commit := self._commit_of(repo, revision)):
            return
        files = []
        for file in json.loads(self.body)["files"]:
            name = file["path"]
            large = name.endswith((".safetensors", ".bin", ".pt"))
            there = commit.files.get(name)
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else blob(there)
            files.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": files})

    def _batch(self, repo: str) -> None:
        if not self._may_write(repo):
            return
        asked = json.loads(self.body)
        assert asked["hash_algo"] == "sha256" and asked["operation"] == "upload"
        objects = []
        for large_file in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.endpoint}/large/{large_file['oid']}/{large_file['size']}"},
                "verify": {"href": f"{self.hub.endpoint}/verify"},
            }
            objects.append({**large_file, **({} if large_file["oid"] in self.hub.stored else {"actions": actions})})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str, size: str) -> None:
        if len(self.body) != int(size) or hashlib.sha256(self.body).hexdigest() != oid:
            self.hub.refused_uploads.append(oid)
            return self._answer(400, {"error": "not the promised content"})
        self.hub.stored[oid] = self.body
        self._answer(200)

    def _verify(self) -> None:
        asked = json.loads(self.body)
        good = len(self.hub.stored.get(asked["oid"], b"")) == asked["size"]
        self._answer(200 if good else 404)

    def _commit(self, repo: str, revision: str) -> None:
        if not self._may_write(repo) or not self._commit_of(repo, revision):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files, large = {}, set()
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in self.hub.stored:
                files[value["path"]] = self.hub.stored[value["oid"]]
                assert len(files[value["path"]]) == value["size"]
                large.add(value["path"])
            else:
                # Among other actions, deletions and copies are refused.
                self.hub.unknown.append(("commit", line["key"]))
                return self._answer(400, {"error": f"{line['key']} is refused"})
        commit = self.hub.repos[repo].add(lines[0]["value"]["summary"], files, large)
        url = f"{self.hub.endpoint}/{repo}/commit/{commit.oid}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": commit.oid, "hookOutput": ""})
        self.hub.on_commit(repo)

    def _entry(self, commit: Commit, path: str) -> dict:
        content = commit.files[path]
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": blob(content),
            **({"lfs": large} if path in commit.large else {}),
        }

    def _paths_info(self, repo: str, revision: str) -> None:
        if not (commit := self._commit_of(repo, revision)):
            return
        kind = self.headers.get("Content-Type", "")
        asked = json.loads(self.body)["paths"] if "json" in kind else parse_qs(self.body.decode())["paths"]
        self._answer(200, [self._entry(commit, path) for path in asked if path in commit.files])

    def _tree(self, repo: str, revision: str, path: str | None) -> None:
        if not (commit := self._commit_of(repo, revision)):
            return
        inside = [name for name in sorted(commit.files) if not path or name.startswith(f"{path}/")]
        if path and not inside:
            return self._answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        self._answer(200, [self._entry(commit, name) for name in inside])

    def _info(self, repo: str, revision: str | None) -> None:
        if not (commit := self._commit_of(repo, revision)):
            return
        self._answer(
            200,
            {
                "id": repo,
                "modelId": repo,
                "sha": commit.oid,
                "private": self.hub.repos[repo].private,
                "tags": [],
                "siblings": [{"rfilename": name} for name in commit.files],
            },
        )

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if not (commit := self._commit_of(repo, revision)):
            return
        if path not in commit.files:
            return self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit.oid)
        content = commit.files[path]
        large = path in commit.large
        etag = hashlib.sha256(content).hexdigest() if large else blob(content)
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit.oid)
        self.send_header("ETag", f'"{etag}"')
        if large:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def blob(content: bytes) -> str:
    """Return the SHA-1 by which git names the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
