"""The searches keep one protocol; nevergrad's are nevergrad's own, and the greedy one does what it says."""

from __future__ import annotations

import subprocess
import sys

import nevergrad
import numpy as np
import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.hub import searches
from lorahub_edu.hub.cmaes import CMAES
from lorahub_edu.hub.searches import Space, chosen_optimizer, make_search, nevergrad_search

BLIND = sorted({*searches.SEARCHES, *searches.PAPERS} - {"gradient"})
# nevergrad's by its own names too: evolution, swarms, and its CMA under the name that ours doesn't take
NAMES = [*BLIND, "CMAbounded", "TwoPointsDE", "PSO", "OnePlusOne"]
SPACE = Space(20)


def loss(X: np.ndarray) -> np.ndarray:
    """A bowl whose lowest point has some weights beyond the bounds, tilted so that coordinates depend on each other."""
    optimum = np.linspace(-1.0, 2.0, X.shape[1])
    return ((X - optimum) ** 2).mean(1) + (X - optimum).mean(1) ** 2


def batches(search: searches.Search, objective=loss) -> list[np.ndarray]:
    seen = [next(search)]
    while True:
        try:
            seen.append(search.send(objective(seen[-1])))
        except StopIteration:
            return seen


def run_search(search: searches.Search, objective=loss) -> tuple[np.ndarray, np.ndarray]:
    """All M candidates of a search in order, (M, N), and their losses, (M,)."""
    losses = []

    def noted(X: np.ndarray) -> np.ndarray:
        losses.append(objective(X))
        return losses[-1]

    return np.concatenate(batches(search, noted)), np.concatenate(losses)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [40, 75])
def test_a_search_spends_its_budget_within_the_bounds(name: str, budget: int) -> None:
    seen = batches(make_search(name, SPACE, budget, 0)[0])
    assert sum(len(batch) for batch in seen) == budget
    assert all(batch.dtype == np.float64 and batch.shape[1:] == (20,) for batch in seen)
    assert all((np.abs(batch) <= 1.5).all() for batch in seen)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_losses_lead_a_fresh_search_to_the_same_candidates(name: str) -> None:
    first = batches(make_search(name, SPACE, 60, 7)[0])
    recorded = iter([loss(batch) for batch in first])
    before = np.random.get_state()
    np.random.rand(5)  # what else runs in the process must not matter
    again = batches(make_search(name, SPACE, 60, 7)[0], lambda _: next(recorded))
    np.random.set_state(before)
    assert len(first) == len(again)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_leaves_the_global_generator_alone(name: str) -> None:
    before = np.random.get_state()
    run_search(make_search(name, SPACE, 40, 0)[0], loss)
    after = np.random.get_state()
    assert before[2:] == after[2:] and np.array_equal(before[1], after[1])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"greedy", "ngopt", "shiwa"}))  # those begin without chance
