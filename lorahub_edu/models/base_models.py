"""The base models that the course knows: where each comes from, its licence, and what its rows begin and end with."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.models import tiny


@dataclass(frozen=True)
class BaseModel:
    """A base model of the course: from one pinned file (`asset`) or straight from the hub (`repo`, `revision`).

    `kind` is "causal" or "encoder-decoder". Its tokenizer puts `start` before a text; `end` closes an answer. The
    makers of a `gated` model give access on request.
    """

    name: str
    licence: str
    kind: str = "causal"
    asset: str | None = None
    repo: str | None = None
    revision: str | None = None
    start: str = ""
    end: str = "</s>"
    gated: bool = False


BASE_MODELS = {
    base.name: base
    for base in (
        BaseModel(tiny.NAME, licence="Apache-2.0", end=tiny.SPECIAL_TOKENS[2]),
        BaseModel(tiny.T5_NAME, licence="Apache-2.0", kind="encoder-decoder"),
        BaseModel("SmolLM2-135M-Instruct", licence="Apache-2.0", asset="SmolLM2-135M-Instruct", end="<|im_end|>"),
        BaseModel(
            "open_llama_7b_v2",
            licence="Apache-2.0",
            repo="openlm-research/open_llama_7b_v2",
            revision="main",
            start="<s>",
        ),
        BaseModel(
            "Llama-2-7b",
            licence="Llama 2 Community License",
            repo="meta-llama/Llama-2-7b-hf",
            revision="main",
            start="<s>",
            gated=True,
        ),
        BaseModel(
            "Llama-3-8B",
            licence="Meta Llama 3 Community License",
            repo="meta-llama/Meta-Llama-3-8B",
            revision="main",
            start="<|begin_of_text|>",
            end="<|end_of_text|>",
            gated=True,
        ),
        # The base of the paper's modules (Huang et al. 2023, section 4.1; claim H6).
        BaseModel(
            "flan-t5-large",
            licence="Apache-2.0",
            kind="encoder-decoder",
            repo="google/flan-t5-large",
            revision="main",
        ),
    )
}


def get_base(name: str) -> BaseModel:
    """The course's base model of that name; its name on the hub serves too. Raises CourseError when there is none."""
    names = {base.repo: base.name for base in BASE_MODELS.values() if base.repo} | {name: name for name in BASE_MODELS}
    if name not in names:
        raise CourseError(f"There is no base model {name!r}. {near_matches(name, names)}")
    return BASE_MODELS[names[name]]


def access(base: BaseModel) -> str:
    """How to get access to a gated model; "" for any other."""
    if not base.gated:
        return ""
    return (
        f"{base.repo} is given on request ({base.licence}): accept the licence on its page of the hub, wait until "
        f"access is granted, and log in here with `hf auth login`."
    )
