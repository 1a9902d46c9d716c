"""The sources' claims that lessons put to the test, each with the figure its source gives."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edu.errors import CourseError, near_matches


@dataclass(frozen=True)
class Claim:
    """A claim by its id: R for LoRA on LLaMA and Alpaca; its statement in one sentence and the source's figure."""

    id: str
    statement: str
    source_figure: str = ""


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim("R1", "Adding ΔW to W and adding ΔW·x to W·x are the same computation."),
        Claim("R2", "With B = 0 training starts exactly at the pretrained model.", "ΔW = 0"),
        Claim("R3", "The rank trades capacity against parameters, so several ranks must be tried."),
        Claim("R4", "The factor α sets how strongly the adapter acts.", "α = 1 by default"),
        Claim("R5", "Two thin matrices need far fewer parameters than the full update.", "50,000 → 3,000 at r = 5"),
        Claim(
            "R6",
            "Merging removes the extra cost of inference; kept apart, one base serves many small adapters.",
            "7B: 23 GB checkpoint, 8 MB adapter at r = 8",
        ),
        Claim(
            "R9",
            "LoRA fine-tunes LLaMA-7B on Alpaca on one 24 GB GPU.",
            "21 GB, 192 min on an A100 for 62,400 iterations",
        ),
        Claim("R12", "Alpaca came from four Self-Instruct steps; 2,000 rows are held out.", "49,759 + 2,000 rows"),
        Claim("R13", "Perplexity, BLEU and ROUGE each miss something about generated text."),
        Claim(
            "R14",
            "The same prompt to the base and to the LoRA model gives another kind of text.",
            "11.95 tokens/s base, 30.76 LoRA",
        ),
        Claim("R15", "Merged inference needs less memory than unmerged.", "13.56 GB against 27.65 GB"),
    )
}


def get_claim(claim: str) -> Claim:
    """The claim of that id.

    Raises:
        CourseError: there is none.
    """
    if claim not in CLAIMS:
        raise CourseError(f"There is no claim {claim!r}. {near_matches(claim, CLAIMS)}")
    return CLAIMS[claim]