def test_another_seed_gives_other_candidates(name: str) -> None:
    one, other = (np.concatenate(batches(make_search(name, SPACE, 40, seed)[0])) for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failing", ["some", "all", "first"])
def test_failed_candidates_do_not_stop_a_search(name: str, failing: str) -> None:
    count = 0

    def fails(X: np.ndarray) -> np.ndarray:
        nonlocal count
        places = np.arange(count, count + len(X))
        count += len(X)
        return np.where({"some": places % 3 == 1, "all": places >= 0, "first": places < 3}[failing], np.nan, loss(X))

    X, losses = run_search(make_search(name, SPACE, 60, 0)[0], fails)
    assert X.shape == (60, 20) and np.isfinite(X).all()
    assert np.isnan(losses).any()
    if failing == "first" and name != "random":  # the search still goes somewhere
        assert np.nanmin(losses[30:]) < np.nanmin(losses[:10])


def test_only_full_generations_teach_cma() -> None:
    seen = batches(searches.cma(SPACE, 40, seed=3, sigma=0.2))
    assert [len(batch) for batch in seen] == [12, 12, 12, 4]
    strategy = CMAES(np.zeros(20), 0.2, bounds=(-1.5, 1.5), seed=3)
    for batch in seen:
        X = strategy.ask()
        np.testing.assert_array_equal(batch, X[: len(batch)])
        if len(batch) == 12:
            strategy.tell(X, loss(X))


def test_cma_begins_where_it_is_told() -> None:
    start = np.linspace(-1, 1, 20)
    near = next(searches.cma(SPACE, 40, start=start, sigma=1e-6))
    np.testing.assert_allclose(near, np.tile(start, (12, 1)), atol=1e-4)


def test_random_candidates_are_uniform_and_do_not_depend_on_the_batches() -> None:
    space = Space(3, -1.0, 2.0)
    X = np.concatenate(batches(searches.random_search(space, 4000, seed=1, population=20)))
    np.testing.assert_array_equal(X, np.concatenate(batches(searches.random_search(space, 4000, seed=1, population=7))))
    counts = np.histogram(X, bins=10, range=(-1.0, 2.0))[0]  # 1200 a bin, standard deviation 33
    assert (np.abs(counts - 1200) < 165).all()
    first = next(searches.random_search(space, 40, start=[0.0, 1.0, 2.0]))[0]
    assert first.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.filterwarnings("ignore:COBYLA")
@pytest.mark.parametrize("name", ["NGOpt", "Shiwa", "CMA", "TwoPointsDE"])
def test_nevergrads_search_is_what_nevergrads_own_loop_does(name: str) -> None:
    weights = nevergrad.p.Array(init=[0] * 20, upper=[1.5] * 20, lower=[-1.5] * 20)
    weights.random_state = np.random.RandomState(5)
    optimizer = nevergrad.optimizers.registry[name](parametrization=weights, budget=40)
    asked = []

    def objective(w: np.ndarray) -> float:
        asked.append(w)
        return float(loss(w[None])[0])

    optimizer.minimize(objective)
    X, _ = run_search(nevergrad_search(SPACE, 40, 5, name.lower()), loss)
    np.testing.assert_array_equal(X, asked)


def test_the_papers_optimizers_start_at_zero_and_are_cobyla() -> None:
    for name in ("ngopt", "Shiwa"):
        assert chosen_optimizer(name, 20, 40) == "Cobyla"
        search, algorithm = make_search(name, SPACE, 40, 0)
        assert algorithm == f"nevergrad {name.replace('ngopt', 'NGOpt')}, which chose Cobyla"
        assert (next(search) == 0).all()
    same = [run_search(nevergrad_search(SPACE, 40, 0, name), loss)[0] for name in ("NGOpt", "Shiwa", "Cobyla")]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])


def test_who_asks_nevergrad_for_cma_gets_one() -> None:
    assert chosen_optimizer("CMA", 20, 40) == "CMAbounded"
    # Shiwa leaves the choice to NGOptBase, that to MetaCMA, and that one picks: none of the three is the answer
    assert chosen_optimizer("shiwa", 20, 1000) == "CMAbounded"
    assert make_search("CMAbounded", SPACE, 40, 0)[1] == "nevergrad CMAbounded"
    assert make_search("CMA", SPACE, 40, 0)[1] == "CMA-ES"  # the name is ours first


def test_nevergrad_is_told_that_a_failed_candidate_is_a_little_worse_than_the_worst() -> None:
    told = iter([1000.0, 2.0, 3.0, 4.0, 1.0, 4.0])  # 1000 while there is nothing to compare with
    failing = iter([np.nan, 2.0, 3.0, np.nan, 1.0, np.inf])
    one = batches(nevergrad_search(Space(3), 7), lambda X: np.array([next(failing, 1.0)]))
    other = batches(nevergrad_search(Space(3), 7), lambda X: np.array([next(told, 1.0)]))
    np.testing.assert_array_equal(one, other)


def test_the_choice_that_is_named_is_the_one_that_ran() -> None:
    for name, dimension, budget in [("ngopt", 20, 40), ("shiwa", 20, 1000), ("shiwa", 40, 40), ("ngopt", 200, 40)]:
        chosen = chosen_optimizer(name, dimension, budget)
        space = Space(dimension)
        searched = [nevergrad_search(space, budget, 2, asked) for asked in (name, chosen)]
        one, other = (np.concatenate([next(search), search.send(np.ones(1))]) for search in searched)
        np.testing.assert_array_equal(one, other)


def test_a_search_that_is_given_up_lets_python_end_and_says_nothing() -> None:
    program = (
        "import numpy as np\n"
        "from lorahub_edu.hub.searches import Space, nevergrad_search\n"
        "search = nevergrad_search(Space(20), 10)\n"
        "next(search)\n"
        "search.send(np.ones(1))\n"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_optimizer_that_breaks_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nevergrad.optimizers.base.Optimizer):
        def _internal_ask_candidate(self) -> None:
            raise ValueError("out of ideas")

    monkeypatch.setitem(nevergrad.optimizers.registry, "Broken", Broken)
    with pytest.raises(CourseError, match=r"nevergrad Broken.*20 weights.*budget of 40.*out of ideas.*'cma'"):
        next(make_search("broken", SPACE, 40, 0)[0])


