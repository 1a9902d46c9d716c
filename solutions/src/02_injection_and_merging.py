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
#     may_import: [lora, models, data]
# ---

# %% [markdown]
# # Assignment 02 · Injection and merging
#
# Nine problems on lesson 02. You count adapters on a LLaMA, find the layers they go to, put them in and count what trains.
# Then you merge them, load them safely and serve many customers in one batch. At the end you predict what a subtraction
# brings back, and say when not to merge. About 110 minutes; everything runs in seconds on any laptop, on models of a few thousand parameters.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
#
# **Please write the parts yourself.** The package has its own `inject` and `merge`; here they are what you build. `torch` and
# the methods of `nn.Module` are yours to use.

# %%
import math

import torch
from torch import nn

from lorahub_edu.show.check import check


class LoRALayer(nn.Module):
    """The layer of assignment 01: x W^T + b + (alpha / rank) x A^T B^T, with B = 0 at the start."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)


# %% [markdown]
# ## Problem 1. Count before you build
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 15 | Hu et al. 2021, §4.2; LoRA article, *parameter efficiency* | taking k_proj and v_proj to be as wide as q_proj |
#
# How many numbers do adapters of rank `rank` train on the matrices `targets` in all layers of a LLaMA? `config` has
# `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads` and `head_dim`.
#
# **Expected:** a whole number. For SmolLM2-135M with rank 8 on `q_proj` and `v_proj` it is 460,800.


# %% answer="adapter_parameters"
def adapter_parameters(config, rank, targets):
    """The number of trainable parameters of LoRA adapters on a whole LLaMA."""
    ### BEGIN SOLUTION
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    sides = {"q_proj": d + q, "k_proj": d + kv, "v_proj": d + kv, "o_proj": q + d}
    sides |= {"gate_proj": d + f, "up_proj": d + f, "down_proj": f + d}
    return config.num_hidden_layers * rank * sum(sides[target] for target in targets)
    ### END SOLUTION


# %% test="test_adapter_parameters" points=2
check("02.4", adapter_parameters)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.4", adapter_parameters)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.4}}

# %% [markdown]
# ## Problem 2. Find the layers
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Hu et al. 2021, §4.2 | asking whether the name *contains* `q_proj`: that finds other modules too |
#
# Return the dotted names of all linear layers whose last name is one of `endings`, in the model's own order.
#
# **Expected:** for a LLaMA and `["q_proj"]` it is `["model.layers.0.self_attn.q_proj", …]`, one for each layer.


# %% answer="find_targets"
def find_targets(model, endings):
    """The dotted names of the linear layers whose last name is one of the endings."""
    ### BEGIN SOLUTION
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in endings
    ]
    ### END SOLUTION


# %% test="test_find_targets" points=2
check("02.5", find_targets)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.5", find_targets)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.5}}

# %% [markdown]
# ## Problem 3. Inject
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 20 | Hu et al. 2021, §4.2 | setting a dotted name on the model itself: the model goes on through the old layer |
#
# Put a `LoRALayer` of its own in the place of every layer that `find_targets` finds, in place. Only the new matrices train.
#
# **Expected:** nothing is returned; right after the call the model computes exactly what it did before.


# %% answer="inject"
def inject(model, endings, rank, alpha):
    """Freeze the model and give each layer with such an ending a LoRA adapter, in place."""
    ### BEGIN SOLUTION
    model.requires_grad_(False)
    for name in find_targets(model, endings):
        model.set_submodule(name, LoRALayer(model.get_submodule(name), rank, alpha))
    ### END SOLUTION


# %% test="test_inject" points=4
check("02.6", inject)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.6", inject)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.6}}

# %% [markdown]
# ## Problem 4. Count what trains
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | LoRA article, *parameter efficiency* | counting the output head and the embedding as two, though they are one tensor |
#
# Return two numbers: how many numbers of the model are trained, and how many it has. The small LLaMAs here, like SmolLM2, tie
# their output head to their embedding: that tensor counts once.
#
# **Expected:** a pair of whole numbers, first what trains.


# %% answer="count"
def count(model):
    """(numbers that are trained, all numbers) of a model."""
    ### BEGIN SOLUTION
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
    ### END SOLUTION


# %% test="test_count" points=2
check("02.7", count)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.7", count)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.7}}

# %% [markdown]
# ## Problem 5. Merge
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Hu et al. 2021, §4.1, *no additional inference latency* | keeping the weight itself instead of a copy of it |
#
# `updates` holds `(A, B)` in float32 for some layers of a plain model, by the layer's name; ranks may differ. Add
# $\frac{\alpha}{r} B A$ to each of these weights, in place. The model may be in bfloat16: add in float32, round once. Return the
# old weights by layer, so that the merge can be undone bit for bit.
#
# **Expected:** a dictionary from names to tensors; all other weights stay as they are.


# %% answer="merge_model"
def merge_model(model, updates, alpha):
    """Add the updates to the model's weights, in place; returns the old weights by layer."""
    ### BEGIN SOLUTION
    kept = {}
    for name, (A, B) in updates.items():
        weight = model.get_submodule(name).weight
        kept[name] = weight.detach().clone()
        merged = weight.detach().float() + alpha / A.shape[0] * (B @ A)
        weight.data = merged.to(weight.dtype)
    return kept
    ### END SOLUTION


