"""The lines of the comparison of methods; read without torch, so that a mistyped line is answered at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.methods.kinds import get_method


@dataclass(frozen=True)
class Variant:
    """A line of the comparison: the methods that it attaches, with their settings, and the learning rates tried."""

    methods: Mapping[str, Mapping]
    rates: tuple[float, ...]  # three, half a decade apart, about the usual rate of the method
    matched: bool = False  # in size: it trains about as many parameters as LoRA does by default

    @property
    def label(self) -> str:
        """The name on a page."""
        settings = [f"{key} {value}" for values in self.methods.values() for key, value in values.items()]
        label = " + ".join(get_method(name).label for name in self.methods)
        return label + (f", {', '.join(settings)}" if settings else "")


def _alone(name: str, *rates: float, matched: bool = False, **settings: object) -> Variant:
    return Variant({name: settings}, rates, matched)


VARIANTS = {
    "full": _alone("full", 3e-5, 1e-4, 3e-4),
    "bitfit": _alone("bitfit", 3e-3, 1e-2, 3e-2),
    "ln_tuning": _alone("ln_tuning", 3e-3, 1e-2, 3e-2),
    "ia3": _alone("ia3", 3e-3, 1e-2, 3e-2),
    "prompt": _alone("prompt", 3e-2, 1e-1, 3e-1),
    "p_tuning": _alone("p_tuning", 1e-3, 3e-3, 1e-2),
    # At the full size of PEFT's normal numbers a prefix starts many nats away from the base, and stays behind.
    "prefix": _alone("prefix", 1e-2, 3e-2, 1e-1, matched=True, scale=0.1),
    "llama_adapter": _alone("llama_adapter", 9e-3, 3e-2, 9e-2),
    "houlsby": _alone("houlsby", 1e-3, 3e-3, 1e-2, matched=True),
    "pfeiffer": _alone("pfeiffer", 1e-3, 3e-3, 1e-2, matched=True),
    "lora": _alone("lora", 1e-3, 3e-3, 1e-2),
    "rslora": _alone("rslora", 1e-3, 3e-3, 1e-2),
    "dora": _alone("dora", 1e-3, 3e-3, 1e-2),
    "qlora": _alone("qlora", 1e-3, 3e-3, 1e-2),
    "lora+prefix": Variant({"lora": {}, "prefix": {"scale": 0.1}}, (1e-3, 3e-3, 1e-2), matched=True),
    "lora+houlsby": Variant({"lora": {}, "houlsby": {}}, (1e-3, 3e-3, 1e-2), matched=True),
}


def get_variant(name: str) -> Variant:
    """The line of the comparison of that name, or a CourseError that names near matches."""
    if name not in VARIANTS:
        raise CourseError(f"There is no line {name!r} in the comparison. {near_matches(name, VARIANTS)}")
    return VARIANTS[name]
