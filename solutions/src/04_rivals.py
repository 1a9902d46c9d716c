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
# # Assignment 04 · LoRA among its rivals
#
# Eleven problems on lesson 04. The first six are a bottleneck, a gated prompt, a prefix, IA3's scales, DoRA's weight and a
# soft prompt. Then come what each method trains, biases, two predictions, and a comparison to judge. About 125 minutes; everything runs in seconds on
# any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# **Please write the parts yourself.** PEFT has all of these methods; here you build what they compute. Weights are `(out,
# in)`, as torch has them; $d$ is the width of the hidden state or of a head.

# %%
import math

import torch
from torch import nn

from lorahub_edu.show.check import check

# %% [markdown]
# ## Problem 1. A bottleneck
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Houlsby et al. 2019, arXiv 1902.00751, §2.1; lesson 04 | the input beside it is forgotten: the adapter then starts at zero instead of at the identity |
#
# The adapter stands behind a layer: down to a few numbers, ReLU, up again, and the input is added. `down` is `(m, d)`, `up`
# is `(d, m)`.
#
# **Expected:** a tensor of x's shape; with `up` at zero it is x. Leave x itself alone.


# %% answer="bottleneck"
def bottleneck(x, down, up):
    """What a bottleneck adapter hands on to the next layer."""
    ### BEGIN SOLUTION
    return x + torch.relu(x @ down.T) @ up.T
    ### END SOLUTION


# %% test="test_bottleneck" points=2
check("04.1", bottleneck)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.1", bottleneck)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.1}}

# %% [markdown]
# ## Problem 2. What a gated prompt adds
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | Zhang et al. 2023, arXiv 2303.16199, §3.2; lesson 04 | the gate inside the softmax: at gate 0 that adds the mean of the values, not nothing |
#
# In LLaMA-Adapter the text's queries also look at a trained prompt, with a softmax of its own. A gate says how much of
# the result counts. `queries` is `(heads, T, d)`; `keys` and `values` of the prompt are `(heads, P, d)`. Return what is *added*
# to the heads' outputs.
#
# **Expected:** a tensor of the queries' shape; zero at gate 0.


# %% answer="gated_prompt"
def gated_prompt(queries, keys, values, gate):
    """What a gated prompt adds to the outputs of the heads."""
    ### BEGIN SOLUTION
    weights = torch.softmax(queries @ keys.mT / math.sqrt(queries.shape[-1]), -1)
    return gate * weights @ values
    ### END SOLUTION


# %% test="test_gated_prompt" points=2
check("04.2", gated_prompt)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.2", gated_prompt)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.2}}

# %% [markdown]
# ## Problem 3. Attention with a prefix
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 20 | Li and Liang 2021, arXiv 2101.00190, §4.2 | one triangle over everything: the first tokens then see only a part of the prefix |
#
# In prefix tuning each layer has trained keys and values in front of the text's. `q`, `k`, `v` are `(heads, T, d)`,
# `prefix_k` and `prefix_v` are `(heads, P, d)`. Every token sees the whole prefix, and of the text itself and what came
# before. One softmax runs over both.
#
# **Expected:** a tensor of shape `(heads, T, d)`: the prefix has no queries.


# %% answer="prefix_attention"
def prefix_attention(q, k, v, prefix_k, prefix_v):
    """Causal attention with a trained prefix in front."""
    ### BEGIN SOLUTION
    length, prefix = q.shape[1], prefix_k.shape[1]
    keys, values = torch.cat([prefix_k, k], 1), torch.cat([prefix_v, v], 1)
    allowed = torch.cat([torch.ones(length, prefix), torch.ones(length, length).tril()], 1).bool()
    scores = (q @ keys.mT / math.sqrt(q.shape[-1])).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ values
    ### END SOLUTION


# %% test="test_prefix_attention" points=4
check("04.4", prefix_attention)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.4", prefix_attention)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.4}}

# %% [markdown]
# ## Problem 4. Merge IA3
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | Liu et al. 2022, arXiv 2205.05638, §3.3 | the factors on the wrong side of the weight, which no error reports when it is square |
#
# IA3 multiplies what k_proj and v_proj put out by one factor for each output. In the feed-forward it multiplies what
# down_proj *takes in* by one factor for each input. Write the factors into the weight, so that inference costs nothing
# extra.
#
# **Expected:** a new weight of W's shape; `feedforward` says which of the two it is.


