"""A stand-in for the model hub on this machine: tokens, repositories, uploads of large files, commits. It can break off."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER = "me"
TOKENS: dict[str, dict[str, Any]] = {
    "hf_writesaaaaaaaaaaaaaaaaaa": {"role": "write"},
    "hf_readsaaaaaaaaaaaaaaaaaaaa": {"role": "read"},
    "hf_fineaaaaaaaaaaaaaaaaaaaaa": {
        "role": "fineGrained",
        "fineGrained": {"scoped": [{"permissions": ["repo.content.read"]}]},
    },
}
WRITES, READS, FINE = TOKENS


class ModelHub(ThreadingHTTPServer):
    """The server. `repos` is OWNER/NAME -> its files, and `private` whether it is so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        self.sent: list[str] = []
        """Large files that arrived, by hash, each time that one did."""
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.breaks_after: int | None = None
        """Break off from this number of large files on."""
        self.refuses: dict[str, int] = {}
        """End of a path -> status that it is answered with."""
        self.always_public = False
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelHub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self) -> bool:
        self.server.asked.append(f"{self.command} {self.path}")
        for end, status in self.server.refuses.items():
            if self.path.endswith(end):
                self.answer({"error": "No."}, status)
                return True
        if self.path != "/" and not self.path.startswith("/lfs/"):
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in TOKENS:
                self.answer({"error": "Invalid"}, 401, X_Error_Message="Invalid credentials in Authorization header")
                return True
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.refused():
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        repo = self.path.removeprefix("/api/models/").partition("?")[0].removesuffix("/revision/main")
        if self.path == "/":
            self.answer({})
        elif self.path == "/api/whoami-v2":
            orgs = [{"name": "org", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
            self.answer({"name": OWNER, "type": "user", "orgs": orgs, "auth": {"accessToken": TOKENS[token]}})
        elif repo in self.server.repos:
            names = [{"rfilename": name} for name in self.server.repos[repo]]
            sha = hashlib.sha1(str(self.server.commits).encode()).hexdigest()
            self.answer({"id": repo, "sha": sha, "private": self.server.private[repo], "siblings": names})
        else:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        server, oid = self.server, self.path.removeprefix("/lfs/")
        with server.lock:  # files come in several threads
            arrives = server.breaks_after is None or len(server.sent) < server.breaks_after
            if arrives:
                server.stored[oid] = content
                server.sent.append(oid)
        self.answer({} if arrives else {"error": "gone"}, 200 if arrives else 400)

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.server.repos.setdefault(repo, {".gitattributes": b""})
            self.server.private.setdefault(repo, private and not self.server.always_public)
            self.answer({"url": f"{self.server.address}/{repo}", "name": repo})
        elif self.path.endswith("/preupload/main"):
            held = self.server.repos[self.path.removeprefix("/api/models/").removesuffix("/preupload/main")]
            files = []
            for one in json.loads(body)["files"]:
                large = one["path"].endswith((".safetensors", ".gguf", "tokenizer.json"))
                oid = _oid(held[one["path"]], large) if one["path"] in held else None
                files.append(
                    {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
                )
            self.answer({"files": files})
        elif self.path.endswith("/objects/batch"):
            objects = []
            for one in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}
                objects.append({**one, **({} if one["oid"] in self.server.stored else {"actions": upload})})
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            repo = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            self.commit(self.server.repos[repo], [json.loads(line) for line in body.splitlines()])
            oid = hashlib.sha1(str(self.server.commits).encode()).hexdigest()
            self.answer({"commitUrl": f"{self.server.address}/{repo}/commit/{oid}", "commitOid": oid, "success": True})
        else:
            self.answer({})

    def commit(self, files: dict[str, bytes], operations: list[dict[str, Any]]) -> None:
        for one in operations:
            value = one["value"]
            if one["key"] == "header":
                self.server.commits.append(value["summary"])
            elif one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif one["key"] == "deletedFile":
                del files[value["path"]]


def _oid(content: bytes, large: bool) -> str:
    """The hash that a client compares with its own."""
    return hashlib.sha256(content).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
