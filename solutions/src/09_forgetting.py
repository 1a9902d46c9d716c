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
# # Assignment 09 · What it costs
#
# Seven problems on lesson 09: measure forgetting, compare runs fairly, weaken intruders, and judge what that buys. About
# 75 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# **Notation.** $W_0$ is a pretrained matrix, $W$ the tuned one, both `(out, in)`; $W - W_0$ is the update. Losses are in
# nats a token.

# %%
import torch

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. Forgetting
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Shuttleworth et al., *forgetting* (figure 9) | the mean of the texts' means: it counts a token of a short text more |
#
# You get the losses of every token of some plain texts, before and after fine-tuning: two lists with one tensor a text, of
# different lengths. By how much has the loss risen, in nats a token?
#
# **Expected:** 0 for two equal lists; 0.25 where every token has become a quarter of a nat harder.


# %% answer="forgetting"
def forgetting(before, after):
    """Forgetting in nats a token, from lists of token losses, one tensor (tokens,) a text."""
    ### BEGIN SOLUTION
    return float(torch.cat(after).mean() - torch.cat(before).mean())
    ### END SOLUTION


# %% test="test_forgetting" points=2
check("09.1", forgetting)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("09.1", forgetting)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 09.1}}

# %% [markdown]
# ## Problem 2. Forgetting at one task loss
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Shuttleworth et al., *equal performance* (figure 5) | the value of the nearest step: the two runs are then compared at two losses |
#
# A run that has learned more has had more time to forget. So runs are compared where their task loss is the same. A run
# was looked at now and then: `losses` are its task losses, mostly falling, `forgetting` what it had forgotten by then. How much
# had it forgotten when its task loss first fell to `target`? Between two looks, take a straight line.
#
# **Expected:** `at_loss([3.0, 2.0, 1.0], [0.0, 0.1, 0.5], 1.5)` is 0.3; `None` for a run that never gets there.
# A run that begins at the target is there at its first look.


# %% answer="at_loss"
def at_loss(losses, forgetting, target):
    """Forgetting where the task loss first falls to the target, or None."""
    ### BEGIN SOLUTION
    if losses[0] == target:
        return forgetting[0]
    for i in range(len(losses) - 1):
        if losses[i] > target >= losses[i + 1]:
            share = (losses[i] - target) / (losses[i] - losses[i + 1])
            return forgetting[i] + share * (forgetting[i + 1] - forgetting[i])
    return None
    ### END SOLUTION


# %% test="test_at_loss" points=3
check("09.4", at_loss)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("09.4", at_loss)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 09.4}}

# %% [markdown]
# ## Problem 3. Tasks in a row
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Shuttleworth et al., *continual learning* (figure 8) | one row too early: row 0 is the base |
#
# A model learns $T$ tasks one after the other. `losses` is `(T + 1, T)`: row 0 holds the base model's loss on every task, row
# $t$ those after the $t$-th task was trained. What has a task lost by the end, compared with just after it was trained, on
# average over all tasks but the last?
#
# **Expected:** a number, in nats; 0 where no later task changed anything.


# %% answer="average_forgetting"
def average_forgetting(losses):
    """What the earlier tasks have lost by the end of the sequence, on average, from losses (T + 1, T)."""
    ### BEGIN SOLUTION
    tasks = losses.shape[1]
    lost = [float(losses[-1, j] - losses[j + 1, j]) for j in range(tasks - 1)]
    return sum(lost) / len(lost)
    ### END SOLUTION


# %% test="test_average_forgetting" points=2
check("09.5", average_forgetting)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("09.5", average_forgetting)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 09.5}}

# %% [markdown]
# ## Problem 4. Weaker intruders
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | Shuttleworth et al., version 3, *scaling intruder dimensions* | all k strongest vectors are scaled, or only what the update adds along them |
#
# Among the `k` strongest left singular vectors of $W$, an intruder is one whose largest |cosine| with any left singular
# vector of $W_0$ is below `epsilon`. Multiply the singular values of the intruders by `factor`; leave all else of $W$ as it is.
#
# **Expected:** a new matrix `(out, in)`; with `factor` 1 it is $W$.