# %% answer="merge_ia3"
def merge_ia3(W, scale, feedforward):
    """The weight with IA3's factors written into it."""
    ### BEGIN SOLUTION
    return W * scale if feedforward else scale[:, None] * W
    ### END SOLUTION


# %% test="test_merge_ia3" points=2
check("04.5", merge_ia3)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.5", merge_ia3)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.5}}

# %% [markdown]
# ## Problem 5. DoRA's weight
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 4 of 5 | 15 | Liu et al. 2024, arXiv 2402.09353, §4.1 (there a weight is (in, out), so its columns are torch's rows) | dividing by the lengths of W's rows instead of those of W + ΔW |
#
# DoRA trains direction and length apart. With $V = W + \frac{\alpha}{r} B A$, row $i$ of the weight has the direction of
# row $i$ of $V$ and the length `magnitude[i]`.
#
# **Expected:** a tensor of W's shape; W again if $B = 0$ and `magnitude` holds the lengths of W's rows.


# %% answer="dora_weight"
def dora_weight(W, A, B, magnitude, alpha):
    """The weight of a DoRA layer."""
    ### BEGIN SOLUTION
    V = W + alpha / A.shape[0] * (B @ A)
    return magnitude[:, None] * V / V.norm(dim=1, keepdim=True)
    ### END SOLUTION


# %% test="test_dora_weight" points=3
check("04.6", dora_weight)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.6", dora_weight)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.6}}

# %% [markdown]
# ## Problem 6. A soft prompt in front
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Lester et al. 2021, arXiv 2104.08691, §2 | labels and mask stay as long as they were |
#
# `prompt` holds P trained vectors, `(P, d)`. Put them in front of every row of `embeddings` `(rows, T, d)`, and make
# `labels` and `mask` `(rows, T)` fit: the vectors are seen, and take no loss.
#
# **Expected:** embeddings `(rows, P + T, d)`, labels and mask `(rows, P + T)`.


# %% answer="with_prompt"
def with_prompt(embeddings, prompt, labels, mask):
    """Embeddings, labels and mask with a soft prompt in front of every row."""
    ### BEGIN SOLUTION
    rows, size = len(embeddings), len(prompt)
    return (
        torch.cat([prompt.expand(rows, -1, -1), embeddings], 1),
        torch.cat([labels.new_full((rows, size), -100), labels], 1),
        torch.cat([mask.new_ones(rows, size), mask], 1),
    )
    ### END SOLUTION


# %% test="test_with_prompt" points=3
check("04.7", with_prompt)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.7", with_prompt)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.7}}

# %% [markdown]
# ## Problem 7. What each method trains
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 20 | Hu et al. 2021, table 4; lesson 04 | a prefix as wide as the hidden state: with grouped queries, keys and values are narrower |
#
# A LLaMA has `layers` layers. Its hidden state has `hidden` numbers, and q_proj puts out as many. Keys and values have `kv`
# each, and the feed-forward has `inner` numbers inside. How many numbers train? `method` is one of
#
# - `"prompt"`: `size` vectors in front of the embeddings,
# - `"prefix"`: `size` keys and `size` values in front of the text's, in every layer,
# - `"ia3"`: factors for keys, values and the inner numbers of the feed-forward,
# - `"bitfit"`: a bias on all seven matrices of every layer,
# - `"lora"`: A and B of rank `size` on q_proj and v_proj.
#
# **Expected:** a whole number; the check counts on a real small model.


# %% answer="trained"
def trained(method, layers, hidden, kv, inner, size):
    """The numbers that a method trains on a LLaMA."""
    ### BEGIN SOLUTION
    each_layer = {
        "prefix": 2 * size * kv,
        "ia3": 2 * kv + inner,
        "bitfit": 3 * hidden + 2 * kv + 2 * inner,
        "lora": size * (2 * hidden + hidden + kv),
    }
    return size * hidden if method == "prompt" else layers * each_layer[method]
    ### END SOLUTION


# %% test="test_trained" points=3
check("04.8", trained)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.8", trained)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.8}}

# %% [markdown]
# ## Problem 8. Train the biases only
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Ben Zaken et al. 2021, arXiv 2106.10199; lesson 04 | overlooking layers without a bias: a LLaMA has no other |
#
# Give every `nn.Linear` in the model a trained `bias`, wherever it stands: a new one starts at zero, one that is there
# stays as it is. Nothing else trains.
#
# **Expected:** the model is changed in place; right after the call it computes what it did.


# %% answer="bitfit"
def bitfit(model):
    """Make the biases of all linear layers, and nothing else, trainable; in place."""
    ### BEGIN SOLUTION
    model.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features))
            layer.bias.requires_grad_(True)
    ### END SOLUTION


