"""The definitions, judged by numpy in float64 and by matrices whose spectrum is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_updates import matrix as random
from random_updates import with_spectrum

from lorahub_edu.errors import CourseError
from lorahub_edu.spectra import measures


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_the_count_is_numpys(shape: tuple[int, int]) -> None:
    pretrained, tuned = random(*shape), random(*shape) + 0.9 * random(*shape, seed=1)
    left0, left = (np.linalg.svd(w.double().numpy(), full_matrices=False)[0] for w in (pretrained, tuned))
    largest = np.abs(left[:, :8].T @ left0).max(axis=1)
    np.testing.assert_allclose(measures.largest_cosines(pretrained, tuned, 8).numpy(), largest, atol=1e-12)
    for epsilon in (0.3, 0.5, 0.7, 0.9):
        assert measures.intruder_count(pretrained, tuned, 8, epsilon) == int((largest < epsilon).sum())


def test_a_planted_direction_is_the_only_intruder() -> None:
    base = with_spectrum([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0], 32, 24)
    left, _, right = torch.linalg.svd(base)
    outside_left, outside_right = left[:, 20:21], right[20:21]  # orthogonal to every vector of the base
    strong, weak = base + 7.5 * outside_left @ outside_right, base + 1.0 * outside_left @ outside_right
    assert measures.intruder_count(base, strong, k=5) == 1
    assert measures.largest_cosines(base, strong, 5).argmin() == 2  # between 8 and 7
    assert measures.intruder_count(base, weak, k=5) == 0  # it is there, but it is not among the five strongest


def test_a_tuned_vector_outside_a_tall_bases_span_has_cosine_zero() -> None:
    base = torch.eye(6, 3)
    tuned = base.clone()
    tuned[5, 0] = 100.0
    assert measures.largest_cosines(base, tuned, 1)[0] < 0.02


def test_vectors_of_zero_singular_values_are_no_directions() -> None:
    low_rank = with_spectrum([3.0, 2.0], 12, 10)
    assert measures.left_vectors(low_rank).shape == (12, 2)
    with pytest.raises(CourseError, match="rank 2 has no 3 strongest"):
        measures.largest_cosines(low_rank, low_rank, 3)


@pytest.mark.parametrize("k", [0, -1, 25])
def test_k_must_fit(k: int) -> None:
    with pytest.raises(CourseError, match=str(k)):
        measures.intruder_count(random(24, 30), random(24, 30, 1), k)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.5, float("nan")])
def test_epsilon_must_be_a_cosine(epsilon: float) -> None:
    with pytest.raises(CourseError, match="between 0 and 1"):
        measures.intruder_count(random(24, 30), random(24, 30, 1), 5, epsilon)


def pictures(pretrained: torch.Tensor, tuned: torch.Tensor, k: int = 20) -> list[torch.Tensor]:
    """The similarity of the k strongest left, and of the k strongest right, singular vectors."""
    both = [(tuned, pretrained), (tuned.T, pretrained.T)]
    return [measures.similarity(*(measures.left_vectors(w)[:, :k] for w in pair)) for pair in both]


def test_similarity_of_a_matrix_with_itself_is_the_identity() -> None:
    w = random(20, 30)
    for picture in pictures(w, w):
        torch.testing.assert_close(picture, torch.eye(20, dtype=torch.float64), atol=1e-9, rtol=0)
    left, right = pictures(w, w.flip(0), k=5)  # rows reversed: the right vectors stay
    torch.testing.assert_close(right, torch.eye(5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert left.shape == (5, 5)
    assert left.diagonal().max() < 0.99


@pytest.mark.parametrize(("m", "n", "r"), [(30, 20, 4), (20, 30, 4), (6, 30, 9)])
def test_factored_singular_values_are_the_products(m: int, n: int, r: int) -> None:
    B, A = random(m, r), random(r, n, 1)
    expected = np.linalg.svd(-2.5 * B.double().numpy() @ A.double().numpy(), compute_uv=False)
    found = measures.factored_singular_values(B, A, -2.5).numpy()
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(expected[len(found) :], 0, atol=1e-12)


def test_ranks_and_norms_of_known_spectra() -> None:
    equal = torch.full((6,), 0.3)
    assert measures.effective_rank(equal) == pytest.approx(6)
    assert measures.stable_rank(equal) == pytest.approx(6)
    single = torch.tensor([2.0, 0.0, 0.0])
    assert measures.effective_rank(single) == pytest.approx(1)
    assert measures.stable_rank(single) == pytest.approx(1)
    halves = torch.tensor([0.5, 0.25, 0.25])  # entropy 1.5 bits
    assert measures.effective_rank(halves) == pytest.approx(2**1.5)
    w = random(9, 7).double()
    values = torch.linalg.svdvals(w)
    assert measures.nuclear_norm(values) == pytest.approx(float(torch.linalg.matrix_norm(w, "nuc")))
    assert measures.effective_rank(torch.zeros(4)) == measures.stable_rank(torch.zeros(4)) == 0