# %% answer="scale_intruders"
def scale_intruders(W0, W, k, epsilon, factor):
    """The tuned matrix with the singular values of its intruder dimensions multiplied by factor."""
    ### BEGIN SOLUTION
    U0 = torch.linalg.svd(W0, full_matrices=False).U
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    intruding = (U[:, :k].T @ U0).abs().max(dim=1).values < epsilon
    S[:k] = torch.where(intruding, factor * S[:k], S[:k])
    return (U * S) @ Vh
    ### END SOLUTION


# %% test="test_scale_intruders" points=4
check("09.2", scale_intruders)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("09.2", scale_intruders)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 09.2}}

# %% [markdown]
# ## Problem 5. What a price buys
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | lesson 09, *are the intruders to blame?* | the strongest change that can be paid instead of the best one |
#
# Undoing a part of the training may bring a part of the text back, and costs a part of the task. To compare two ways of
# doing so, ask what each buys at one price. `base` is the base model's text loss. `tuned` is the tuned model's pair (task loss,
# text loss). `changed` holds such a pair for each change to the tuned model. Return the largest share of the forgetting that a
# change removes while the task loss rises by at most `cost`.
#
# **Expected:** `removed_at_cost(3.0, (1.0, 4.0), [(1.1, 3.8), (1.5, 3.4)], 0.2)` is 0.2; 0 where nothing can be paid.


# %% answer="removed_at_cost"
def removed_at_cost(base, tuned, changed, cost):
    """The largest share of the forgetting that one of the changes removes at that price."""
    ### BEGIN SOLUTION
    affordable = [text for task, text in changed if task - tuned[0] <= cost]
    return max(((tuned[1] - text) / (tuned[1] - base) for text in affordable), default=0.0)
    ### END SOLUTION


# %% test="test_removed_at_cost" points=3
check("09.6", removed_at_cost)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("09.6", removed_at_cost)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 09.6}}

# %% [markdown]
# ## Problem 6. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | lesson 09; PEFT's `reduce_intruder_dimension` cuts the result back to the old rank | taking the intruders for parts of the update |
#
# A layer of 64 × 96 has an adapter of rank 8. Three of the ten strongest singular vectors of $W = W_0 + \Delta W$ are intruders,
# and you multiply their singular values by 0.7. The result is $W_0$ plus a new update: of which rank, in general? Set
# `rank_after` before you run anything, then run the cell below.
#
# **Expected:** a whole number.

# %% answer="rank_after"
rank_after = None
### BEGIN SOLUTION
rank_after = 11
### END SOLUTION

# %%
generator = torch.Generator().manual_seed(0)
pretrained = torch.randn(64, 96, generator=generator, dtype=torch.float64)
update = torch.randn(64, 8, generator=generator).double() @ torch.randn(8, 96, generator=generator).double()
left, values, right = torch.linalg.svd(pretrained + update, full_matrices=False)
likeness = (left[:, :10].T @ torch.linalg.svd(pretrained, full_matrices=False).U).abs().max(dim=1).values
three = likeness.argsort()[:3]  # of the ten strongest, those that are least like any pretrained vector
new_update = update - 0.3 * (left[:, three] * values[three]) @ right[three]
print("singular values of the new update:", [round(v, 2) for v in torch.linalg.svdvals(new_update)[:14].tolist()])

# %% test="test_rank_after" points=1
check("09.7", rank_after)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("09.7", rank_after)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 09.7}}

# %% [markdown]
# ## Problem 7. In your own words
#
# Somebody scales the intruders of a model by 0.7, sees that a third of the forgetting is gone, and concludes that intruders
# cause forgetting. What is missing? Three sentences. A person reads this one.

# %% [markdown] manual="what_is_missing" points=2
# ### BEGIN SOLUTION
# A control is missing. Any step back towards the pretrained weights may undo some forgetting. So the same must be tried with as
# many other singular values, or with the whole update. And the price: the three have to be compared at the same loss on the task,
# over several seeds. Full points: a control and the equal price are both named.
# ### END SOLUTION
