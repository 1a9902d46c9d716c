# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lorahub_edu:
#     may_import: []
# ---

# %% [markdown]
# # Assignment 08 · Singular vectors and intruder dimensions
#
# Seven problems on lesson 08: the spectrum of an update, and how many directions it uses. Then what is new in a tuned matrix and
# when, and whether two adapters read the same inputs. About 70 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# **Notation.** A weight $W$ is `(out, in)`, $A$ is `(r, in)`, $B$ is `(out, r)`; $W_0$ is the pretrained weight and
# $\Delta W = \gamma B A$ the update, with the scaling $\gamma$. Singular values $\sigma_1 \ge \sigma_2 \ge \dots$ come strongest first.

# %%
import torch

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. Singular values without the product
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | lesson 08, *counting without an SVD* | the singular values of A and B multiplied in pairs |
#
# A layer of a 7B model has 4096 × 11008 numbers, and an adapter's update has rank 8. Its eight singular values can be found
# without ever making the product. Checks and grading look at the values; the shapes are small enough for the product, so
# you may use it.
#
# **Expected:** a tensor `(r,)`, strongest first; a negative scaling changes nothing.


# %% answer="update_values"
def update_values(A, B, scaling):
    """The r singular values of scaling * B @ A, strongest first."""
    ### BEGIN SOLUTION
    R1, R2 = torch.linalg.qr(B).R, torch.linalg.qr(A.T).R  # (r, r) each
    return abs(scaling) * torch.linalg.svdvals(R1 @ R2.T)
    ### END SOLUTION


# %% test="test_update_values" points=3
check("08.4", update_values)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("08.4", update_values)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 08.4}}

# %% [markdown]
# ## Problem 2. How many directions does it use?
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Shuttleworth et al., figure 6; Roy and Vetterli 2007 | shares of σ² instead of σ |
#
# The *effective rank* is the exponential of the entropy of the singular values' shares $p_i = \sigma_i / \sum_j \sigma_j$.
#
# **Expected:** 5 for five equal values, 1 for a single one; zeros change nothing.


# %% answer="effective_rank"
def effective_rank(values):
    """exp(-sum of p log p) for the shares p of the singular values."""
    ### BEGIN SOLUTION
    shares = values / values.sum()
    return torch.exp(torch.special.entr(shares).sum())
    ### END SOLUTION


# %% test="test_effective_rank" points=2
check("08.3", effective_rank)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("08.3", effective_rank)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 08.3}}

# %% [markdown]
# ## Problem 3. The best match of each strong vector
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Shuttleworth et al., algorithm 1 | a signed cosine: $u$ and $-u$ are one direction |
#
# For each of the `k` strongest left singular vectors of $W$: its largest |cosine| with any left singular vector of $W_0$.
#
# **Expected:** a tensor `(k,)`, in the order of $W$'s vectors; all ones where nothing has changed.


# %% answer="largest_cosines"
def largest_cosines(W0, W, k):
    """For each of the k strongest left singular vectors of W its largest |cosine| with any one of W0."""
    ### BEGIN SOLUTION
    U0, U = (torch.linalg.svd(M, full_matrices=False).U for M in (W0, W))
    return (U[:, :k].T @ U0).abs().max(dim=1).values
    ### END SOLUTION


# %% test="test_largest_cosines" points=3
check("08.1", largest_cosines)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("08.1", largest_cosines)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 08.1}}

# %% [markdown]
# ## Problem 4. Will there be an intruder?
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | lesson 08, *when does an intruder appear?* | comparing with $\sigma_1(W_0)$: a vector need only be among the $k$ strongest |
#
# Before any SVD of the tuned matrix, one number tells where intruders can appear: $\sigma_1(\Delta W) / \sigma_k(W_0)$. Well
# below 1 the update can't bring a new vector among the `k` strongest, well above 1 it will. Compute it.
#
# **Expected:** a number; it doubles when the scaling doubles.


# %% answer="spike_ratio"
def spike_ratio(W0, A, B, scaling, k):
    """The largest singular value of scaling * B @ A by the k-th largest of W0."""
    ### BEGIN SOLUTION
    return torch.linalg.svdvals(scaling * B @ A)[0] / torch.linalg.svdvals(W0)[k - 1]
    ### END SOLUTION


# %% test="test_spike_ratio" points=2
check("08.5", spike_ratio)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("08.5", spike_ratio)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 08.5}}

# %% [markdown]
# ## Problem 5. Do two adapters look at the same inputs?
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | Hu et al. 2021, §7.2 (there *normalised subspace similarity*) | taking the rows of A themselves, which are not at right angles |
#
# The LoRA paper compares adapters of different ranks by the spaces that their strongest *right* singular vectors span. With
# $V_1$ the first $i$ of $A_1$ and $V_2$ the first $j$ of $A_2$, as columns:
# $\varphi = \lVert V_1^\top V_2 \rVert_F^2 \,/\, \min(i, j)$.
#
# **Expected:** from 0 (at right angles) to 1 (one space holds the other); the same for a module in another basis.


# %% answer="subspace_similarity"
def subspace_similarity(A1, A2, i, j):
    """How much the spaces of the first i and j right singular vectors of two matrices overlap, from 0 to 1."""
    ### BEGIN SOLUTION
    V1, V2 = (torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2))
    return (V1[:i] @ V2[:j].T).square().sum() / min(i, j)
    ### END SOLUTION


# %% test="test_subspace_similarity" points=3
check("08.6", subspace_similarity)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("08.6", subspace_similarity)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 08.6}}

# %% [markdown]
# ## Problem 6. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | Shuttleworth et al., algorithm 1 | forgetting one of the two conditions |
#
# $W_0$ has the singular values 9.5, 8.5, 7.5, …, 0.5. You add $c \cdot u v^\top$, where $u$ and $v$ are at right angles to all its
# singular vectors: nothing in $W_0$ resembles them. Which is the smallest whole number $c$ for which the count of intruders
# with $k = 5$ and $\varepsilon = 0.5$ is 1? Set `first_strength` before you run anything, then run the cell below.
#
# **Expected:** a whole number.

# %% answer="first_strength"
first_strength = None
### BEGIN SOLUTION
first_strength = 6
### END SOLUTION

# %%
from lorahub_edu.spectra import measures

pretrained = torch.zeros(11, 11, dtype=torch.float64)
pretrained[range(10), range(10)] = torch.arange(9.5, 0, -1, dtype=torch.float64)
for c in range(1, 11):
    tuned = pretrained.clone()
    tuned[10, 10] = c  # u and v are the last unit vectors
    five = [round(value, 1) for value in torch.linalg.svdvals(tuned)[:5].tolist()]
    print(f"c = {c:2d}: the five strongest {five}, intruders {measures.intruder_count(pretrained, tuned, 5, 0.5)}")

# %% test="test_first_strength" points=1
check("08.7", first_strength)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("08.7", first_strength)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 08.7}}

# %% [markdown]
# ## Problem 7. In your own words
#
# Two models have the same loss on a task. One has 40 intruder dimensions, the other none. What do you know now about how
# they were trained, and what don't you know? Three sentences. A person reads this one.

# %% [markdown] manual="what_a_count_says" points=2
# ### BEGIN SOLUTION
# A count says that some tuned matrices have a strong direction which the pretrained matrix did not have. That takes a large step
# along few directions, which a low rank, a high learning rate or a large scaling give. It does not say
# which of these it was, nor whether the model has forgotten more. Full points: the strength of the step against the spectrum
# of W0 is named, and that a count alone shows no cause or harm.
# ### END SOLUTION
