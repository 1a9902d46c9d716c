"""The sources' claims that lessons put to the test, each with the figure its source gives."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub_edu.errors import CourseError, near_matches


@dataclass(frozen=True)
class Claim:
    """A claim by its id (R: LoRA on LLaMA; H: LoRAHub; I: intruders; X: beyond), its statement, the source's figure."""

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
            "R7",
            "LoRA is at least as good as full fine-tuning, BitFit, prompt and prefix tuning and adapters.",
            "GPT-3 175B: 74.0 / 91.6 / 53.4 at 37.7M against 73.8 / 89.5 / 52.0 in full",
        ),
        Claim("R8", "LoRA can be combined with prefix tuning and with adapters."),
        Claim(
            "R9",
            "LoRA fine-tunes LLaMA-7B on Alpaca on one 24 GB GPU.",
            "21 GB, 192 min on an A100 for 62,400 iterations",
        ),
        Claim(
            "R10",
            "LLaMA-Adapter fine-tunes LLaMA-7B at about LoRA's cost.",
            "22 GB and 162 min; LoRA 21 GB and 192 min",
        ),
        Claim(
            "R11",
            "Full fine-tuning of LLaMA-7B needs several GPUs and is 30 to 40 times dearer than LoRA.",
            "4 GPUs with 22 GB each for 1,956 min; LoRA one with 21 GB for 192 min",
        ),
        Claim("R12", "Alpaca came from four Self-Instruct steps; 2,000 rows are held out.", "49,759 + 2,000 rows"),
        Claim("R13", "Perplexity, BLEU and ROUGE each miss something about generated text."),
        Claim(
            "R14",
            "The same prompt to the base and to the LoRA model gives another kind of text.",
            "11.95 tokens/s base, 30.76 LoRA",
        ),
        Claim("R15", "Merged inference needs less memory than unmerged.", "13.56 GB against 27.65 GB"),
        Claim("H1", "COMPOSE: A = Σ wᵢAᵢ and B = Σ wᵢBᵢ with weights of any sign; this is not Σ wᵢBᵢAᵢ."),
        Claim("H2", "The modules must share one rank."),
        Claim("H3", "Candidates are drawn at random; a better choice beforehand is open.", "20 of about 200"),
        Claim(
            "H4",
            "ADAPT: five examples are enough to find weights that help, by minimising cross-entropy + α·Σ|wᵢ| without "
            "gradients.",
            "α = 0.05, w in [-1.5, 1.5], at most 40 steps",
        ),
        Claim("H5", "The search is CMA-ES, which Shiwa chooses.", "CMA-ES"),
        Claim("H6", "FLAN-T5-large is adapted with 20 of about 200 released modules.", "20 of about 200"),
        Claim("H7", "It is judged on BIG-Bench Hard by exact match.", "27 tasks"),
        Claim(
            "H8",
            "The baselines tune on the same five examples: in full, by LoRA and by IA3.",
            "3e-5, 2e-4, 2e-4; 40 epochs, 3 runs",
        ),
        Claim("H9", "A query costs as many tokens as zero-shot, far fewer than in-context."),
        Claim("H10", "LoRAHub is better than IA3 and behind LoRA and full tuning.", "+3.1 points over IA3"),
        Claim("H11", "One-off tasks are cheaper in-context, repeated ones with LoRAHub."),
        Claim("H12", "Composing beats retrieving the single best module."),
        Claim("H13", "The search finds the modules that matter."),
        Claim("H14", "It works for models that were not instruction-tuned.", "T5"),
        Claim("H15", "The rank matters little for FLAN-T5 and more for T5."),
        Claim("H16", "More modules bring more variance and a higher maximum."),
        Claim("H17", "It needs memory like inference.", "about 5 GB, full fine-tuning about 40 GB"),
        Claim("H18", "Gradient descent on the weights would need a costly hyper-network."),
        Claim(
            "X1",
            "A composed LoRAHub module has more intruder dimensions than its parts, and negative weights cancel some.",
        ),
        Claim("I1", "The cosines of tuned and pretrained singular vectors show, as a picture, how a matrix moved."),
        Claim("I2", "That similarity is much lower after LoRA than after full fine-tuning.", "figure 2b"),
        Claim(
            "I3",
            "An intruder dimension is one of the k strongest singular vectors whose largest cosine with all pretrained "
            "ones is below ε; an algorithm counts them.",
            "k = 10, ε = 0.5 in the released code",
        ),
        Claim("I4", "At equal task loss LoRA has intruder dimensions and full fine-tuning has none.", "figure 5"),
        Claim("I5", "They are there even where LoRA learns the task worse than full fine-tuning.", "figure 5"),
        Claim("I6", "They vanish above a rank.", "still there at r = 256, gone at r = 2048"),
        Claim(
            "I7",
            "The update of full fine-tuning has a higher effective rank than LoRA's, even at full rank.",
            "figure 6",
        ),
        Claim("I8", "With tasks learned in a row, low ranks forget more.", "six tasks, figure 8"),
        Claim(
            "I9",
            "Forgetting of the pretraining text over the rank is U-shaped.",
            "r = 1 bad, r = 64 least, r = 768 overfits",
        ),
        Claim("I10", "High ranks need a rank-stabilised α.", "α = 2r"),
        Claim("I11", "r ≤ 8 suits the task itself, r = 64 generalises better."),
        Claim(
            "I12",
            "Scaling the intruders' singular values down lessens forgetting at little cost in task loss.",
            "λ about 0.7 to 0.9",
        ),
        Claim("X2", "Gradient descent on the weights does better than CMA-ES in equal time."),
        Claim(
            "X3", "Equal weights, random weights, random search or the best single module do not already reach LoRAHub."
        ),
        Claim("X4", "Forgetting can be foretold from the weights, before any text is scored."),
        Claim(
            "X5",
            "Exact composition with a greedy search beats the paper's composition with CMA-ES, and the best single "
            "module, at equal evaluations on fresh targets.",
            "bar set beforehand: 8 points",
        ),
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
