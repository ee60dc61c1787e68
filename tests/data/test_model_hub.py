"""A dataset of the model hub, from a stand-in for its server: files, splits, streams, and missing ones."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: short
  data_files:
  - split: train
    path: short/train.jsonl
  - split: test
    path: short/test.jsonl
- config_name: long
  data_files: long.jsonl
---
"""
FILES = {
    "README.md": CARD.encode(),
    "short/train.jsonl": b"".join(b'{"prompt": "%d", "completion": "a"}\n' % number for number in range(3)),
    "short/test.jsonl": b'{"prompt": "test", "completion": "b"}\n',
    "long.jsonl": b'{"prompt": "long", "completion": "c"}\n',
}

ASK = """
import json, sys
from hub.data.sources.read import read_rows, rows_after, Cursor
from hub.errors import DataError
for name, subset, split, stream in json.loads(sys.argv[1]):
    try:
        rows = rows_after(name, Cursor(), subset, split) if stream else ((row, None) for row in read_rows(name, subset, split))
        print("ANSWER", json.dumps([[entry.read().value["prompt"], entry.read().where] for entry, _ in rows]))
    except DataError as error:
        print("ANSWER", json.dumps(str(error)))
"""


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        file = re.fullmatch(r"/datasets/org/sums/resolve/[^/]+/(.+)", path)
        if file and file[1] in FILES:
            body = FILES[file[1]]
            self.answer(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        elif file:
            self.answer(b"{}", 404, X_Error_Code="EntryNotFound")
        elif path.startswith("/api/datasets/org/sums/tree/"):
            self.answer(self.entries(FILES))
        elif path == "/api/datasets/org/sums" or path.startswith("/api/datasets/org/sums/revision/"):
            names = [{"rfilename": name} for name in FILES]
            about = {"id": "org/sums", "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
            self.answer(json.dumps({**about, "siblings": names}).encode())
        elif path == "/api/datasets/org/closed":
            self.answer(b"{}", 403, X_Error_Code="GatedRepo")
        else:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        names = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
        self.answer(self.entries(name for name in names if name in FILES))

    @staticmethod
    def entries(names) -> bytes:
        files = [{"path": name, "size": len(FILES[name]), "oid": hashlib.sha1(FILES[name]).hexdigest()} for name in names]
        return json.dumps([{"type": "file", **file} for file in files]).encode()


@pytest.fixture
def ask(tmp_path):
    """Reads from such a hub in a process of its own, since libraries take the hub's address when they are imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def call(*questions):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", ASK, json.dumps(questions)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        lines = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
        return [json.loads(line) for line in lines]

    yield call
    server.shutdown()


@pytest.mark.slow
def test_rows_come_by_part_and_split_and_what_is_not_there_is_answered_with_what_is(ask):
    train = [[str(number), f"sums:{number + 1}"] for number in range(3)]
    found = ask(
        ("org/sums", "short", "train", False),
        ("org/sums", "short", "train", True),
        ("org/sums", "short", "test", False),
        ("org/sums", None, "train", False),
        ("org/sums", "shrot", "train", False),
        ("org/sums", "short", "dev", False),
        ("org/closed", None, "train", False),
        ("org/nowhere", None, "train", False),
    )
    assert found[:3] == [train, train, [["test", "sums:1"]]]
    assert found[3].endswith("Type data.subset=NAME; there are short, long")
    assert found[4].endswith("Type data.subset=NAME; there are short, long")
    assert found[5].endswith("Type data.split=NAME; there are train, test")
    assert "Accept its terms on its page" in found[6]
    assert "no such dataset on the model hub" in found[7]
