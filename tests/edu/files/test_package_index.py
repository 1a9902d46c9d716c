"""Downloads that can be continued, index pages in both forms, and archives that are not trusted."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import (  # noqa: E402
    TOY_BYTES,
    TOY_INDEX,
    TOY_MEMBER,
    TOY_WHEEL,
    StandIn,
    make_tarball,
    make_wheel,
    sha256,
)

from lorahub_edu.files import downloads, package_index
from lorahub_edu.files.downloads import SourceError, download, open_client
from lorahub_edu.files.package_index import Index, IndexFile, extract_member, fetch_member, find_index, list_files

SIZE = len(TOY_BYTES)
FILE = "/files/toy.bin"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAHUB_EDU_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    package_index._pip_settings.cache_clear()


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        stand_in.files[FILE] = (TOY_BYTES, "application/octet-stream")
        yield stand_in


def get(server: StandIn, part: Path, size: int | None = SIZE) -> None:
    with open_client() as client:
        download(client, server.url + FILE, part, sha256=sha256(TOY_BYTES), size=size, label="toy", progress=False)


def test_broken_connection_goes_on_where_it_stopped(server: StandIn, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    get(server, tmp_path / "toy.part")
    assert (tmp_path / "toy.part").read_bytes() == TOY_BYTES
    assert server.served[FILE] == SIZE
    assert [wanted for _, _, wanted in server.requests] == ["", "bytes=100000-", "bytes=150000-"]


def test_next_call_goes_on_from_the_part_that_was_left(server: StandIn, tmp_path: Path) -> None:
    part = tmp_path / "toy.part"
    part.write_bytes(TOY_BYTES[:250_000])
    get(server, part)
    assert part.read_bytes() == TOY_BYTES
    assert server.served[FILE] == SIZE - 250_000


def test_server_that_knows_no_ranges_starts_over(server: StandIn, tmp_path: Path) -> None:
    server.ranges = False
    part = tmp_path / "toy.part"
    part.write_bytes(TOY_BYTES[:250_000])
    get(server, part)
    assert part.read_bytes() == TOY_BYTES
    assert server.served[FILE] == SIZE


@pytest.mark.parametrize("length", [1_000, SIZE, SIZE + 5])
def test_stale_part_is_dropped_and_fetched_once_more(server: StandIn, tmp_path: Path, length: int) -> None:
    part = tmp_path / "toy.part"
    part.write_bytes(bytes(length))
    get(server, part)
    assert part.read_bytes() == TOY_BYTES
    assert server.served[FILE] == SIZE + max(0, SIZE - length)


def test_complete_part_of_unknown_size_costs_no_bytes(server: StandIn, tmp_path: Path) -> None:
    part = tmp_path / "toy.part"
    part.write_bytes(TOY_BYTES)
    get(server, part, size=None)
    assert server.asked(FILE) == 1 and FILE not in server.served


def test_wrong_bytes_are_named_removed_and_fetched_once_only(server: StandIn, tmp_path: Path) -> None:
    other = TOY_BYTES[:-1] + b"?"
    server.files[FILE] = (other, "application/octet-stream")
    with pytest.raises(SourceError) as caught:
        get(server, tmp_path / "toy.part")
    assert sha256(other) in str(caught.value) and sha256(TOY_BYTES) in str(caught.value)
    assert not (tmp_path / "toy.part").exists()
    assert server.asked(FILE) == 1


def test_server_that_stops_for_good_leaves_a_part_to_continue(server: StandIn, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(SourceError, match="after 0.1 MB"):
        get(server, tmp_path / "toy.part")
    assert (tmp_path / "toy.part").read_bytes() == TOY_BYTES[:100_000]
    assert server.asked(FILE) == 2


def test_file_that_is_shorter_than_published_is_noticed(server: StandIn, tmp_path: Path) -> None:
    server.files[FILE] = (TOY_BYTES[:1_000], "application/octet-stream")
    with pytest.raises(SourceError, match="SHA-256"):
        get(server, tmp_path / "toy.part")
    assert not (tmp_path / "toy.part").exists()


def toy_archive(kind: str) -> tuple[str, bytes]:
    members = {TOY_MEMBER: TOY_BYTES, "toy-1.0/other.txt": b"not asked for"}
    return ("toy-1.0.whl", make_wheel(members)) if kind == "wheel" else ("toy-1.0.tar.gz", make_tarball(members))


@pytest.mark.parametrize("form", ["json", "html"])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_member_comes_out_and_the_archive_goes(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, kind: str
) -> None:
    monkeypatch.setenv("LORAHUB_EDU_INDEX", server.url + "/simple")
    archive, data = toy_archive(kind)
    server.list_archive(archive, data, form)
    source = IndexFile("toy", "1.0", archive, sha256(data), TOY_MEMBER)
    fetch_member(source, tmp_path / "toy.bin.part", sha256=sha256(TOY_BYTES), size=SIZE, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["toy.bin.part"]
    assert (tmp_path / "toy.bin.part").read_bytes() == TOY_BYTES


def test_both_forms_of_a_page_say_the_same(server: StandIn) -> None:
    listed = {}
    with open_client() as client:
        for form in ("json", "html"):
            server.list_archive("a b-1.0.whl", b"x", form, size=False)
            files = list_files(client, Index(server.url + "/simple/", None), "toy")
            listed[form] = [(file.filename, file.sha256) for file in files if file.filename]
            assert client.get(files[-1].url).content == b"x"
    assert listed["json"] == listed["html"] == [("a b-1.0.whl", sha256(b"x"))]


def test_index_that_publishes_another_hash_is_not_downloaded_from(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAHUB_EDU_INDEX", server.url + "/simple")
    path = server.list_archive(TOY_INDEX.archive, TOY_WHEEL, published="0" * 64)
    with pytest.raises(SourceError, match="0{64}, expected " + TOY_INDEX.archive_sha256):
        fetch_member(TOY_INDEX, tmp_path / "toy.part", sha256=sha256(TOY_BYTES), size=SIZE, progress=False)
    assert server.asked(path) == 0


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (None, "404"),
        ((b'{"files": []}', "application/json"), "isn't among the 0 files"),
        ((b"<html>Please log in", "text/html"), "isn't among the 0 files"),
        ((b'{"files": [{"name": 1}]}', "application/json"), "can't be read"),
        ((b"{", "application/json"), "can't be read"),
        ((b'{"files": null}', "application/json"), "can't be read"),
    ],
)
def test_bad_page_is_one_clear_reason(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: tuple[bytes, str] | None, message: str
) -> None:
    monkeypatch.setenv("LORAHUB_EDU_INDEX", server.url + "/simple")
    if page:
        server.files["/simple/toy/"] = page
    with pytest.raises(SourceError, match=message):
        fetch_member(TOY_INDEX, tmp_path / "toy.part", sha256=sha256(TOY_BYTES), size=SIZE, progress=False)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (make_wheel({"other": b"x"}), "no file"),
        (make_tarball({"other": b"x"}), "no file"),
        (make_tarball({"other": b"x"}, links={TOY_MEMBER: "/etc/hostname"}), "no file"),
        (make_wheel({TOY_MEMBER: b"x"}), "SHA-256"),
        (b"neither zip nor tar", "damaged"),
        (make_tarball({TOY_MEMBER: TOY_BYTES})[:-200_000], "damaged"),
        (TOY_WHEEL.replace(TOY_BYTES[:50], bytes(50)), "damaged"),
    ],
)
def test_bad_archive_leaves_nothing(tmp_path: Path, archive: bytes, message: str) -> None:
    (tmp_path / "archive.part").write_bytes(archive)
    with pytest.raises(SourceError, match=message):
        extract_member(tmp_path / "archive.part", TOY_MEMBER, tmp_path / "toy.part", sha256=sha256(TOY_BYTES))
    assert not (tmp_path / "toy.part").exists()


@pytest.mark.parametrize("make", [make_wheel, make_tarball])
@pytest.mark.parametrize("evil", ["../evil.txt", "{folder}/evil.txt"])
def test_archive_has_no_say_in_where_bytes_go(tmp_path: Path, make, evil: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    evil = evil.format(folder=tmp_path)
    (inside / "archive.part").write_bytes(make({evil: b"evil", TOY_MEMBER: TOY_BYTES}))
    extract_member(inside / "archive.part", TOY_MEMBER, inside / "toy.part", sha256=sha256(TOY_BYTES))
    extract_member(inside / "archive.part", evil, inside / "taken.part", sha256=sha256(b"evil"))
    assert {path.name for path in tmp_path.rglob("*")} == {"inside", "archive.part", "toy.part", "taken.part"}


def test_index_is_the_first_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = http://global/simple\n[install]\nindex-url = http://install/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    found = [find_index().url]
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "LORAHUB_EDU_INDEX"):
        monkeypatch.setenv(name, f"http://{name.lower()}/simple/")
        found.append(find_index().url)
    monkeypatch.setenv("LORAHUB_EDU_INDEX", "school=http://named/simple")
    found.append(find_index().url)
    names = ["install", "pip_index_url", "uv_index_url", "uv_default_index", "lorahub_edu_index", "named"]
    assert found == [f"http://{name}/simple/" for name in names]


def test_pip_knows_an_index_even_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with_pip = package_index._python("-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)")
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    bundled = package_index._python("-c", "import pip; print(pip.__file__)")
    assert with_pip.startswith("https://")
    assert ".whl" in bundled or not any(Path(ssl.__file__).parent.glob("ensurepip/_bundled/*.whl"))


def test_no_index_and_odd_addresses_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDU_INDEX", "file:///media/stick/simple")
    with pytest.raises(SourceError, match="isn't an http"):
        find_index()
    monkeypatch.delenv("LORAHUB_EDU_INDEX")
    monkeypatch.setattr(package_index, "_python", lambda *_: "")
    package_index._pip_default.cache_clear()
    try:
        with pytest.raises(SourceError, match="set LORAHUB_EDU_INDEX"):
            find_index()
    finally:
        package_index._pip_default.cache_clear()
        package_index._pip_settings.cache_clear()


def test_password_of_an_index_stays_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDU_INDEX", "http://me:secret@127.0.0.1:1/simple")
    assert package_index.index_label() == "package index http://***@127.0.0.1:1/simple/"


def test_certificates_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing.pem"):
        open_client(str(tmp_path / "missing.pem"))


def test_unreachable_gives_a_reason_and_a_live_server_none(server: StandIn) -> None:
    assert downloads.why_unreachable(server.url) is None
    assert downloads.why_unreachable("http://[bad") is not None
