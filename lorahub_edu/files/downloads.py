"""One file over HTTP: a broken transfer goes on where it stopped, and a finished one is known to be right."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import ssl
import threading
import urllib.parse
from pathlib import Path

import certifi
import httpx
from tqdm.auto import tqdm

from lorahub_edu.errors import CourseError

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
CHUNK_BYTES = 1 << 18
# A connection that breaks is taken up again, this often at most, as long as every try brings new bytes.
TRANSFERS = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class SourceError(Exception):
    """One place can't give the file; the message says why, and the next place is tried."""


class _BrokenTransferError(Exception):
    """A transfer ended early; what came so far is kept and the next try asks for the rest."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_client(certificates: str | None = None) -> httpx.Client:
    """An HTTP client that follows redirects, gives up soon, and goes through the environment's proxies.

    Args:
        certificates: file or folder of the certificates to trust; None trusts the system's and certifi's.

    Returns:
        The client; close it after use.

    Raises:
        SourceError: the certificates can't be read, or a proxy in the environment is no address.
    """
    try:
        if certificates:
            where = {"capath" if os.path.isdir(certificates) else "cafile": certificates}
            context = ssl.create_default_context(**where)
        else:
            context = ssl.create_default_context()
            # Some Python builds come without the system's certificates.
            context.load_verify_locations(certifi.where())
    except OSError as error:
        raise SourceError(f"the certificates in {certificates} can't be read ({error})") from None
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        return httpx.Client(verify=context, timeout=timeout, follow_redirects=True)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise SourceError(f"the proxy in the environment can't be used ({error})") from None


def why_unreachable(url: str, seconds: float | None = None, certificates: str | None = None) -> str | None:
    """Ask a server for a sign of life.

    The question runs in a thread of its own that is left behind when time is up: looking up a name can hang for
    half a minute behind a firewall, and no timeout of an HTTP library covers that.

    Args:
        url: any address on the server.
        seconds: how long to wait; None waits `CONNECT_SECONDS`.
        certificates: as for `open_client`.

    Returns:
        None when the server answers, with whatever status, else the reason why it doesn't.
    """
    outcome: list[str | None] = []
    seconds = CONNECT_SECONDS if seconds is None else seconds

    def ask() -> None:
        try:
            with open_client(certificates) as client:
                client.head(url, timeout=seconds, follow_redirects=False)
            outcome.append(None)
        except Exception as error:  # a bad address raises other kinds than a dead server
            outcome.append(describe(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:g} s"


def describe(error: BaseException) -> str:
    """An exception in one short line.

    Args:
        error: the exception.

    Returns:
        Its first line, or its kind when it has no text.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def without_password(url: str) -> str:
    """An address fit for a message.

    Args:
        url: an address that may hold a user name and a password.

    Returns:
        The address with both replaced by "***".
    """
    parts = urllib.parse.urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]).geturl()


def size_text(size: int | float) -> str:
    """A number of bytes in MB or GB, as people say it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def disk_problem(error: OSError, folder: Path, needed: int | None) -> CourseError:
    """What to tell about a file that couldn't be written.

    Args:
        error: what the system said.
        folder: where the file was to go.
        needed: bytes that the download takes in all, when known.

    Returns:
        An error to raise: what is wrong, free and needed space when the disk is full, what to do.
    """
    if error.errno in FULL_DISK:
        need = f", the download needs {size_text(needed)}" if needed else ""
        return CourseError(
            f"The disk is full: {folder} has {size_text(_free(folder))} left{need}. Nothing half-written is kept. "
            f"Free some space, or set LORAHUB_EDU_HOME to a folder on another disk."
        )
    return CourseError(
        f"Can't write to the cache folder {folder}: {error.strerror or error}. "
        f"Set LORAHUB_EDU_HOME to a folder that you may write to."
    )


def require_space(folder: Path, needed: int) -> None:
    """Stop before a download that the disk can't hold.

    Args:
        folder: where it will be written.
        needed: bytes still to be written.

    Raises:
        CourseError: fewer bytes are free.
    """
    if _free(folder) < needed:
        raise disk_problem(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder, needed)


def _free(folder: Path) -> int:
    """Bytes free on the disk that holds `folder`, or will hold it once it is made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def download(
    client: httpx.Client,
    url: str,
    part: Path,
    *,
    sha256: str,
    size: int | None = None,
    extra: int = 0,
    label: str,
    progress: bool = True,
) -> None:
    """Bring a file's bytes into `part`, going on from what an earlier call left there.

    Args:
        client: from `open_client`.
        url: where the file is.
        part: the file to fill. It stays, to be continued, when the connection breaks or the process is killed.
        sha256: what the whole file must hash to.
        size: of the whole file in bytes, when known.
        extra: bytes that are wanted on the same disk afterwards, for unpacking.
        label: what the progress bar says.
        progress: show a bar.

    Raises:
        SourceError: the server doesn't give the file, or gives another one (which is then removed).
        CourseError: the disk hasn't enough space.
        OSError: the disk can't be written; nothing is kept when it is full.
    """
    while True:
        resumed = part.exists()
        _transfer_all(client, url, part, size, extra, label, progress)
        found = file_sha256(part)
        if found == sha256:
            return
        part.unlink()
        # Old bytes of another file may have been continued: that deserves one try from zero, new bytes don't.
        if not resumed:
            raise SourceError(f"the file there has SHA-256 {found}, expected {sha256}; it was removed")


def _transfer_all(
    client: httpx.Client, url: str, part: Path, size: int | None, extra: int, label: str, progress: bool
) -> None:
    for attempt in range(1, TRANSFERS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(client, url, part, size, extra, label, progress)
            return
        except (_BrokenTransferError, httpx.HTTPError) as error:
            now = part.stat().st_size if part.exists() else 0
            if attempt == TRANSFERS or now <= before:
                raise SourceError(f"{describe(error)} (after {size_text(now)})") from None
        except httpx.InvalidURL as error:
            raise SourceError(f"{without_password(url)} is no address ({error})") from None
        except OSError as error:
            if error.errno in FULL_DISK:
                part.unlink(missing_ok=True)
            raise


def _transfer(
    client: httpx.Client, url: str, part: Path, size: int | None, extra: int, label: str, progress: bool
) -> None:
    """One request: append what is missing. Raises `_BrokenTransferError` when the server stops early."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        return  # complete, or too long: the hash tells
    # The bytes are wanted as they are on the server: no compression on the way, and none undone here.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is nothing beyond what we have: the hash tells
        if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise SourceError(f"answered {response.status_code} {response.reason_phrase}".rstrip())
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code == httpx.codes.PARTIAL_CONTENT and not continues:
            part.unlink(missing_ok=True)
            raise SourceError("answered with another part of the file than asked for")
        if response.status_code == httpx.codes.OK:
            have = 0  # the server knows no ranges and starts over
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else size
        if total is not None:
            require_space(part.parent, total - have + extra)
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=label, disable=not progress)
        with bar, part.open("ab" if have else "wb") as file:
            for chunk in response.iter_raw():  # as it comes: a larger piece would be lost when the line breaks
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if total is not None and have < total or size is not None and have < size:
        raise _BrokenTransferError(f"the transfer ended early, at {have:,} of {max(total or 0, size or 0):,} bytes")
