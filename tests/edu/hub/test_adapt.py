"""Adapting on the tiny model: what is searched for and chosen, against merged float64 weights and plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import hub_modules
import numpy as np
import pytest
import torch
from hub_modules import deltas, merged, plain_losses, random_module, random_modules

from lorahub_edu.errors import CourseError
from lorahub_edu.hub import adapt as adapt_room
from lorahub_edu.hub.adapt import AUTO, BUDGET, L1, SearchConfig, adapt
from lorahub_edu.hub.compose import stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import tiny
from lorahub_edu.scoring import score

ROWS = hub_modules.rows(2)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def files(model):
    return random_modules(model)


def fixed(*batches: list[list[float]]) -> Callable:
    """A search that yields these batches, whatever it is sent."""

    def given(space, budget, seed):
        for batch in batches:
            yield np.array(batch)

    return given


def float64_loss(files, weights, composition: str = "paper") -> float:
    return plain_losses(merged(tiny.model(), deltas(files, weights, composition)), ROWS)[0]


# What is searched for.


@pytest.mark.parametrize("optimizer", ["cma", "random", "greedy", "gradient", "ngopt", "shiwa"])
def test_every_optimizer_finds_something_better_than_no_module(model, files, optimizer: str) -> None:
    found = adapt(model, files, ROWS, SearchConfig(optimizer, budget=14, seed=1))
    assert found.loss + L1 * np.abs(found.weights).mean() < score(model, ROWS).losses[0]
    assert len(found.history) == 14 and np.abs(found.history.weights).max() <= 1.5
    best = int(np.argmin(found.history.objectives))
    assert np.array_equal(found.weights, found.history.weights[best]) and found.loss == found.history.losses[best]
    assert found.loss == pytest.approx(float64_loss(files, found.weights), abs=1e-5)
    again = adapt(model, files, ROWS, SearchConfig(optimizer, budget=14, seed=1))
    assert np.array_equal(found.history.weights, again.history.weights)  # the seed decides


@pytest.mark.parametrize("optimizer", ["cma", "random"])
def test_another_seed_is_another_search(model, files, optimizer: str) -> None:
    one, two = (adapt(model, files, ROWS[:1], SearchConfig(optimizer, budget=10, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(one.history.weights, two.history.weights)


@pytest.mark.parametrize(("original_scale", "divisor"), [(False, 1), (True, len(ROWS))])
def test_the_objective_is_the_loss_and_the_mean_weight(model, files, original_scale: bool, divisor: int) -> None:
    search = fixed([[0.5, -1.0, 0.0], [0.1, 0.1, 0.1]], [[1.0, 1.0, 1.0]])
    found = adapt(model, files, ROWS, SearchConfig(search, l1=0.2, original_scale=original_scale))
    expected = [float64_loss(files, weights) for weights in found.history.weights]
    assert found.history.losses == pytest.approx(expected, abs=1e-5)
    penalties = 0.2 * np.array([0.5, 0.1, 1.0])
    assert found.history.objectives == pytest.approx(np.array(expected) / divisor + penalties, abs=1e-5)
    best = found.history.best_so_far()
    assert best.tolist() == [min(found.history.objectives[: i + 1]) for i in range(3)]
    assert (np.diff(found.history.seconds) >= 0).all() and found.history.seconds[0] == found.history.seconds[1]


def test_the_strict_share_is_that_of_the_candidate(model, files) -> None:
    found = adapt(model, files, ROWS, SearchConfig(fixed([[1.0, 0.0, 0.0]])))
    twin = merged(tiny.model(), deltas(files, (1, 0, 0), "paper"))
    assert found.history.strict[0] == score(twin, ROWS).strict.mean()


@pytest.mark.parametrize("composition", ["paper", "exact"])
def test_the_gradient_search_is_sent_the_objectives_slope(files, composition: str) -> None:
    model, sent, weights = tiny.model(), [], np.array([0.4, -0.3, 0.8])

    def probe(space, budget, seed):
        sent.append((yield weights[None]))

    probe.needs_gradient = True
    found = adapt(model, files, ROWS, SearchConfig(probe, composition=composition, l1=0.3))
    objectives, slopes = sent[0]
    assert objectives == pytest.approx(found.history.objectives)

    def objective(w: np.ndarray) -> float:
        return float64_loss(files, w, composition) + 0.3 * np.abs(w).mean()

    numeric = [(objective(weights + step) - objective(weights - step)) / 1e-2 for step in 5e-3 * np.eye(3)]
    assert slopes[0] == pytest.approx(numeric, abs=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())  # the base collects none


def test_auto_is_the_greedy_search_on_the_exact_composition(model, files) -> None:
    auto = adapt(model, files, ROWS, SearchConfig(budget=20))
    named = adapt(model, files, ROWS, SearchConfig(AUTO["optimizer"], budget=20, composition=AUTO["composition"]))
    assert np.array_equal(auto.history.weights, named.history.weights) and auto.algorithm == named.algorithm
    assert auto.composition == "exact" and next(iter(auto.module.configs.values())).rank % 4 == 0
    assert adapt(model, files, ROWS[:1], SearchConfig("random")).composition == "paper"


def test_the_budget_is_the_papers_or_autos(model, files, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = adapt_room.make_search

    def make_search(optimizer, space, budget, seed, **options):
        asked.append(budget)
        return real("random", space, 2, seed)

    monkeypatch.setattr(adapt_room, "make_search", make_search)
    adapt(model, files, ROWS[:1], SearchConfig("cma"))
    adapt(model, files, ROWS[:1])
    assert asked == [BUDGET, AUTO["budget"]] == [40, 120]


def test_nevergrad_says_which_algorithm_it_chose(model, files) -> None:
    twenty = [*files, *(random_module(model, seed) for seed in range(3, 20))]
    stacked = stack(twenty)
    monkey = adapt(model, stacked, ROWS[:1], SearchConfig("ngopt", budget=40))
    assert "NGOpt" in monkey.algorithm and "Cobyla" in monkey.algorithm  # at 20 weights and 40 steps, no CMA-ES
    assert len(monkey.history) == 40


def test_options_reach_the_search(model, files) -> None:
    found = adapt(model, files, ROWS[:1], SearchConfig("greedy", budget=1, options={"start": [0.5, 0.0, -0.5]}))
    assert found.weights.tolist() == [0.5, 0.0, -0.5]
    with pytest.raises(CourseError, match="no option 'sigmaa'. Did you mean 'sigma'"):
        adapt(model, files, ROWS[:1], SearchConfig("cma", options={"sigmaa": 1.0}))


def test_one_module_is_enough(model, files) -> None:
    for optimizer in ("auto", "cma", "ngopt", "gradient"):
        found = adapt(model, files[:1], ROWS[:2], SearchConfig(optimizer, budget=8))
        assert found.weights.shape == (1,) and len(found.history) == 8


# What comes out.


@pytest.mark.parametrize("composition", ["paper", "exact"])
def test_the_composed_module_has_the_loss_that_was_promised(model, files, composition: str) -> None:
    found = adapt(model, files, ROWS, SearchConfig("random", budget=10, composition=composition))
    adapted = tiny.model()
    adapter_files.put_adapter(adapted, found.module)
    assert score(adapted, ROWS).losses[0] == pytest.approx(found.loss, abs=1e-5)


def test_top_weights_come_by_size_and_without_zeros(model, files) -> None:
    found = adapt(model, files, ROWS[:1], SearchConfig(fixed([[0.2, -0.9, 0.0]])))
    assert found.top() == [("m1", -0.9), ("m0", 0.2)] and found.top(1) == [("m1", -0.9)]


@pytest.mark.parametrize("lazy", [False, True], ids=["model", "function"])
def test_the_final_model_chooses_among_the_best(files, lazy: bool) -> None:
    """The search's model is spoilt, so its ranking is wrong; the final model's must be the one that counts."""
    sound, spoilt = tiny.model(), tiny.model(seed=3)
    candidates = np.random.default_rng(0).uniform(-1.5, 1.5, (12, 3))
    candidates[5] = candidates[4]  # the same candidate twice must not take two finalists' places
    search = fixed(candidates.tolist())
    without = adapt(spoilt, files, ROWS, SearchConfig(search))
    found = adapt(spoilt, files, ROWS, SearchConfig(search), final_model=(lambda: sound) if lazy else sound)
    order = np.argsort(without.history.objectives, kind="stable")
    finalists = list(dict.fromkeys(tuple(candidates[i]) for i in order))[: adapt_room.FINALISTS]
    objectives = [float64_loss(files, w) + L1 * np.abs(w).mean() for w in finalists]
    best = finalists[int(np.argmin(objectives))]
    assert tuple(found.weights) == best and tuple(without.weights) == finalists[0] != best
    assert found.loss == pytest.approx(float64_loss(files, best), abs=1e-5)
    assert found.history.losses == pytest.approx(without.history.losses)  # the history is the search's own
    itself = adapt(sound, files, ROWS, SearchConfig(search), final_model=sound)
    assert np.array_equal(itself.weights, adapt(sound, files, ROWS, SearchConfig(search)).weights)


def test_the_model_is_left_as_it_was_also_when_the_caller_interrupts(files) -> None:
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupt(history) -> None:
        assert len(history) == 20
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(model, files, ROWS, SearchConfig("random"), on_batch=interrupt)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_progress_shows_best_loss_and_top_weights(model, files, capsys: pytest.CaptureFixture) -> None:
    found = adapt(model, files, ROWS[:1], SearchConfig(fixed([[0.2, -0.9, 0.0]]), budget=1), progress=True)
    shown = capsys.readouterr().err
    assert f"best loss {found.loss:.3f}: m1 -0.90 m0 +0.20" in shown and "1/1" in shown


# Failures and bad input.


def test_a_candidate_that_fails_is_counted_and_not_fatal(model, files) -> None:
    huge = replace(files[2], weights={site: (A * 1e30, B * 1e30) for site, (A, B) in files[2].weights.items()})
    modules = [*files[:2], huge]
    found = adapt(model, modules, ROWS, SearchConfig(fixed([[0, 0, 1], [0.5, 0, 0], [1, 0, 1e-3]])))
    assert found.history.failed == 2 and np.isnan(found.history.losses).tolist() == [True, False, True]
    assert found.weights.tolist() == [0.5, 0, 0]
    assert np.isinf(found.history.best_so_far()[0]) and np.isfinite(found.history.best_so_far()[1:]).all()
    with pytest.raises(CourseError, match="All 1 candidates gave a loss that is not finite"):
        adapt(model, modules, ROWS, SearchConfig(fixed([[0, 0, 1]])))


@pytest.mark.parametrize("optimizer", ["cma", "greedy", "ngopt"])
def test_a_search_goes_on_around_failures(model, files, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    real = Population.score

    def failing(self, weights, rows):
        scores = real(self, weights, rows)
        return replace(scores, losses=np.where(np.asarray(weights)[:, 1] > 0.05, np.nan, scores.losses))

    monkeypatch.setattr(Population, "score", failing)
    found = adapt(model, files, ROWS, SearchConfig(optimizer, budget=14))
    assert 0 < found.history.failed == (found.history.weights[:, 1] > 0.05).sum() < 14
    assert found.loss == np.nanmin(
        found.history.losses[found.history.objectives == np.nanmin(found.history.objectives)]
    )
    assert found.weights[1] <= 0.05 and len(found.history) == 14


def test_bad_input(model, files) -> None:
    with pytest.raises(CourseError, match="no examples to adapt to: give at least one"):
        adapt(model, files, [])
    with pytest.raises(CourseError, match="no module to compose: give at least one"):
        adapt(model, [], ROWS)
    with pytest.raises(CourseError, match="budget of 3 is below one generation of CMA-ES, which has 7"):
        adapt(model, files, ROWS, SearchConfig("cma", budget=3))
    with pytest.raises(CourseError, match="Did you mean .*'greedy'"):
        adapt(model, files, ROWS, SearchConfig("greeedy"))
    with pytest.raises(CourseError, match="the budget is 0"):
        adapt(model, files, ROWS, SearchConfig("random", budget=0))
    with pytest.raises(CourseError, match="no composition 'exakt'"):
        adapt(model, files, ROWS, SearchConfig(composition="exakt"))
    with pytest.raises(CourseError, match="ended without a candidate"):
        adapt(model, files, ROWS, SearchConfig(fixed()))
    mixed = [files[0], random_module(model, 1, rank=2, alpha=4.0)]
    with pytest.raises(CourseError, match="'m0' and 'm1' can't be composed: their ranks differ, 4 and 2"):
        adapt(model, mixed, ROWS, SearchConfig("cma"))
    assert adapt(model, mixed, ROWS, SearchConfig(budget=4)).composition == "exact"  # which takes any ranks