# %% test="test_bitfit" points=3
check("04.9", bitfit)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.9", bitfit)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.9}}

# %% [markdown]
# ## Problem 9. Predict: two rules for the scale
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | Kalajdzievski 2023, arXiv 2312.03732; Hu et al. 2021, §4.1 | giving one of the two factors instead of their quotient |
#
# LoRA multiplies $B A$ by $\alpha / r$, rank-stabilised LoRA by $\alpha / \sqrt r$. At rank 64 and α = 16, how many times
# larger is the second factor? Set `times_larger` before you run anything, then run the cell below.
#
# **Expected:** a number.

# %% answer="times_larger"
times_larger = None
### BEGIN SOLUTION
times_larger = 8
### END SOLUTION

# %%
for rank in (1, 4, 16, 64, 256):
    lora, stabilised = 16 / rank, 16 / math.sqrt(rank)
    print(f"rank {rank:3d}: alpha/r = {lora:7.4f}, alpha/sqrt(r) = {stabilised:7.4f}, {stabilised / lora:4.0f} times larger")

# %% test="test_times_larger" points=1
check("04.10", times_larger)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.10", times_larger)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.10}}

# %% [markdown]
# ## Problem 10. Predict: what can't be merged
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | Hu et al. 2021, §3; lesson 04 | thinking of where a method stands, instead of what it computes |
#
# Once training is over, one of these can't be written into the weights of the model, so it costs time in every forward
# pass. Which?
#
# - **A** LoRA
# - **B** IA3
# - **C** a bottleneck adapter
# - **D** DoRA
#
# Set `not_mergeable` to a letter before you run anything, then run the cell below.
#
# **Expected:** one letter in quotes.

# %% answer="not_mergeable"
not_mergeable = None
### BEGIN SOLUTION
not_mergeable = "C"
### END SOLUTION

# %%
generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


x, W, A, B, scale = draw(200, 8), draw(8, 8), draw(2, 8), draw(8, 2), draw(8)
V = W + B @ A
outputs = {
    "LoRA": x @ W.T + x @ A.T @ B.T,
    "IA3": (x @ W.T) * scale,
    "bottleneck": x @ W.T + torch.relu(x @ W.T @ A.T) @ B.T,
    "DoRA": x @ (scale.abs()[:, None] * V / V.norm(dim=1, keepdim=True)).T,
}
for name, y in outputs.items():
    best = torch.linalg.lstsq(x, y).solution  # the one matrix that comes nearest to the layer
    print(f"{name:10s}: the best matrix leaves {(x @ best - y).norm() / y.norm():.1e} of the output")

# %% test="test_not_mergeable" points=1
check("04.11", not_mergeable)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("04.11", not_mergeable)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 04.11}}

# %% [markdown]
# ## Problem 11. In your own words
#
# A report says: "Method X beats LoRA by one point. Both trained with the learning rate 3e-4 and the seed 0." Name two things that
# you would ask for before you believe it, and say how each could reverse the result. Three sentences. A person reads this one.

# %% [markdown] manual="a_comparison" points=2
# ### BEGIN SOLUTION
# Each method needs a learning rate of its own. At one common rate the comparison measures which method the rate suits, and LoRA's
# best rate may be another one. Several seeds are needed: if seeds alone move a score by a point, the difference is no difference. Also good: equal
# numbers of trained parameters, or the same rows and steps. Full points: two of these, each with how it could reverse the result.
# ### END SOLUTION
