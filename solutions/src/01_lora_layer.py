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
# # Assignment 01 · The LoRA layer
#
# Seven problems on lesson 01: count an adapter, apply it, start it, merge it, make it a module, and predict what a merge
# costs. About 55 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there: cells that you add are for you and are
# not handed in. Below each answer stands a locked cell with a check; run it as often as you like. It says which properties
# hold, what was probably meant, and a hint. All hints are folded below each check. Grading uses the same properties on
# other inputs. In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# **Notation.** A weight $W$ has shape `(out, in)`, the thin matrices are $A$ `(r, in)` and $B$ `(out, r)`, and the update is
# $\Delta W = \frac{\alpha}{r} B A$.

# %%
import math

import torch
from torch import nn

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. Count
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 1 of 5 | 5 | LoRA article, *parameter efficiency*; Hu et al. 2021, §4.2 | counting the full matrix, or only one of the two thin ones |
#
# How many numbers does an adapter train on a layer with `in_features` inputs and `out_features` outputs at rank `rank`?
#
# **Expected:** `count_parameters(100, 500, 5)` is 3000.


# %% answer="count_parameters"
def count_parameters(in_features, out_features, rank):
    """The number of trainable parameters of a LoRA adapter on one linear layer."""
    ### BEGIN SOLUTION
    return rank * (in_features + out_features)
    ### END SOLUTION


# %% test="test_count_parameters" points=1
check("01.1", count_parameters)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("01.1", count_parameters)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 01.1}}

# %% [markdown]
# ## Problem 2. Two paths
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | LoRA article, *implementing LoRA*; Hu et al. 2021, §4.1 | a transpose too few, or α instead of α/r |
#
# Apply a layer with an adapter to rows `x` of shape `(..., in)`. Leave $W$ as it is: other adapters need it.
#
# **Expected:** a tensor of shape `(..., out)`; with $B = 0$ it is $x W^\top$.


# %% answer="lora_forward"
def lora_forward(x, W, A, B, alpha):
    """The output of a linear layer with weight W and a LoRA adapter (A, B)."""
    ### BEGIN SOLUTION
    rank = A.shape[0]
    return x @ W.T + (alpha / rank) * (x @ A.T @ B.T)
    ### END SOLUTION


# %% test="test_lora_forward" points=3
check("01.2", lora_forward)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("01.2", lora_forward)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 01.2}}

# %% [markdown]
# ## Problem 3. The start
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | Hu et al. 2021, §4.1 | A filled as `(in, r)` and transposed: its numbers are then far too large |
#
# Return the pair $A$, $B$ with which training starts: $A$ Kaiming-uniform with $a = \sqrt 5$, and the model unchanged.
#
# **Expected:** $A$ within $\pm 1/\sqrt{\text{in}}$, another one with each call; $B$ exactly zero.


# %% answer="init_lora"
def init_lora(in_features, out_features, rank):
    """The start of an adapter: A (rank, in_features) random, B (out_features, rank) zero."""
    ### BEGIN SOLUTION
    A = torch.empty(rank, in_features)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A, torch.zeros(out_features, rank)
    ### END SOLUTION


# %% test="test_init_lora" points=2
check("01.3", init_lora)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("01.3", init_lora)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 01.3}}

# %% [markdown]
# ## Problem 4. Merge
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | LoRA article, *reducing inference overhead*; Hu et al. 2021, §4.1 | writing into W, so that the merge can't be undone |
#
# Make the one weight that does what weight and adapter do together.
#
# **Expected:** a new tensor of W's shape; W itself stays.


# %% answer="merge"
def merge(W, A, B, alpha):
    """The weight W with the adapter (A, B) added to it."""
    ### BEGIN SOLUTION
    return W + (alpha / A.shape[0]) * (B @ A)
    ### END SOLUTION


# %% test="test_merge" points=2
check("01.4", merge)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("01.4", merge)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 01.4}}

# %% [markdown]
# ## Problem 5. A module
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 20 | LoRA article, *implementing LoRA* | the base stays trainable, or A and B are plain tensors that no optimizer sees |
#
# Wrap an `nn.Linear`. The base is frozen, the parameters are called `lora_A` and `lora_B`, and at the start the module
# computes what the base computes.
#
# **Expected:** `LoRALayer(nn.Linear(8, 4), rank=2, alpha=4)` trains 24 numbers; its output has shape `(..., 4)`.


# %% answer="LoRALayer"
class LoRALayer(nn.Module):
    """A frozen linear layer with a trainable LoRA adapter beside it."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        ### BEGIN SOLUTION
        self.base = base.requires_grad_(False)
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        ### END SOLUTION

    def forward(self, x):
        ### BEGIN SOLUTION
        return self.base(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)
        ### END SOLUTION


# %% test="test_LoRALayer" points=4
check("01.5", LoRALayer)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("01.5", LoRALayer)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 01.5}}

# %% [markdown]
# ## Problem 6. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | LoRA article, *parameter efficiency* | forgetting that both sides of the matrix count |
#
# A square layer has 4096 inputs and outputs, as in a 7B LLaMA. At which rank does its adapter hold as many numbers as the
# layer itself? Set `break_even_rank` before you run anything, then run the cell below.
#
# **Expected:** a whole number.

# %% answer="break_even_rank"
break_even_rank = None
### BEGIN SOLUTION
break_even_rank = 2048
### END SOLUTION

# %%
for rank in (8, 256, 1024, 2048, 4096):
    share = rank * (4096 + 4096) / 4096**2
    print(f"rank {rank:5d}: {share:7.2%} of the layer's numbers")

# %% test="test_break_even_rank" points=1
check("01.6", break_even_rank)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("01.6", break_even_rank)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 01.6}}

# %% [markdown]
# ## Problem 7. In your own words
#
# Why does LoRA start with $B = 0$ and not with $A = 0$, or with both random? Three sentences. A person reads this one.

# %% [markdown] manual="why_b_is_zero" points=2
# ### BEGIN SOLUTION
# With B = 0 the update is zero, so training starts at the pretrained model. The gradient of B is proportional to A x, which
# is not zero as A is random, so learning begins at once. With A = 0 and B random it would work as well. With both zero no
# gradient flows. With both random the model starts as another model. Full points: start and gradient are both named.
# ### END SOLUTION
