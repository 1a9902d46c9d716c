"""Index pages in both forms, archives that are not trusted, and the index settings of this machine's installer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pypi_simple import PYPI_SIMPLE_ENDPOINT
from stand_ins import (  # noqa: E402
    TOY_BYTES,
    TOY_INDEX,
    TOY_MEMBER,
    TOY_WHEEL,
    StandIn,
    closed_address,
    make_tarball,
    make_wheel,
    sha256,
)

from lorahub_edu.files import sources
from lorahub_edu.files.sources import IndexFile, SourceError, find_index, from_index

FILE = "/files/toy.bin"
JSON = "application/vnd.pypi.simple.v1+json"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_PROXY", "SSL_CERT_FILE")
    for name in ("LORAHUB_EDU_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", *pip):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as stand_in:
        stand_in.files[FILE] = (TOY_BYTES, "application/octet-stream")
        monkeypatch.setenv("LORAHUB_EDU_INDEX", stand_in.url + "/simple")
        yield stand_in


def toy_archive(kind: str) -> tuple[str, bytes]:
    members = {TOY_MEMBER: TOY_BYTES, "toy-1.0/other.txt": b"not asked for"}
    if kind == "wheel":
        return TOY_INDEX.archive, make_wheel(members)
    return "toy-1.0.tar.gz", make_tarball(members)


@pytest.mark.parametrize("form", ["json", "html"])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_member_comes_out_of_the_archive(server: StandIn, tmp_path: Path, form: str, kind: str) -> None:
    archive, data = toy_archive(kind)
    server.list_archive(archive, data, form)
    path = from_index(IndexFile("toy", archive, sha256(data), TOY_MEMBER), tmp_path)
    assert path == tmp_path / "toy.bin" and path.read_bytes() == TOY_BYTES
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([archive, "toy.bin"])


def test_index_that_publishes_another_hash_is_not_downloaded_from(server: StandIn, tmp_path: Path) -> None:
    path = server.list_archive(TOY_INDEX.archive, TOY_WHEEL, published="0" * 64)
    with pytest.raises(SourceError, match="0{64}, expected " + TOY_INDEX.archive_sha256):
        from_index(TOY_INDEX, tmp_path)
    assert server.asked(path) == 0


def test_index_that_gives_another_archive_than_it_says(server: StandIn, tmp_path: Path) -> None:
    other = TOY_WHEEL[:-1] + b"?"
    server.list_archive(TOY_INDEX.archive, other, published=TOY_INDEX.archive_sha256)
    with pytest.raises(SourceError) as caught:
        from_index(TOY_INDEX, tmp_path)
    assert sha256(other) in str(caught.value) and TOY_INDEX.archive_sha256 in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_archive_that_is_cut_short_is_noticed(server: StandIn, tmp_path: Path) -> None:
    server.list_archive(TOY_INDEX.archive, TOY_WHEEL)
    server.cuts = [1_000]
    with pytest.raises(SourceError, match="package index http"):
        from_index(TOY_INDEX, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (None, "No details about project 'toy'"),
        ((b'{"files": [], "name": "toy", "meta": {"api-version": "1.1"}}', JSON), "isn't among the 0 files"),
        ((b"<html>Please log in", "text/html"), "isn't among the 0 files"),
        ((b'{"files": [{"name": 1}]}', JSON), "can't be read"),
        ((b"{", JSON), "can't be read"),
        ((b'{"files": null}', JSON), "can't be read"),
    ],
)
def test_bad_page_is_one_clear_reason(
    server: StandIn, tmp_path: Path, page: tuple[bytes, str] | None, message: str
) -> None:
    if page:
        server.files["/simple/toy/"] = page
    with pytest.raises(SourceError, match=message):
        from_index(TOY_INDEX, tmp_path)


@pytest.mark.parametrize(
    "archive",
    [
        make_wheel({"other": b"x"}),
        make_tarball({"other": b"x"}),
        make_tarball({"other": b"x"}, links={TOY_MEMBER: "/etc/hostname"}),
        b"neither zip nor tar",
        make_tarball({TOY_MEMBER: TOY_BYTES})[:-200_000],
        TOY_WHEEL.replace(TOY_BYTES[:50], bytes(50)),
    ],
    ids=["wheel without it", "tarball without it", "link in its place", "no archive", "cut short", "damaged"],
)
def test_bad_archive_is_a_reason(server: StandIn, tmp_path: Path, archive: bytes) -> None:
    server.list_archive(TOY_INDEX.archive, archive)
    with pytest.raises(SourceError, match="package index http"):
        from_index(IndexFile("toy", TOY_INDEX.archive, sha256(archive), TOY_MEMBER), tmp_path)


@pytest.mark.parametrize("make", [make_wheel, make_tarball])
@pytest.mark.parametrize("evil", ["../evil.txt", "{folder}/evil.txt"])
def test_archive_has_no_say_in_where_bytes_go(server: StandIn, tmp_path: Path, make, evil: str) -> None:
    inside = tmp_path / "inside"
    evil = evil.format(folder=tmp_path)
    archive = make({evil: b"evil", TOY_MEMBER: TOY_BYTES})
    server.list_archive(TOY_INDEX.archive, archive)
    for member in (TOY_MEMBER, evil):
        from_index(IndexFile("toy", TOY_INDEX.archive, sha256(archive), member), inside)
    assert {path.name for path in tmp_path.rglob("*")} == {"inside", TOY_INDEX.archive, "toy.bin", "evil.txt"}
    assert not (tmp_path / "evil.txt").exists()


def test_index_is_the_first_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = http://global/simple\n[install]\nindex-url = http://install/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    urls = [find_index()[0]]
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "LORAHUB_EDU_INDEX"):
        monkeypatch.setenv(name, f"http://{name.lower()}/simple/")
        urls.append(find_index()[0])
    monkeypatch.setenv("LORAHUB_EDU_INDEX", "school=http://named/simple")
    urls.append(find_index()[0])
    names = ["install", "pip_index_url", "uv_index_url", "uv_default_index", "lorahub_edu_index", "named"]
    assert urls == [[f"http://{name}/simple/"] for name in names]


def test_setuptools_is_imported_after_the_index_was_asked_for() -> None:
    program = "from lorahub_edu.files.sources import find_index; find_index(); import setuptools"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_of_pip_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://me:secret@school/simple\ncert = /school.pem\nproxy = http://proxy:1\n"
        "extra-index-url = http://one/simple file:///two/simple\n    http://three/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    urls, session = find_index()
    assert urls == ["https://me:secret@school/simple/", "http://one/simple/", "http://three/simple/"]
    assert session.verify == "/school.pem" and session.proxies["https"] == "http://proxy:1"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    urls, session = find_index()
    assert urls == [PYPI_SIMPLE_ENDPOINT] and not session.proxies


def test_extra_index_is_asked_where_the_first_one_fails(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    server.list_archive(TOY_INDEX.archive, TOY_WHEEL)
    monkeypatch.delenv("LORAHUB_EDU_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", closed_address() + "/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", server.url + "/simple")
    assert from_index(TOY_INDEX, tmp_path).read_bytes() == TOY_BYTES


def test_odd_addresses_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDU_INDEX", "file:///media/stick/simple")
    with pytest.raises(SourceError, match="isn't an http.*set LORAHUB_EDU_INDEX"):
        find_index()


def test_password_of_an_index_stays_out_of_messages(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    for url in ("http://me:secret@127.0.0.1:1/simple", server.url.replace("//", "//me:secret@") + "/simple"):
        monkeypatch.setenv("LORAHUB_EDU_INDEX", url)
        with pytest.raises(SourceError, match="package index http://\\*\\*\\*@127.0.0.1") as caught:
            from_index(TOY_INDEX, tmp_path)
        assert "secret" not in str(caught.value)


def test_certificates_that_are_not_there_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # these come before pip's
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "missing.pem"))
    assert "missing.pem" in sources.why_unreachable("https://127.0.0.1:1/simple/", session=find_index()[1])


def test_unreachable_gives_a_reason_and_a_live_server_none(server: StandIn) -> None:
    assert sources.why_unreachable(server.url) is None
    assert sources.why_unreachable("http://[bad") is not None
