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
# # Assignment 06 · Composing modules
#
# Seven problems on lesson 06: LoRAHub's composition, its cross-terms, a composition of a lower rank, many candidates at once,
# which modules to take, what a sign does, and what the seeds do. About 85 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# **Notation.** Module $i$ has $A_i$ `(r, in)` and $B_i$ `(out, r)`; `As` and `Bs` are lists of them, `weights` are the $w_i$.
# LoRAHub composes $(\sum_i w_i B_i)(\sum_i w_i A_i)$; the exact composition is $\sum_i w_i B_i A_i$.

# %%
import torch

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. LoRAHub's composition
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Huang et al. 2023, §3.2, equation 1 | adding the updates up instead of the factors |
#
# The update of a composition, times `scaling`.
#
# **Expected:** a tensor `(out, in)`; a single module at weight −1 is the module itself.


# %% answer="composed_update"
def composed_update(As, Bs, weights, scaling):
    """LoRAHub's composition of some modules as one update."""
    ### BEGIN SOLUTION
    A = sum(w * A for w, A in zip(weights, As, strict=True))
    B = sum(w * B for w, B in zip(weights, Bs, strict=True))
    return scaling * B @ A
    ### END SOLUTION


# %% test="test_composed_update" points=2
check("06.1", composed_update)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("06.1", composed_update)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 06.1}}

# %% [markdown]
# ## Problem 2. The cross-terms
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | lesson 06, *what the algebra implies*; Huang et al. 2023, §3.2 | subtracting the exact composition: in the product a module's own term carries $w_i^2$ |
#
# Multiplied out, LoRAHub's composition holds each module's own term $w_i^2 B_i A_i$ and, for every two modules, terms that belong
# to neither: $w_i w_j B_i A_j$ with $i \ne j$. Return the sum of these cross-terms (without a scaling).
#
# **Expected:** a tensor `(out, in)`; zero for one module alone.


# %% answer="cross_terms"
def cross_terms(As, Bs, weights):
    """What LoRAHub's composition holds beside the modules' own terms."""
    ### BEGIN SOLUTION
    A = sum(w * A for w, A in zip(weights, As, strict=True))
    B = sum(w * B for w, B in zip(weights, Bs, strict=True))
    return B @ A - sum(w * w * B @ A for w, A, B in zip(weights, As, Bs, strict=True))
    ### END SOLUTION


# %% test="test_cross_terms" points=3
check("06.4", cross_terms)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("06.4", cross_terms)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 06.4}}

# %% [markdown]
# ## Problem 3. Back to one module's rank
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | lesson 06, *ranks* (Eckart and Young 1936) | keeping the first rows of A, or cutting A and B each by its own SVD |
#
# The exact composition of 20 modules of rank 8 has rank 160. Find the module of rank `rank` whose product is nearest to $BA$.
#
# **Expected:** the pair `A` `(rank, in)`, `B` `(out, rank)`; how you share the strength between the two is up to you.


# %% answer="cut_to_rank"
def cut_to_rank(A, B, rank):
    """The module of that rank whose product is nearest to B @ A."""
    ### BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    return Vh[:rank], U[:, :rank] * S[:rank]
    ### END SOLUTION


# %% test="test_cut_to_rank" points=4
check("06.5", cut_to_rank)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("06.5", cut_to_rank)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 06.5}}

# %% [markdown]
# ## Problem 4. Many candidates in one forward
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | lesson 07, *many candidates in one forward pass* | all candidates get the first one's weights |
#
# A search scores $P$ weight vectors on the same examples. Instead of $P$ forward passes, the rows of all candidates go through a
# layer together. `x` is `(P, rows, in)`, `weights` is `(P, N)`: candidate $p$ has its own rows `x[p]` and its own weights. Return what
# LoRAHub's composition adds for each, times `scaling`.
#
# **Expected:** a tensor `(P, rows, out)`.


