"""The optimizer step that everything trains through: equal to torch's, all or nothing, exact in short dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from lorahub_edu.training.descent import Descent, DivergedError, schedule


def parameter(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.linspace(1.0, 2.0, 5).to(dtype))


def loss_of(weight: Tensor, part: int) -> Tensor:
    return ((weight.float() - 3.0) ** 2).sum() / (part + 2)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_equals_torch_step_by_step(clip_norm: float | None) -> None:
    ours, theirs = parameter(), parameter()
    descent = Descent([ours], schedule("cosine", 1e-2, warmup_steps=2, steps=8), weight_decay=0.1, clip_norm=clip_norm)
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    rates = get_scheduler("cosine", optimizer, 2, 8)
    for number in range(1, 9):
        step = descent.step(loss_of(ours, part) for part in range(3))
        expected = sum(loss_of(theirs, part) for part in range(3))
        expected.backward()
        norm = theirs.grad.norm().item()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([theirs], clip_norm)
        assert descent.steps_done == number
        assert (step.loss, step.gradient_norm) == pytest.approx((expected.item(), norm), rel=1e-6)
        assert step.learning_rate == rates.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert ours.grad is None


def test_masters_keep_steps_that_bfloat16_would_lose() -> None:
    short, lost = parameter(torch.bfloat16), parameter(torch.bfloat16)
    start = short.detach().clone()
    with_masters = Descent([short], lambda _step: 1e-4, masters=[short])
    without = Descent([lost], lambda _step: 1e-4)
    for _ in range(100):
        with_masters.step([loss_of(short, 0)])
        without.step([loss_of(lost, 0)])
    assert torch.equal(lost, start)
    assert (short > start).all()
    assert with_masters.values[0].dtype == torch.float32
    assert torch.equal(with_masters.values[0].bfloat16(), short)


@pytest.mark.parametrize("masters", [False, True])
def test_a_step_that_fails_changes_nothing(masters: bool) -> None:
    weight = parameter()
    descent = Descent([weight], lambda _step: 0.1, masters=[weight] if masters else None)
    descent.step([loss_of(weight, 0)])
    before = weight.detach().clone()

    def interrupted():
        yield loss_of(weight, 0)
        raise KeyboardInterrupt

    with pytest.raises(
        DivergedError, match="The loss became nan at step 2, at learning rate 1.00e-01.*those of step 1"
    ):
        descent.step([loss_of(weight, 0), loss_of(weight, 0) * torch.nan])
    with pytest.raises(DivergedError, match="A gradient became nan at step 2"):
        descent.step([torch.sqrt(weight - weight.detach()).sum() * 0.0])
    with pytest.raises(KeyboardInterrupt):
        descent.step(interrupted())
    assert torch.equal(weight, before) and weight.grad is None and descent.steps_done == 1
