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
# # Assignment 03 · The training loop
#
# Nine problems on lesson 03's second half. The first five are the loss on the labels, one step from many micro-batches, a
# learning rate that warms up and cools down, clipping, and a step of AdamW. Then come the loop itself, perplexity, how many
# steps a run has, and a loss that misleads. About 110 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# **Please write the parts yourself.** `F.cross_entropy` and autograd are yours to use; torch's ready-made schedulers,
# clipping and AdamW are what you build here.

# %%
import math

import torch
import torch.nn.functional as F

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. The loss on the labels
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | this course, lesson 03 | comparing the logits at a token with that token instead of the next |
#
# `logits` is `(rows, T, V)`, `labels` is `(rows, T)` and not shifted: `labels[:, t]` is the token at `t`, or -100. Return
# the mean loss of the next token, in nats, over all labels of all rows.
#
# **Expected:** one number; it is 0 for a model that is sure and right.


# %% answer="label_loss"
def label_loss(logits, labels):
    """Mean cross-entropy of the next token over all labels but -100."""
    ### BEGIN SOLUTION
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    ### END SOLUTION


# %% test="test_label_loss" points=3
check("03.10", label_loss)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.10", label_loss)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.10}}

# %% [markdown]
# ## Problem 2. One step from many micro-batches
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | Raschka 2023, *LoRA & LLaMA*: a batch of 128 rows in micro-batches of 4 | a mean of the micro-batches' means: a micro-batch with one label then weighs as much as one with a hundred |
#
# A classifier has the logits `x @ W.T`. A step's rows come in micro-batches `(x, y)`, where `y` holds classes or -100. Go
# through them one by one and return the gradient, for `W`, of the mean loss over *all* labels of the step.
#
# **Expected:** a tensor of W's shape, the same however the rows are cut into micro-batches.


# %% answer="step_gradient"
def step_gradient(W, micro_batches):
    """The gradient of a step's mean loss, from micro-batches (x, y)."""
    ### BEGIN SOLUTION
    W = W.detach().clone().requires_grad_()
    total = sum((y != -100).sum() for _, y in micro_batches)
    for x, y in micro_batches:
        (F.cross_entropy(x @ W.T, y, ignore_index=-100, reduction="sum") / total).backward()
    return W.grad
    ### END SOLUTION


# %% test="test_step_gradient" points=4
check("03.11", step_gradient)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.11", step_gradient)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.11}}

# %% [markdown]
# ## Problem 3. Warm up, then cool down
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Raschka 2023, *LoRA & LLaMA*: 100 steps of warm-up; Loshchilov and Hutter 2017, arXiv 1608.03983 (cosine) | measuring the cosine from step 0 instead of from the end of the warm-up |
#
# Steps count from 0. The rate rises in a straight line from 0 to `peak`, which it reaches at step `warmup`. Then it falls
# along half a cosine wave to 0, which it reaches at step `total`. `warmup` may be 0.
#
# **Expected:** one number; `learning_rate(warmup, warmup, total, peak)` is `peak`.


# %% answer="learning_rate"
def learning_rate(step, warmup, total, peak):
    """The learning rate of a step."""
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2
    ### END SOLUTION


# %% test="test_learning_rate" points=2
check("03.12", learning_rate)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.12", learning_rate)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.12}}

# %% [markdown]
# ## Problem 4. Clip the gradient
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Pascanu et al. 2013, arXiv 1211.5063, §3.2 | clipping each tensor by its own norm: the step then points elsewhere |
#
# `gradients` is a list of tensors. If the norm of all of them together is above `limit`, shorten them all by one factor so
# that it becomes `limit`; else leave them. Return them, and the norm that they had.
#
# **Expected:** a pair: a list of tensors in the same shapes, and a number.


# %% answer="clip"
def clip(gradients, limit):
    """(gradients of a norm of at most the limit, the norm before)."""
    ### BEGIN SOLUTION
    norm = sum(g.pow(2).sum() for g in gradients).sqrt()
    factor = min(1.0, limit / norm)
    return [factor * g for g in gradients], norm
    ### END SOLUTION


