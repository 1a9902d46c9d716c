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
# # Assignment 07 · Searching for the weights
#
# Eight problems on lesson 07: what LoRAHub minimises, CMA-ES in four steps, and a simpler search that keeps to a budget. About
# 85 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python. The package holds a
# CMA-ES of its own: write yours before you read it.
#
# **Notation.** $P$ candidates of $N$ weights each are an array `(P, N)`; their losses are `(P,)`, the lower the better. CMA-ES
# draws from a Gaussian cloud with mean $m$, step size $\sigma$ and shape $C$, a covariance matrix `(n, n)`. Arrays are NumPy's.

# %%
import numpy as np

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. What is minimised
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | Huang et al. 2023, §3.3 (there with the sum; here, as in the released code, the mean of $\lvert w \rvert$) | one penalty for the whole population |
#
# To each candidate's loss belongs a penalty on its weights: `alpha` times the mean of $\lvert w_i \rvert$ over its N weights.
#
# **Expected:** `(P,)`, one number a candidate.


# %% answer="objective"
def objective(losses, weights, alpha):
    """Each candidate's loss (P,) with alpha times the mean of its |w|; weights are (P, N)."""
    ### BEGIN SOLUTION
    return losses + alpha * np.abs(weights).mean(axis=1)
    ### END SOLUTION


# %% test="test_objective" points=1
check("07.1", objective)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.1", objective)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.1}}

# %% [markdown]
# ## Problem 2. Draw a generation
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Hansen 2016, equations 38 to 40 | the root of C on the wrong side, or C itself in its place |
#
# You get `normals` `(P, n)`, independent standard normal numbers, one row a candidate. Make of them P candidates from a cloud with
# mean $m$ and covariance $\sigma^2 C$. Any root of $C$ will do.
#
# **Expected:** `(P, n)`; rows of zeros become the mean.


# %% answer="sample"
def sample(mean, sigma, C, normals):
    """Candidates (P, n) with mean `mean` (n,) and covariance sigma² C, from standard normal numbers (P, n)."""
    ### BEGIN SOLUTION
    return mean + sigma * normals @ np.linalg.cholesky(C).T
    ### END SOLUTION


# %% test="test_sample" points=3
check("07.4", sample)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.4", sample)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.4}}

# %% [markdown]
# ## Problem 3. Shift the mean
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Hansen 2016, equations 41 and 42 | `argsort` read as ranks |
#
# `shares` `(mu,)` fall and sum to 1. The new mean is the mean of the mu best candidates, the best one with the largest share.
#
# **Expected:** `(n,)`; only the order of the losses counts.


# %% answer="recombine"
def recombine(candidates, losses, shares):
    """The new mean (n,) of candidates (P, n) with losses (P,)."""
    ### BEGIN SOLUTION
    best = np.argsort(losses)[: len(shares)]
    return shares @ candidates[best]
    ### END SOLUTION


# %% test="test_recombine" points=2
check("07.2", recombine)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.2", recombine)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.2}}

# %% [markdown]
# ## Problem 4. The shape of the cloud
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 15 | Hansen 2016, §3.2 and equation 47 (the rank-μ part) | steps taken from the *new* mean: the cloud then collapses along the direction it should go |
#
# `best` `(mu, n)` are the better candidates, best first. With the steps $y_i = (x_i - m)/\sigma$ from the mean they were drawn
# around, $C \leftarrow (1 - c_\mu)\, C + c_\mu \sum_i \text{share}_i\, y_i y_i^\top$.
#
# **Expected:** `(n, n)`, symmetric.


# %% answer="rank_mu"
def rank_mu(C, mean, sigma, best, shares, c_mu):
    """The covariance matrix after a generation's better candidates (mu, n), drawn around `mean`."""
    ### BEGIN SOLUTION
    y = (best - mean) / sigma
    return (1 - c_mu) * C + c_mu * (shares * y.T) @ y
    ### END SOLUTION


# %% test="test_rank_mu" points=3
check("07.6", rank_mu)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.6", rank_mu)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.6}}

