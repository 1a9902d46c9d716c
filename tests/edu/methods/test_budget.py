"""Sizes solved for a number of parameters: nearest by trying all sizes, and a clear word where none comes near."""

from __future__ import annotations

import pytest
from attached_methods import TRAINED

from lorahub_edu.errors import CourseError
from lorahub_edu.methods import kinds
from lorahub_edu.methods.attach import attach, count_trainable, fit_budget
from lorahub_edu.models import tiny

PER_SIZE = {  # parameters that one more unit of size adds, and those that come on top, by hand
    "lora": (4 * (256 + 192), 0),
    "dora": (4 * (256 + 192), 4 * (128 + 64)),
    "prompt": (128, 0),
    "p_tuning": (128, 3 * (128 * 128 + 128)),
    "prefix": (4 * 2 * 64, 0),
    "llama_adapter": (2 * 128, 2),
    "houlsby": (8 * (2 * 128 + 1), 8 * 128),
    "pfeiffer": (4 * (2 * 128 + 1), 4 * 128),
}


@pytest.mark.parametrize("name", PER_SIZE)
@pytest.mark.parametrize("budget", [10_000, 49_900, 60_001])
def test_no_other_size_comes_nearer(name: str, budget: int) -> None:
    step, fixed = PER_SIZE[name]
    largest = {"lora": 64, "dora": 64, "houlsby": 128, "pfeiffer": 128}.get(name, 1023)
    counts = [fixed + step * size for size in range(1, largest + 1)]
    nearest = min(counts, key=lambda count: abs(count - budget))
    if not budget / 2 <= nearest <= budget * 2:
        with pytest.raises(CourseError, match=f"nearest possible is {nearest:,}"):
            attach(tiny.model(), name, budget=budget)
    else:
        assert attach(tiny.model(), name, budget=budget).trainable == nearest


def test_a_share_is_one_of_the_models_parameters() -> None:
    made = attach(tiny.model(), "lora", budget=0.0156)
    assert made.trainable == TRAINED["lora"] == 14_336  # 1.56 % of 918,656 is 14,331


def test_a_combination_shares_its_budget_evenly() -> None:
    made = attach(tiny.model(), ["lora", "prefix"], budget=14_336)
    assert made.parts["lora"]["rank"] == 4 and made.parts["prefix"]["length"] == 14


def test_settings_that_were_given_stay() -> None:
    made = attach(tiny.model(), "lora", budget=10_240, target_modules=["k_proj"])
    assert made.parts["lora"]["rank"] == 13  # 4 x 13 x (128 + 64) = 9,984
    assert made.trainable == 9_984


def test_a_fixed_size_meets_its_own_budget_only() -> None:
    assert attach(tiny.model(), "ia3", budget=2_000).trainable == TRAINED["ia3"]
    with pytest.raises(CourseError, match="2,048, a number that is fixed"):
        attach(tiny.model(), "ia3", budget=100_000)


def test_counting_touches_no_model_and_needs_no_bitsandbytes() -> None:
    model = tiny.model()
    before = list(model.state_dict())
    for name in kinds.METHODS:
        assert count_trainable(model, kinds.parts_of(name, {})) == TRAINED[name]
    assert list(model.state_dict()) == before and all(p.requires_grad for p in model.parameters())
    assert fit_budget(model, kinds.parts_of("qlora", {}), 7_168)["qlora"]["rank"] == 4


@pytest.mark.parametrize("budget", [0, -5, True, "many", float("nan"), float("inf")])
def test_what_is_no_budget_is_refused(budget) -> None:
    with pytest.raises(CourseError, match="A budget is a number"):
        attach(tiny.model(), "lora", budget=budget)
