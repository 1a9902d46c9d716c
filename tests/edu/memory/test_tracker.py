"""The tracker: bytes counted by hand, for as long as something holds them, by part and by stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorahub_edu.memory.tracker import ACTIVATIONS, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS, StorageTracker


def test_storages_count_once_rounded_and_as_long_as_they_live() -> None:
    tracker = StorageTracker(rounding=512)
    with tracker:
        tracker.enter("work")
        a = torch.empty(1000)  # 4,000 bytes
        view = a[:10].view(5, 2)
        assert tracker.live.total == 4096, "a view holds no bytes of its own"
        b = a + 1
        assert tracker.live.total == 2 * 4096
        a.add_(b)
        assert tracker.live.total == 2 * 4096, "in place nothing is made"
        del a, b
        assert tracker.live.total == 4096, "the view still holds the storage"
        del view
        assert tracker.live.total == 0
    assert tracker.peak.total == 2 * 4096


def test_temporaries_within_an_expression_are_seen() -> None:
    tracker = StorageTracker()
    x = torch.ones(100)
    with tracker:
        tracker.enter("work")
        tracker.add([x], WEIGHTS)
        y = (x * 2 + 1).exp()
    # While exp makes its result, x and the sum before it are there.
    assert tracker.peak.total == 3 * 400 and tracker.live.total == 2 * 400
    assert y.shape == (100,)


def test_parts() -> None:
    tracker = StorageTracker(vocabulary=50)
    weight = nn.Parameter(torch.ones(50, 8))
    tracker.watch_gradients([weight])
    tracker.add([weight], WEIGHTS)
    with tracker:
        tracker.enter("step")
        hidden = torch.ones(4, 8)
        logits = hidden @ weight.t()  # (4, 50)
        assert tracker.live.parts == {
            WEIGHTS: 1600, GRADIENTS: 0, OPTIMIZER: 0, ACTIVATIONS: 4 * 8 * 4, LOGITS: 4 * 50 * 4,
        }  # fmt: skip
        logits.sum().backward()
        del logits
        assert tracker.live.parts[GRADIENTS] == 1600 and tracker.live.parts[LOGITS] == 0
        with tracker.making(OPTIMIZER):
            state = torch.zeros_like(weight)
        assert tracker.live.parts[OPTIMIZER] == state.numel() * 4


def test_each_stage_has_its_own_peak() -> None:
    tracker = StorageTracker()
    with tracker:
        tracker.enter("first")
        a = torch.empty(100)
        tracker.enter("second")
        b = torch.empty(300)
        del b
        tracker.enter("third")
        c = torch.empty(50)
        tracker.enter("first")
        d = torch.empty(10)
    sizes = {stage: moment.total for stage, moment in tracker.peaks.items()}
    assert sizes == {"first": 4 * (100 + 50 + 10), "second": 4 * 400, "third": 4 * 150}
    assert tracker.peak.total == 1600 and (a.numel(), c.numel(), d.numel()) == (100, 50, 10)


@pytest.mark.parametrize("trained", [True, False])
def test_autograd_keeps_what_the_gradients_need(trained: bool) -> None:
    """A linear layer keeps its input for the gradient of its weight; for a frozen weight it keeps nothing."""
    x = torch.ones(64, 32, requires_grad=True)
    weight = nn.Parameter(torch.ones(16, 32), requires_grad=trained)
    tracker = StorageTracker()
    tracker.add([x, weight], WEIGHTS)
    with tracker:
        tracker.enter("forward")
        out = nn.functional.linear(2 * x, weight).sum()
    assert tracker.live.parts[ACTIVATIONS] == (64 * 32 * 4 if trained else 0) + 4
    assert out.requires_grad


@pytest.mark.parametrize("rounding", [1, 512])
def test_empty_tensors_cost_nothing(rounding: int) -> None:
    tracker = StorageTracker(rounding)
    with tracker:
        tracker.enter("work")
        torch.empty(0)
        kept = torch.empty(0, 5)
    assert tracker.peak.total == 0 and kept.numel() == 0