# %% test="test_merge_model" points=3
check("02.8", merge_model)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.8", merge_model)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.8}}

# %% [markdown]
# ## Problem 6. Load, or refuse
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | this course, lesson 02 | `load_state_dict(…, strict=False)`, which says nothing about a name that it doesn't know |
#
# `state` holds tensors read from an adapter's file, by parameter name. If its names are exactly those of the parameters that
# train, with the same shapes, copy them in. If anything doesn't fit, raise `ValueError` and change nothing at all.
#
# **Expected:** nothing is returned; parameters stay the same objects, and those that trained still train.


# %% answer="load_adapter"
def load_adapter(model, state):
    """Fill the trained parameters of a model from tensors by name; all or nothing."""
    ### BEGIN SOLUTION
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if set(own) != set(state):
        raise ValueError(f"The names don't fit: {sorted(set(own) ^ set(state))}")
    wrong = [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"The shapes don't fit: {wrong}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
    ### END SOLUTION


# %% test="test_load_adapter" points=3
check("02.9", load_adapter)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.9", load_adapter)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.9}}

# %% [markdown]
# ## Problem 7. One batch, many customers
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 15 | LoRA article, *reducing inference overhead* | `A[-1]` for a row without an adapter: that is the last customer's |
#
# One base serves many customers at once: row $i$ of the batch goes through adapter `which[i]`, or through none where that is -1.
# `x` is `(rows, tokens, in)`, `A` is `(adapters, r, in)`, `B` is `(adapters, out, r)`, `which` is `(rows,)`.
#
# **Expected:** a tensor of shape `(rows, tokens, out)`.


# %% answer="routed"
def routed(x, W, A, B, which, alpha):
    """The output of a layer where each row of the batch has an adapter of its own, or none."""
    ### BEGIN SOLUTION
    update = x @ A[which].mT @ B[which].mT
    has_one = (which >= 0).to(x.dtype)[:, None, None]
    return x @ W.T + alpha / A.shape[1] * update * has_one
    ### END SOLUTION


# %% test="test_routed" points=3
check("02.10", routed)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.10", routed)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.10}}

# %% [markdown]
# ## Problem 8. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | this course, lesson 02 | calculating with bfloat16 as if it were exact |
#
# A weight of 256 × 256 is held in bfloat16. An update about a third as large is added to it, and then subtracted again. How many
# of its numbers are bit for bit what they were?
#
# - **A** all of them
# - **B** all but fewer than one in a hundred
# - **C** most of them: between a tenth and a half are changed
# - **D** hardly any
#
# Set `brought_back` to a letter before you run anything, then run the cell below.
#
# **Expected:** one letter in quotes.

# %% answer="brought_back"
brought_back = None
### BEGIN SOLUTION
brought_back = "C"
### END SOLUTION

# %%
generator = torch.Generator().manual_seed(0)
W = (0.05 * torch.randn(256, 256, generator=generator)).bfloat16()
for share in (0.01, 0.1, 0.3, 1.0):
    delta = (share * 0.05 * torch.randn(256, 256, generator=generator)).bfloat16()
    same = ((W + delta) - delta == W).float().mean()
    print(f"update {share:4.0%} as large as the weight: {same:6.1%} of the numbers are what they were")

# %% test="test_brought_back" points=1
check("02.11", brought_back)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("02.11", brought_back)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 02.11}}

# %% [markdown]
# ## Problem 9. In your own words
#
# A merged adapter costs nothing at inference. Name two situations in which you would keep it apart all the same, and what
# each of them needs that a merged model can't give. Three sentences. A person reads this one.

# %% [markdown] manual="when_not_to_merge" points=2
# ### BEGIN SOLUTION
# Many customers share one base in memory: each row of a batch needs its own adapter, and a merged weight has room for one.
# Or the adapter is still to be trained, compared, switched off or composed with others: then the base must be there
# unchanged, and W + ΔW - ΔW is not W in bfloat16. Full points: two different situations, each with its reason.
# ### END SOLUTION
