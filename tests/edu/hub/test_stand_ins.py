"""Stand-ins: every profile has modules of the same names; the zoo is taken only for the base it was trained on."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lorahub_edu.data import tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import compose, stand_ins, zoo
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.models.profiles import PROFILES

TINY = PROFILES["tiny"]


@pytest.fixture
def own_zoo(tmp_path: Path) -> Path:
    """A zoo of two modules that were made for the tiny base, and say so on their cards."""
    cards = stand_ins.cards_for(TINY)
    for name in ("past", "upper"):
        model = tiny.model()
        adapters.inject(model, LoRAConfig(rank=3, alpha=6.0), name, seed=1)
        adapter_files.save_adapter(model, tmp_path / name, name)
        described = asdict(replace(cards[name], strict_after=0.5))
        (tmp_path / name / zoo.CARD_FILE).write_text(json.dumps(described), encoding="utf-8")
    return tmp_path


def test_stand_ins_fit_the_base_and_do_something(tmp_path: Path) -> None:
    files = stand_ins.modules_for(TINY, folder=tmp_path)
    assert len(files) == 20 and [f.path.name for f in files] == stand_ins.names_for(TINY, tmp_path)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        plain = tiny.model()(ids).logits
        seen = []
        for file in files[:3]:
            model = tiny.model()
            adapter_files.put_adapter(model, file)
            seen.append(model(ids).logits)
    assert all(not torch.allclose(logits, plain, atol=1e-3) for logits in seen)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    dtypes = {tensor.dtype for pair in files[0].weights.values() for tensor in pair}
    assert dtypes == {torch.float16}  # as in the shipped zoo, so that what runs with stand-ins runs there
    assert len(compose.stack(files)) == 20  # one rank, one scaling, one base


def test_a_name_gives_the_same_module_and_shares_its_start_with_the_others(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    (past, upper), (again,) = (stand_ins.modules_for(TINY, n, tmp_path) for n in (["past", "upper"], ["past"]))
    assert torch.equal(state, torch.get_rng_state())
    site = next(iter(past.weights))
    assert all(torch.equal(a, b) for a, b in zip(past.weights[site], again.weights[site], strict=True))
    (A1, B1), (A2, B2) = past.weights[site], upper.weights[site]
    assert torch.cosine_similarity(A1.float().flatten(), A2.float().flatten(), 0) > 0.7
    assert abs(torch.cosine_similarity(B1.float().flatten(), B2.float().flatten(), 0)) < 0.2


def test_a_zoo_of_this_base_is_taken(own_zoo: Path) -> None:
    assert stand_ins.has_zoo(TINY, own_zoo) and stand_ins.names_for(TINY, own_zoo) == ["past", "upper"]
    files = stand_ins.modules_for(TINY, ["upper"], own_zoo)
    assert files[0].path == own_zoo / "upper" and files[0].configs[next(iter(files[0].configs))].rank == 3


def test_a_zoo_of_another_base_is_left_alone(own_zoo: Path) -> None:
    laptop = PROFILES["cpu"]
    assert not stand_ins.has_zoo(laptop, own_zoo)
    assert not stand_ins.has_zoo(TINY, own_zoo / "nowhere")


def test_the_shipped_zoo_belongs_to_the_default_profile() -> None:
    if not zoo.names():
        pytest.skip("no zoo is shipped")
    laptop = PROFILES["cpu"]
    assert stand_ins.has_zoo(laptop) and not stand_ins.has_zoo(TINY)
    assert stand_ins.names_for(laptop) == zoo.names()
    assert stand_ins.cards_for(laptop)["past"] == zoo.card("past")
    assert {"past", "upper", "plural", "gerund", "num2words", "words2num"} <= set(zoo.names())  # lesson 06 names them


def test_a_stand_ins_card_claims_nothing() -> None:
    card = stand_ins.cards_for(TINY)["past"]
    assert card.base_model == TINY.base_model and card.base_model_sha256 == pretrained.base_sha256(TINY.base_model)
    assert card.instruction == tasks.get("past").instructions[0] and card.device == "made, not trained"
    assert all(math.isnan(getattr(card, field)) for field in ("loss_after", "strict_after", "answer_only_after"))


def test_an_unknown_name_is_answered_with_near_ones(own_zoo: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", own_zoo):
        with pytest.raises(CourseError, match=r"no module 'pasd'.*past"):
            stand_ins.modules_for(TINY, ["pasd"], folder)
