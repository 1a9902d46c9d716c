"""The catalogue's own promises."""

from __future__ import annotations

from pathlib import Path

from lorahub_edu.files import assets


def test_catalogue_can_share_one_folder() -> None:
    editions = {edition for asset in assets.ASSETS.values() for edition in asset.editions}  # two may share one
    assert len({edition.filename for edition in editions}) == len(editions)
    assert all(len(edition.sha256) == 64 and (edition.hub or edition.index) for edition in editions)
    assert all(Path(edition.filename).name == edition.filename for edition in editions)