# %% answer="population_update"
def population_update(x, As, Bs, weights, scaling):
    """What each candidate's composition adds to the output for its own rows."""
    ### BEGIN SOLUTION
    A = torch.einsum("pn,nri->pri", weights, torch.stack(As))
    B = torch.einsum("pn,nor->por", weights, torch.stack(Bs))
    return scaling * x @ A.mT @ B.mT
    ### END SOLUTION


# %% test="test_population_update" points=3
check("06.6", population_update)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("06.6", population_update)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 06.6}}

# %% [markdown]
# ## Problem 5. Which modules for a task?
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | lesson 06, *which candidates?*; Mu and Viswanath 2018 | comparing the vectors as they are: all texts share one large direction |
#
# LoRAHub draws its candidates at random. Choose by similarity instead: `task` `(d,)` is the new task's instruction as a vector,
# `modules` `(N, d)` those of the modules. Subtract the mean of the modules' vectors from all vectors, the task's too. Compare by
# cosine, and return the numbers of the `count` most similar modules, best first.
#
# **Expected:** a list of whole numbers from 0 to N − 1.


# %% answer="nearest_modules"
def nearest_modules(task, modules, count):
    """The numbers of the modules whose vectors are most like the task's, around the modules' mean."""
    ### BEGIN SOLUTION
    mean = modules.mean(dim=0)
    cosines = torch.cosine_similarity(task - mean, modules - mean)
    return cosines.argsort(descending=True)[:count].tolist()
    ### END SOLUTION


# %% test="test_nearest_modules" points=2
check("06.7", nearest_modules)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("06.7", nearest_modules)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 06.7}}

# %% [markdown]
# ## Problem 6. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | lesson 06, *what the algebra implies* | thinking of the composition as a sum of updates |
#
# All weights of a composition change their sign, $w \to -w$. What happens to the update?
#
# - **A** In both compositions it changes its sign.
# - **B** LoRAHub's stays the same, the exact one changes its sign.
# - **C** Both stay the same.
# - **D** LoRAHub's changes its sign, the exact one stays the same.
#
# Set `turned_weights` to one letter before you run anything, then run the cell below.
#
# **Expected:** a letter in quotes.

# %% answer="turned_weights"
turned_weights = None
### BEGIN SOLUTION
turned_weights = "B"
### END SOLUTION

# %%
generator = torch.Generator().manual_seed(0)
first, second = (
    (torch.randn(2, 3, generator=generator), torch.randn(4, 2, generator=generator)) for _ in range(2)
)  # A, B of each
for v, w in ((0.5, 0.8), (-0.5, -0.8)):
    in_the_hub = (v * first[1] + w * second[1]) @ (v * first[0] + w * second[0])
    exactly = v * first[1] @ first[0] + w * second[1] @ second[0]
    print(f"weights {v:4.1f}, {w:4.1f}: first row in LoRAHub {in_the_hub[0].numpy().round(2)}, exact {exactly[0].numpy().round(2)}")

# %% test="test_turned_weights" points=1
check("06.8", turned_weights)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("06.8", turned_weights)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 06.8}}

# %% [markdown]
# ## Problem 7. In your own words
#
# Two people train the same two modules with other seeds and compose them with the same weights $(0.5, 0.5)$, one by LoRAHub's
# formula, one exactly. Why may LoRAHub's composition depend on the seeds even if every module computes the same update as
# before? Three sentences. A person reads this one.

# %% [markdown] manual="why_the_basis_matters" points=2
# ### BEGIN SOLUTION
# An update BA does not fix A and B: QA and BQᵀ give the same one for every orthogonal Q, and the seed decides which. The exact
# composition adds the updates, in which Q cancels. LoRAHub adds the factors, and its cross-terms BᵢAⱼ pair one module's basis with
# another's, so turning one of them changes the sum. Full points: the free basis and the cross-terms are both named.
# ### END SOLUTION