# %% test="test_clip" points=3
check("03.13", clip)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.13", clip)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.13}}

# %% [markdown]
# ## Problem 5. A step of AdamW
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2 | adding the decay to the gradient, which is Adam with L2 |
#
# `m` and `v` are the running averages of the gradient and of its square; `t` is the number of this step and counts from 1.
# Correct both averages, take the step, and shrink the parameter itself by `lr * decay`. `eps` is added to the root.
#
# **Expected:** three tensors: the parameter, `m` and `v` after the step.


# %% answer="adamw_step"
def adamw_step(p, g, m, v, t, lr, betas, eps, decay):
    """(p, m, v) after one step of AdamW."""
    ### BEGIN SOLUTION
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    return p * (1 - lr * decay) - lr * step, m, v
    ### END SOLUTION


# %% test="test_adamw_step" points=4
check("03.14", adamw_step)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.14", adamw_step)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.14}}

# %% [markdown]
# ## Problem 6. The loop
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | this course, lesson 03 | no `zero_grad`: every step then repeats all steps before it |
#
# Train `model` on the mean squared error of each batch `(x, y)` in turn, by plain gradient descent at the rate `lr`. Some
# of its parameters require no gradient: they stay. Return the loss of each batch as it was before its step.
#
# **Expected:** a list of numbers, one for each batch; the model is changed in place.


# %% answer="train"
def train(model, batches, lr):
    """The loss of each batch before its step; the model is trained in place."""
    ### BEGIN SOLUTION
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
    ### END SOLUTION


# %% test="test_train" points=4
check("03.15", train)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.15", train)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.15}}

# %% [markdown]
# ## Problem 7. Perplexity of a set
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | this course, lesson 03 | averaging over rows: a row of three tokens then weighs as much as one of three hundred |
#
# Each row has a mean loss in nats and a number of tokens that it was taken over. Return the perplexity of all rows
# together.
#
# **Expected:** one number; a loss of 0 is a perplexity of 1.


# %% answer="perplexity_of"
def perplexity_of(losses, tokens):
    """The perplexity of a set of rows."""
    ### BEGIN SOLUTION
    total = sum(loss * count for loss, count in zip(losses, tokens, strict=True))
    return math.exp(total / sum(tokens))
    ### END SOLUTION


# %% test="test_perplexity_of" points=2
check("03.3", perplexity_of)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.3", perplexity_of)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.3}}

# %% [markdown]
# ## Problem 8. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | Raschka 2023, LLaMA-Adapter: 62,400 iterations | taking every micro-batch for a step |
#
# A run goes through 62,400 micro-batches of 4 rows; a batch has 128 rows. How many steps does the optimizer take? Set
# `optimizer_steps` before you run anything, then run the cell below.
#
# **Expected:** a number.

# %% answer="optimizer_steps"
optimizer_steps = None
### BEGIN SOLUTION
optimizer_steps = 1950
### END SOLUTION

# %%
steps, rows_seen = 0, 0
for _ in range(62_400):
    rows_seen += 4
    if rows_seen % 128 == 0:
        steps += 1
print(f"{rows_seen:,} rows, {steps:,} steps of the optimizer")

# %% test="test_optimizer_steps" points=1
check("03.16", optimizer_steps)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.16", optimizer_steps)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.16}}

# %% [markdown]
# ## Problem 9. In your own words
#
# Two runs on the same rows report their mean training loss. One takes the loss on responses only, the other on every token, and the
# second reports the lower number. Why does that say nothing about which model answers better? Three sentences. A person reads this one.

# %% [markdown] manual="two_losses" points=2
# ### BEGIN SOLUTION
# The two means go over different tokens: the second counts the prompt's as well. The template is the same in every row, so it is
# soon predicted almost perfectly. That pulls its mean down without a better response. To compare them, take both losses over the same
# response tokens of rows that neither was trained on. Full points: different tokens, why the prompt's are easy, a fair comparison.
# ### END SOLUTION