# %% [markdown]
# ## Problem 5. The step size
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | Hansen 2016, equation 44 | comparing with √n, or forgetting to subtract 1 |
#
# `path` `(n,)` sums up where the mean has been going. Steps that agree make it longer than a random vector, whose mean length is
# $\chi_n \approx \sqrt n\, (1 - \frac{1}{4n} + \frac{1}{21 n^2})$. Then
# $\sigma \leftarrow \sigma \exp\!\big(\frac{c}{d} \big(\frac{\lVert \text{path} \rVert}{\chi_n} - 1\big)\big)$.
#
# **Expected:** a number; a path as long as a random one changes nothing.


# %% answer="new_sigma"
def new_sigma(sigma, path, c, d):
    """The step size after a generation, with the rate c and the damping d."""
    ### BEGIN SOLUTION
    n = len(path)
    chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    return sigma * np.exp(c / d * (np.linalg.norm(path) / chi - 1))
    ### END SOLUTION


# %% test="test_new_sigma" points=2
check("07.5", new_sigma)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.5", new_sigma)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.5}}

# %% [markdown]
# ## Problem 6. A search that counts its evaluations
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 25 | lesson 07, *is there something better?* | the budget is looked at once a round, or the start is not counted |
#
# An evaluation is a forward pass of a large model, so two searches are compared at the same number of them. Write a plain
# search. Begin at `start`. In each round, go through the weights and try `+ step` and `- step` on each; keep at once what lowers
# the loss. Halve the step after a round without a gain. Call `loss` at most `budget` times in all.
#
# **Expected:** the pair best weights, their loss. With a budget of 1 that is the start.


# %% answer="coordinate_search"
def coordinate_search(loss, start, step, budget):
    """The best weights (n,) that a search along the coordinates finds, and their loss; loss(weights) is a number."""
    ### BEGIN SOLUTION
    w, calls = np.array(start), 1
    best = loss(w)
    while calls < budget:
        improved = False
        for i in range(len(w)):
            for sign in (1, -1):
                if calls == budget:
                    return w, best
                tried = w.copy()
                tried[i] += sign * step
                value, calls = loss(tried), calls + 1
                if value < best:
                    w, best, improved = tried, value, True
        if not improved:
            step /= 2
    return w, best
    ### END SOLUTION


# %% test="test_coordinate_search" points=4
check("07.7", coordinate_search)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.7", coordinate_search)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.7}}

# %% [markdown]
# ## Problem 7. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | Hansen 2016, equation 48; Huang et al. 2023, §4.1 (at most 40 steps) | a logarithm to the base 10 |
#
# By default CMA-ES draws $4 + \lfloor 3 \ln N \rfloor$ candidates a generation and learns once a generation, from a whole one. LoRAHub
# composes $N = 20$ modules. From how many generations does CMA-ES learn within 40 evaluations? Set `generations` before you run
# anything, then run the cell below.
#
# **Expected:** a whole number.

# %% answer="generations"
generations = None
### BEGIN SOLUTION
generations = 3
### END SOLUTION

# %%
from lorahub_edu.hub.cmaes import default_population

for count in (1, 5, 20, 100):
    population = default_population(count)
    print(
        f"{count:3d} weights: 3 ln N = {3 * np.log(count):5.2f}, so {population:2d} candidates a generation; "
        f"of 40 evaluations {40 % population} are left over"
    )

# %% test="test_generations" points=1
check("07.8", generations)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("07.8", generations)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 07.8}}

# %% [markdown]
# ## Problem 8. In your own words
#
# LoRAHub's authors search without gradients. What does that save, and what does lesson 07 say about whether it is needed? Three
# sentences. A person reads this one.

# %% [markdown] manual="why_no_gradient" points=2
# ### BEGIN SOLUTION
# A search by losses alone needs forward passes only: no activations are kept and no optimizer state. So memory is that of
# inference, and the model may even be on another machine. A gradient for the weights of the composition exists, though: they
# are a few numbers, and one backward pass gives all their slopes. Lesson 07 measures both at equal cost, so a full answer says
# which was better there and by how much it spread. Full points: memory, that a gradient is possible, and a measurement.
# ### END SOLUTION
