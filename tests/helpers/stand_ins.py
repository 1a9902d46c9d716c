"""A server on this machine that plays the Hugging Face hub and a package index, and a small asset to fetch from it."""

from __future__ import annotations

import hashlib
import html
import io
import json
import random
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lorahub_edu.files.assets import Asset, Edition
from lorahub_edu.files.sources import HubFile, IndexFile

TOY_BYTES = random.Random(0).randbytes(400_000)
TOY_MEMBER = "toy-1.0/data/toy.bin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class StandIn:
    """Serves `files`; remembers what was asked; breaks, slows down and ignores ranges when told to.

    `cuts`: how many bytes to send of each of the next file requests before the connection is dropped.
    `pause`: seconds of waiting after each 16 kB.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        self.redirects: dict[str, tuple[str, dict[str, str]]] = {}
        self.ranges = True
        self.cuts: list[int] = []
        self.pause = 0.0
        self.requests: list[tuple[str, str, str]] = []
        self.served: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str, method: str = "GET") -> int:
        return sum(1 for request in self.requests if request[:2] == (method, path))

    def list_archive(
        self, archive: str, data: bytes, form: str = "json", published: str | None = None, size: bool = True
    ) -> str:
        """Put an archive on the index under the project "toy"; returns the path of the file."""
        path, published = f"/files/{archive}", published or sha256(data)
        self.files[path] = (data, "application/octet-stream")
        if form == "json":
            entry = {"filename": archive, "url": f"../..{path}", "hashes": {"sha256": published}}
            entry |= {"size": len(data)} if size else {}
            page = json.dumps({"meta": {"api-version": "1.1"}, "name": "toy", "files": [entry]}).encode()
            self.files["/simple/toy/"] = (page, "application/vnd.pypi.simple.v1+json")
        else:
            link = html.escape(f"../..{urllib.parse.quote(path)}#sha256={published}")
            page = f'<!DOCTYPE html><html><body><a href="/">up</a><a href="{link}">{archive}</a></body></html>'.encode()
            self.files["/simple/toy/"] = (page, "text/html; charset=utf-8")
        return path

    def put_on_hub(self, hub: HubFile, data: bytes, published: str | None = None) -> str:
        """Large files on the hub: the name leads on to the bytes elsewhere and carries their SHA-256 and size."""
        prefix = "/datasets" if hub.repo_type == "dataset" else ""
        path, there = f"{prefix}/{hub.repo}/resolve/{hub.revision}/{hub.filename}", f"/cdn/{sha256(data)}"
        self.files[there] = (data, "application/octet-stream")
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{published or sha256(data)}"',
            "X-Linked-Size": str(len(data)),
        }
        # The bytes are on another host, where the hub's library doesn't follow: it takes the hash from the hub itself.
        self.redirects[path] = (self.url.replace("127.0.0.1", "localhost") + there, headers)
        return there


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802
            self._answer(with_body=False)

        def do_GET(self) -> None:  # noqa: N802
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = urllib.parse.unquote(self.path)
            wanted = self.headers.get("Range", "")
            stand_in.requests.append((self.command, path, wanted))
            if path in stand_in.redirects:
                location, headers = stand_in.redirects[path]
                self._head(302, headers | {"Location": location, "Content-Length": "0"})
                return
            if path not in stand_in.files:
                self._head(404, {"Content-Length": "0"})
                return
            data, kind = stand_in.files[path]
            status, headers = 200, {"Content-Type": kind}
            if wanted and stand_in.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(data):
                    self._head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                    return
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data = data[start:]
            self._head(status, headers | {"Content-Length": str(len(data))})
            if not with_body:
                return
            if path.startswith(("/files/", "/cdn/")) and stand_in.cuts:
                data = data[: stand_in.cuts.pop(0)]
            for offset in range(0, len(data), 16_384):
                chunk = data[offset : offset + 16_384]
                try:
                    self.wfile.write(chunk)
                except OSError:  # the other side was killed
                    return
                stand_in.served[path] = stand_in.served.get(path, 0) + len(chunk)
                time.sleep(stand_in.pause)

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def make_wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, data in members.items():
            bundle.writestr(zipfile.ZipInfo(name), data)  # without a date, so that the bytes are always the same
    return buffer.getvalue()


def make_tarball(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            bundle.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            bundle.addfile(entry)
    return buffer.getvalue()


TOY_WHEEL = make_wheel({TOY_MEMBER: TOY_BYTES, "toy-1.0/other.txt": b"not asked for"})
TOY_HUB = HubFile("somebody/toy", "data/toy.bin", "main", "dataset")
TOY_INDEX = IndexFile("toy", "toy-1.0-py3-none-any.whl", sha256(TOY_WHEEL), TOY_MEMBER)
TOY_EDITION = Edition("toy.bin", sha256(TOY_BYTES), len(TOY_BYTES), TOY_HUB, TOY_INDEX)
TOY = Asset("toy", (TOY_EDITION,), "CC BY-NC 4.0", "Not for sale.", non_commercial=True)


def closed_address() -> str:
    """An address on this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def run_fetch() -> subprocess.Popen:
    """Another process that fetches the toy from the mirror, as the environment says."""
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import stand_ins; "
        "from lorahub_edu.files import assets; assets.ASSETS['toy'] = stand_ins.TOY; "
        "print(assets.fetch('toy', source='mirror'))"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
