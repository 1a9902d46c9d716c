"""The lines of the comparison of ways to adapt; read without torch, so that a mistyped line is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorahub_edu.errors import CourseError, near_matches


@dataclass(frozen=True)
class Approach:
    """A line of the comparison: its label on a page, its kind, and the settings of its search or its tuning."""

    label: str
    kind: str  # "base", "context", "fixed", "single", "merge", "search" or "tune"
    settings: dict = field(default_factory=dict)


METHODS = {
    "zero_shot": Approach("zero-shot", "base"),
    "in_context": Approach("5-shot in-context", "context"),
    "average": Approach("average of all, 1/N", "fixed"),
    "random_weights": Approach("random weights, no search", "fixed"),
    "single": Approach("best single module", "single"),
    "random_40": Approach("random search, 40", "search", {"optimizer": "random", "budget": 40}),
    "ngopt_40": Approach("NGOpt, 40 (the released optimizer)", "search", {"optimizer": "ngopt", "budget": 40}),
    "released_40": Approach(
        "NGOpt, 40, and the released objective", "search", {"optimizer": "ngopt", "budget": 40, "original_scale": True}
    ),
    "cma_40": Approach("CMA-ES, 40", "search", {"optimizer": "cma", "budget": 40}),
    "cma_120": Approach("CMA-ES, 120", "search", {"optimizer": "cma", "budget": 120}),
    "cma_l1_0": Approach("CMA-ES, 40, α = 0", "search", {"optimizer": "cma", "budget": 40, "l1": 0.0}),
    "cma_l1_025": Approach("CMA-ES, 40, α = 0.25", "search", {"optimizer": "cma", "budget": 40, "l1": 0.25}),
    "gradient_40": Approach("gradient on w, 40 steps", "search", {"optimizer": "gradient", "budget": 40}),
    "cma_exact_120": Approach(
        "exact composition, CMA-ES, 120", "search", {"optimizer": "cma", "budget": 120, "composition": "exact"}
    ),
    "greedy_paper_120": Approach(
        "the paper's composition, greedy, 120", "search", {"optimizer": "greedy", "budget": 120}
    ),
    "auto_60": Approach("auto, 60", "search", {"optimizer": "auto", "budget": 60}),
    "auto": Approach("auto, 120 (exact, greedy)", "search", {"optimizer": "auto"}),
    "lora": Approach("LoRA on the five, paper's rate", "tune"),
    "lora_fast": Approach("LoRA on the five, the zoo's rate", "tune"),
    "ia3": Approach("IA3 on the five", "tune"),
    "full": Approach("full tuning on the five", "tune"),
}
MERGERS = {
    "arithmetic": "task arithmetic", "svd": "SVD", "ties": "TIES", "dare": "DARE", "dare_ties": "DARE and TIES",
    "pruned": "magnitude pruning", "knots": "KnOTS",
}  # fmt: skip
for _kind, _label in MERGERS.items():
    METHODS[_kind] = Approach(_label, "merge")
    METHODS[f"{_kind}_tuned"] = Approach(f"{_label}, scaled on the five", "merge")
METHODS["arrow"] = Approach("Arrow routing", "merge")
METHODS["soups"] = Approach("LoRA Soups, a weight a layer", "tune")


def get_approach(method: str) -> Approach:
    """The approach of that name, or a CourseError that names near matches."""
    if method not in METHODS:
        raise CourseError(f"There is no method {method!r}. {near_matches(method, METHODS)}")
    return METHODS[method]