def test_greedy_step_by_step() -> None:
    target = np.array([1.3, 0.5])
    given = batches(searches.greedy(Space(2), 15), lambda X: np.abs(X - target).sum(1))
    expected = [
        [[1, 0], [0, 1]],  # 0.8 and 1.8: begin at the first
        [[1.5, 0], [1, 0.5], [1.15, 0]],  # 0.7, 0.3, 0.65: all improve, in the order 2, 3, 1
        [[1.15, 0.5], [1.5, 0.5]],  # the best two, 0.15, and all three, 1.65 cut at the bound, 0.2
        [[1.5, 0.5], [1.15, 1.0], [1.3225, 0.575]],  # 0.2, 0.65, 0.0975: only the scaling improves
        [[1.0225, 0.575], [1.3225, 0.275], [1.5, 0.66125]],  # the steps turned, to -0.3: nothing improves
        [[1.5, 0.575], [1.3225, 0.755]],  # turned again, to 0.18, and the round is cut to the budget
    ]
    assert [len(batch) for batch in given] == [len(batch) for batch in expected]
    for batch, wanted in zip(given, expected, strict=True):
        np.testing.assert_allclose(batch, wanted, atol=1e-12)


def test_greedy_improves_on_the_best_single_module() -> None:
    X, losses = run_search(searches.greedy(SPACE, 120), loss)
    np.testing.assert_array_equal(X[:20], np.eye(20))
    assert losses.min() < 0.5 * losses[:20].min()


def test_greedy_can_begin_elsewhere() -> None:
    start = np.full(3, 0.5)
    given = batches(searches.greedy(Space(3), 4, start=start), lambda X: X.sum(1))
    assert [batch.tolist() for batch in given] == [[[0.5] * 3], (start + 0.5 * np.eye(3)).tolist()]


def test_a_function_can_be_the_search() -> None:
    def corners(space: Space, budget: int, seed: int, size: float = 1.0) -> searches.Search:
        assert (budget, seed) == (4, 9)
        yield np.full((budget, space.dimension), size)

    search, algorithm = make_search(corners, SPACE, 4, 9, size=0.5)
    X, losses = run_search(search, loss)
    assert X.shape == (4, 20) and (X == 0.5).all() and losses.shape == (4,)
    assert algorithm.startswith("corners")


def test_who_needs_gradients() -> None:
    def newton() -> None: ...

    newton.needs_gradient = True
    assert (
        searches.needs_gradient("gradient") and searches.needs_gradient("Gradient") and searches.needs_gradient(newton)
    )
    assert not any(map(searches.needs_gradient, [*NAMES, searches.cma]))


@pytest.mark.parametrize(
    ("optimizer", "budget", "options", "message"),
    [
        ("cmaa", 40, {}, "no optimizer 'cmaa'.*'cma'"),
        ("Greedi", 40, {}, "'Greedi'.*'greedy'"),
        ("twopointde", 40, {}, "'twopointsde'"),
        ("%%%%", 40, {}, "'cma', 'gradient', 'greedy', 'ngopt', 'random', 'shiwa'.*registry"),
        ("cma", 11, {}, "budget of 11.*12 candidates at 20 weights"),
        ("cma", 20, {"population": 30}, "budget of 20.*30 candidates"),
        ("greedy", 19, {}, "budget of 19.*20 modules"),
        ("ngopt", 0, {}, "budget is 0"),
        ("random", -1, {}, "budget is -1"),
        ("random", 40, {"population": 0}, "population is 0"),
        ("cma", 40, {"sigm": 1.0}, "no option 'sigm'.*'sigma'"),
        ("ngopt", 40, {"start": np.zeros(20)}, "no option 'start'"),
        ("cma", 40, {"start": np.zeros(19)}, r"20 here.*\(19,\)"),
        ("greedy", 40, {"start": np.full(20, 1.6)}, r"within \[-1.5, 1.5\].*1.6"),
        ("random", 40, {"start": np.full(20, np.nan)}, "nan"),
    ],
)
def test_what_can_not_be_searched_is_refused_before_a_candidate(
    optimizer: str, budget: int, options: dict, message: str
) -> None:
    with pytest.raises(CourseError, match=message):
        next(make_search(optimizer, SPACE, budget, 0, **options)[0])
    with pytest.raises(CourseError, match="at least one weight"):
        chosen_optimizer("ngopt", 0, 40)


@pytest.mark.parametrize("name", BLIND)
def test_one_module_can_be_weighted_too(name: str) -> None:
    X, losses = run_search(make_search(name, Space(1), 30, 0)[0], lambda X: (X[:, 0] - 0.4) ** 2)
    assert X.shape == (30, 1)
    assert losses.min() < 0.01
