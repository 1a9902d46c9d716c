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
# ---

# %% [markdown]
# # 02 · Inside a LLaMA
#
# You will take a real language model apart. You rebuild its forward pass from six short functions until the numbers
# agree. Then you know what each place for an adapter costs.
#
# **You will be able to**
# - follow a sentence through a LLaMA: tokens, embedding, blocks, head, and say what shape it has at each point;
# - write RMSNorm, rotary positions, grouped-query attention and SwiGLU, and prove them equal to `transformers`;
# - say which seven matrices of a block can carry a LoRA adapter, and count an adapter without building it;
# - predict which placement saves parameters, which saves time, and why these are not the same.
#
# **Before this:** lesson 01 (what an adapter's `A` and `B` are). A little PyTorch.
#
# **Sources:** LLaMA (arXiv 2302.13971, §2.2) · RMSNorm (1910.07467) · rotary positions, RoPE (2104.09864) ·
# grouped-query attention (2305.13245) · SwiGLU (2002.05202) · LoRA (2106.09685, §4.2 and §7.1).

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import copy
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained
from lorahub_edu.show.notebook import (
    Row,
    Table,
    check,
    compare,
    figures,
    get_profile,
    open_lesson,
    panels,
    predict,
    publish,
    recall,
    verdict,
)

open_lesson("02_inside_a_llama")

# %%
profile = get_profile()
model, tokenizer = pretrained.load(profile)
config = model.config
print(f"profile {profile.name}: {profile.base_model}, a {type(model).__name__} in {profile.dtype}")

# %% [markdown]
# ## 1. The parts
#
# - A **parameter** is one learnt number. A LLaMA's parameters sit in an **embedding** (one vector for each token of the
#   vocabulary), in a stack of equal **blocks** (also called layers), and in a few **norm** weights.
# - A block has two branches: **attention**, where tokens read from each other, and an **MLP** (multi-layer perceptron),
#   where each token is processed alone. Seven matrices hold nearly all parameters of a block, and these seven can get
#   an adapter.
#
# **Predict** (write it down): which part holds the most parameters: embedding, attention, MLP or norms?

# %%
predict("02.a", "Which part holds the most parameters?", ["embedding", "attention", "MLP", "norms"])

# %%
shown = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "tie_word_embeddings",
)
print("  ".join(f"{name}={getattr(config, name)}" for name in shown))
block = model.model.layers[0]
for name, weight in block.named_parameters():
    print(f"  {name:32} {tuple(weight.shape)!s:14} {weight.numel():>12,}")

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
parts = {"embedding": 0, "attention": 0, "MLP": 0, "norms": 0}
for name, parameter in model.named_parameters():  # a matrix that is used twice is listed once
    kinds = {"self_attn": "attention", "mlp": "MLP", "norm": "norms"}
    parts[next((kind for key, kind in kinds.items() if key in name), "embedding")] += parameter.numel()
total = sum(parts.values())
compare("02.a", max(parts, key=parts.get))
for kind, count in parts.items():
    print(f"{kind:10} {count:>14,}  {count / total:6.1%}")
assert total == adapters.count_parameters(model).total
biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
tied = model.lm_head.weight is model.get_input_embeddings().weight
print(f"biases: {len(biases)}; head and embedding are one matrix: {tied}")

# %% [markdown]
# Remember two things. A **bias** is a constant vector that a layer adds after its matrix. LLaMA has none. Neither has
# PaLM, whose authors report steadier training of large models (arXiv 2204.02311, §2). A method that trains *only*
# biases (BitFit, a later lesson) finds nothing to train here. The printout may say that head and embedding are
# one matrix. Then they are **tied**: the vector that stands for a token on the way in also scores it on the way out. To merge
# an adapter into the head, the two must be parted first, or the input side would change too. This is one more reason why
# adapters stay inside the blocks.
#
# The map below is to scale: a millimetre is the same number of rows or columns everywhere.

# %%
shapes = {
    "attention": {n: tuple(m.weight.shape) for n, m in block.self_attn.named_children() if hasattr(m, "weight")},
    "MLP": {n: tuple(m.weight.shape) for n, m in block.mlp.named_children() if hasattr(m, "weight")},
}
figure, axes = plt.subplots(figsize=(11, 4.6))
figures.plot_block(axes, shapes, profile.rank)
panels.show(
    figure,
    alt="Map of one block, to scale: the residual stream runs along the top; attention with its q, k, v and o matrices "
    "and the MLP with gate, up and down hang below it. Each matrix has a thin strip A below and a thin strip B beside.",
)

# %% [markdown]
# Read it from left to right: every grey rectangle is a pretrained matrix, and the thin strips are the adapter that
# would sit on it. `k_proj` and `v_proj` are lower than `q_proj` wherever key/value heads are shared (step 5); the MLP's
# three matrices are the big ones.

# %% [markdown]
# ## 2. From tokens to logits along the residual stream
#
# - A **token** is a piece of text with a number; the **embedding** turns each number into a vector of `hidden_size`
#   entries. The **residual stream** is this vector on its way up: a branch reads it, and *adds* its result to it.
# - The stream after the last branch goes through one more norm and the head. The head gives a **logit** for every token
#   of the vocabulary. A logit is a score, and its softmax is the probability of coming next.
#
# $$h_0 = \text{embed}(\text{tokens}), \qquad h_{i+1} = h_i + \text{branch}_i(\text{norm}_i(h_i)), \qquad
# \text{logits} = W_{\text{head}}\,\text{norm}(h_{\text{last}})$$

# %%
SENTENCE = "Rome is the capital of Italy and Paris is the capital of"
ids = tokenizer(SENTENCE, return_tensors="pt").input_ids.to(model.device)  # (1, T)
tokens = [tokenizer.decode(i) for i in ids[0]]
with torch.no_grad():
    logits = model(input_ids=ids).logits  # (1, T, vocabulary)
print(f"{len(tokens)} tokens: {tokens}")
print(f"embedding of them: {tuple(model.get_input_embeddings()(ids).shape)}, logits: {tuple(logits.shape)}")
chances, best = logits[0, -1].float().softmax(-1).topk(5)
for chance, token in zip(chances, best, strict=True):
    print(f"  {chance:6.1%}  {tokenizer.decode(token)!r}")

# %% [markdown]
# These five are the tokens that the model considers most likely to come next. With a pretrained model the first should
# make sense; the random model of the `tiny` profile has learnt nothing, and its five are noise.
#
# Is the stream really just a sum? **Hooks** are functions that torch calls with a module's output. Here they collect
# what each branch adds. **Predict:** after which block does the final answer become the likeliest token: early,
# halfway, or late?


# %%
def relative(ours, theirs):
    """Length of the difference against the length of the vector, for the token where it is largest."""
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()


# %%
def branch_outputs(ids):
    """What every attention and every MLP adds to the stream, in order, beginning with the embedding."""
    added = [model.get_input_embeddings()(ids)]

    def keep(_module, _inputs, output):
        added.append(output[0] if isinstance(output, tuple) else output)

    hooks = [part.register_forward_hook(keep) for b in model.model.layers for part in (b.self_attn, b.mlp)]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(added)  # (1 + 2 * layers, 1, T, hidden)

# %%
with torch.no_grad():
    stream = branch_outputs(ids).cumsum(0)[::2]  # (1 + layers, 1, T, hidden): after 0, 1, 2, … blocks
    early = model.lm_head(model.model.norm(stream[:, 0, -1])).float()  # (1 + layers, vocabulary)
off = relative(early[-1], logits[0, -1].float())
assert off < 100 * torch.finfo(model.dtype).eps
print(f"embedding + all branches, through norm and head: {off:.1e} from the model's own logits")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
answer = best[0]
place = (early > early[:, answer, None]).sum(-1) + 1  # (1 + layers,): 1 = the likeliest token at that depth
first = int((place == 1).nonzero()[0])
figure, axes = plt.subplots(figsize=(7, 2.8))
figures.plot_series(
    axes, {f"{tokenizer.decode(answer)!r}": (range(len(place)), place.tolist())}, "blocks passed", "place of the answer"
)
axes.set_yscale("log")
axes.invert_yaxis()
axes.axvline(first, color="black", linestyle=":")
side = "right" if first > len(place) / 2 else "left"
axes.annotate(" in front from here ", (first, 0.08), xycoords=("data", "axes fraction"), ha=side)
panels.show(
    figure,
    alt="Place of the final answer among all tokens, read off the residual stream after each block, on a logarithmic "
    "axis with place 1 at the top.",
)
half = len(place) // 2
print(f"after {half} blocks the answer is at place {place[half]:,} of {config.vocab_size:,}")
print(f"after {first} of {len(place) - 1} blocks it takes the first place")

# %% [markdown]
# The same norm and head, applied to the stream before its end, show where the answer becomes *readable*. A low place in
# the list does not mean that the answer is absent: a block can add information in directions that the head does not
# read, and a later block turns it into an answer. An adapter on a block changes what that block adds, and through it
# what all later blocks read.

# %% [markdown]
# ## 3. RMSNorm: every token brought to the same size
#
# - Branches read the stream through a norm, so that its growing size does not disturb them. **RMSNorm** divides a
#   token's vector by its **root mean square** (RMS); unlike LayerNorm it subtracts no mean and adds no bias.
#
# $$\text{RMSNorm}(x) = g \odot \frac{x}{\sqrt{\tfrac{1}{d}\sum_j x_j^2 + \varepsilon}}$$
#
# with one learnt weight $g_j$ a coordinate and a small $\varepsilon$ against division by zero.
#
# **Predict:** how does the RMS of the stream change from the first to the last block: shrinks, stays, or grows?

# %%
norm = block.input_layernorm
x = stream[0, 0, -1]  # (hidden,): one token, before the first block
with torch.no_grad():
    by_hand = norm.weight * x / (x.pow(2).mean() + config.rms_norm_eps).sqrt()
    print(f"largest difference to the model's own norm: {(by_hand - norm(x)).abs().max():.1e}")
sizes = stream[:, 0].float().pow(2).mean(-1).sqrt()  # (1 + layers, T)
for name, depth in (("embedding", 0), ("middle block", len(sizes) // 2), ("last block", -1)):
    others = sizes[depth, 1:]
    print(f"RMS after the {name:12}: first token {sizes[depth, 0]:8.2f}, others' median {others.median():6.2f}")

# %% [markdown]
# The sizes differ between depths by the factor you see, and the norm removes this factor before each branch: a branch
# sees directions, not sizes. Note the first token if it stands out; you will meet it again in the attention maps.
#
# > **Try it 02.1 · RMSNorm** · easy · 5 minutes
# > Write it for any number of leading axes: `x` is `(..., d)`, `weight` is `(d,)`.
# > *Common bug:* `eps` outside the root, or one mean over all tokens.


# %%
def my_rms_norm(x, weight, eps):
    raise NotImplementedError  # your lines here


check("02.1", my_rms_norm)

# %% [markdown]
# <details><summary>Solution 02.1</summary>
#
# ```python
# def my_rms_norm(x, weight, eps):
#     mean_square = x.pow(2).mean(-1, keepdim=True)  # (..., 1): every token has its own
#     return weight * x / torch.sqrt(mean_square + eps)
# ```
# `keepdim=True` keeps an axis of length 1, so that the division lines up with `(..., d)`.
# </details>

# %% [markdown]
# ## 4. RoPE: positions as rotations
#
# - Attention compares a **query** q (what a token looks for) with a **key** k (what a token offers) by their dot
#   product, the **score**. The dot product does not know where the two stand. **RoPE** (rotary position embedding)
#   takes coordinates two by two as points in a plane. It turns pair $j$ of a token at position $p$ by the angle
#   $p\,\theta^{-2j/d}$. Here $d$ is the width of a head, and $\theta$ is a fixed number from the config.
# - Turning both by the same angle keeps their dot product. So the score depends on the *distance* of the two alone.
#
# $$\langle R_m q,\; R_n k\rangle = \langle R_{m-n}\,q,\; k\rangle$$
#
# With complex numbers a pair is one number and a turn is one multiplication. We take a real query and a real key of the
# first block. **Predict:** the key stands at position 0, 50 or 500, the query some steps after it: three curves or one?

# %%
d, theta = config.head_dim, config.rope_parameters["rope_theta"]
frequencies = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)  # (d/2,), radians a position
with torch.no_grad():
    normed = norm(model.get_input_embeddings()(ids))[0]  # (T, hidden)
    q_last = block.self_attn.q_proj(normed)[-1, :d].double().cpu()  # (d,): head 0 of the last token
    k_first = block.self_attn.k_proj(normed)[0, :d].double().cpu()


# %%
def turned(x, position):
    """A vector at a position: coordinates j and j + d/2 are one complex number, turned."""
    return torch.complex(*x.chunk(2)) * torch.exp(1j * position * frequencies)  # (d/2,)


def score(query_at, key_at):
    return (turned(q_last, query_at) * turned(k_first, key_at).conj()).real.sum().item() / d**0.5


distances, starts = range(0, 64), (0, 50, 500)
curves = {f"key at {start}": (distances, [score(start + n, start) for n in distances]) for start in starts}
apart = max(
    abs(a - b) for start in starts for a, b in zip(curves["key at 0"][1], curves[f"key at {start}"][1], strict=True)
)
print(f"largest difference between the curves: {apart:.1e}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
for index, pair in enumerate((0, d // 8, d // 4)):
    angle = torch.arange(64) * frequencies[pair]
    left.plot(angle.cos(), label=f"pair {pair}", markersize=0, **(figures.line_style(index) | {"marker": None}))
left.set(xlabel="position", ylabel="cosine of the angle", title="each pair turns at its own speed")
left.set_ylim(-1.1, 1.5)
left.legend(frameon=False, loc="upper center", ncols=3)
for index, (name, (_, values)) in enumerate(curves.items()):
    style = figures.line_style(index) | {"linestyle": "none", "markersize": 9 - 3 * index, "fillstyle": "none"}
    right.plot(distances, values, label=name, **style)
right.set(xlabel="distance from key to query (tokens)", ylabel="score", title="only the distance counts")
right.legend(frameon=False)
panels.show(
    figure,
    alt="Left: cosine of three pairs' angles over positions, fast to slow. Right: the score of one query and one key "
    "over their distance, for three places of the key; circles, squares and triangles lie on top of each other.",
)

# %% [markdown]
# The three kinds of markers lie on top of each other: wherever the two tokens stand, their score is the same. Fast
# pairs distinguish near positions, slow pairs distinguish far ones.
#
# **Which two coordinates make a pair?** The RoPE paper takes neighbours: (0, 1), (2, 3), … `transformers` takes
# halves: (0, d/2), (1, d/2 + 1), …, because a half is one slice (its helper is called `rotate_half`). **Predict:** is
# one of the two wrong?

# %%
positions = torch.arange(7, 7 + 5)
x = torch.randn(5, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (T, d), in halves
angles = positions[:, None] * frequencies  # (T, d/2)
cos, sin = (torch.cat((table, table), -1)[None] for table in (angles.cos(), angles.sin()))  # (1, T, d)
halves = apply_rotary_pos_emb(x[None, None], x[None, None], cos, sin)[0][0, 0]  # (T, d), by transformers

order = torch.arange(d).view(2, d // 2).T.flatten()  # 0, d/2, 1, d/2 + 1, …: halves become neighbours
neighbours = torch.view_as_complex(x[:, order].unflatten(-1, (-1, 2)).contiguous())  # (T, d/2), the paper's pairs
paper = torch.view_as_real(neighbours * torch.exp(1j * angles)).flatten(-2)  # (T, d)
print(f"order of the coordinates: {order[:6].tolist()} …")
print(f"same vectors up to that order: {torch.allclose(paper, halves[:, order], rtol=1e-12)}")
print(f"same scores: {torch.allclose(paper @ paper.T, halves @ halves.T, rtol=1e-12)}")

# %% [markdown]
# Neither is wrong: they differ by a fixed reordering (a **permutation**) of the coordinates, which no dot product sees.
# But the *rows* of `q_proj` and `k_proj` are stored in that order. A checkpoint in the paper's layout must have them
# permuted before `transformers` can use it, and an adapter's `B` on these two matrices likewise.
#
# > **Try it 02.2 · rotate by position** · medium · 10 minutes
# > Use the halves' layout and no complex numbers: `x` is `(..., T, d)`, `positions` is `(T,)`.
# > *Common bug:* the exponent is $-2j/d$ with $j$ up to $d/2$; the minus sign belongs to the *first* half.


# %%
def my_apply_rope(x, positions, theta):
    raise NotImplementedError  # your lines here


check("02.2", my_apply_rope)

# %% [markdown]
# <details><summary>Solution 02.2</summary>
#
# ```python
# def my_apply_rope(x, positions, theta):
#     d = x.shape[-1]
#     angles = positions[:, None] * theta ** (-2 * torch.arange(d // 2) / d)  # (T, d/2)
#     cos, sin = angles.cos(), angles.sin()
#     a, b = x[..., : d // 2], x[..., d // 2 :]  # pair j is (a[j], b[j])
#     return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
# ```
# `(T, d/2)` broadcasts over any leading axes, so batches and heads need no loop.
# </details>

# %% [markdown]
# ## 5. Attention with shared keys and values
#
# - Several **heads** work side by side, each with its own slice of q. A token's scores with itself and all earlier
#   tokens become weights by a softmax. Later tokens are **masked** (score $-\infty$, weight 0), because the model must
#   not see what it is to predict. The head's output is the weighted average of the **values** v.
# - In **grouped-query attention** (GQA) a *group* of query heads shares one key head and one value head.
#
# $$\text{head}_i = \text{softmax}\!\Big(\frac{q_i\,k_{g(i)}^\top}{\sqrt d} + \text{mask}\Big)\,v_{g(i)},
# \qquad g(i) = \lfloor i\,/\,\text{group size}\rfloor$$

# %%
group = config.num_attention_heads // config.num_key_value_heads
head = config.num_attention_heads - 1  # the last query head reads the last key head
T = len(tokens)
with torch.no_grad():
    q = block.self_attn.q_proj(normed).view(T, -1, d).transpose(0, 1)  # (heads, T, d)
    k = block.self_attn.k_proj(normed).view(T, -1, d).transpose(0, 1)  # (kv_heads, T, d)
    cos, sin = model.model.rotary_emb(normed, torch.arange(T, device=ids.device)[None])  # (1, T, d) each
    q, k = (t[0] for t in apply_rotary_pos_emb(q[None], k[None], cos, sin))
    scores = q[head] @ k[head // group].mT / d**0.5  # (T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=ids.device).triu(1)  # True above the diagonal
    by_hand = scores.masked_fill(future, -torch.inf).softmax(-1)

# %%
model.set_attn_implementation("eager")  # the slow implementation, which hands out its weights
with torch.no_grad():
    attention_maps = torch.stack(model(input_ids=ids, output_attentions=True).attentions)[:, 0].float().cpu()
model.set_attn_implementation("sdpa")  # (layers, heads, T, T)
print(f"{config.num_attention_heads} query heads, {config.num_key_value_heads} key/value heads: groups of {group}")
print(f"head {head} of block 0, largest difference: {(by_hand.cpu() - attention_maps[0, head]).abs().max():.1e}")

# %% [markdown]
# One head is right, and the others differ only by their slice. Now look at all heads. Each row of pictures below is
# one group: the same keys and values, other queries. **Predict:** do heads of one group look at the same tokens?
#
# Move the slider (arrow keys work) to another block. Where no kernel runs, look at the picture below the panel.


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_attention(figure, layer):
    """One block's heads, a row of pictures for each group; at most three by three."""
    rows, columns = min(config.num_key_value_heads, 3), min(group, 3)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for row in range(rows):
        for column in range(columns):
            number = row * group + column
            title = f"query head {number}, key/value head {row}"
            figures.plot_attention(grid[row][column], attention_maps[layer, number].numpy(), tokens, title)
    share = attention_maps[layer, :, 1:, 0].mean().item()
    return (
        f"Block {layer}: {share:.0%} of all attention goes to the first token (averaged over heads and later tokens)."
    )


depths = list(range(config.num_hidden_layers))
start = config.num_hidden_layers // 3
panels.slider_panel("block", depths, draw_attention, start=start, size=(9, 9))

# %%
figure = plt.figure(figsize=(9, 9))
sentence = draw_attention(figure, start)
panels.show(
    figure, alt=f"Attention maps of block {start}: one small square a head, one row of squares a group. {sentence}"
)
to_first = attention_maps[:, :, 1:, 0].mean((1, 2))  # (layers,)
print(sentence)
least, most = to_first.argmin(), to_first.argmax()
print(f"over the blocks: {to_first[least]:.0%} (block {least}) to {to_first[most]:.0%} (block {most})")

# %% [markdown]
# Bright is weight 1, dark is 0; the upper right corner is the masked future. Sharing keys does not make heads equal:
# their queries differ. In a pretrained model many heads rest on the first token, which serves as a default place when
# there is nothing to find. (The random model of `tiny` spreads its weight evenly.)
#
# **What sharing saves.** To write token after token, the keys and values of all earlier tokens are kept: the **KV
# cache**. **Predict:** by what factor is it smaller than with one key/value head for each query head?

# %%
cache = model(input_ids=ids, use_cache=True).past_key_values
measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / T  # bytes a token
per_head = 2 * config.num_hidden_layers * d * model.dtype.itemsize  # keys and values of one head, all blocks
assert measured == per_head * config.num_key_value_heads
context = config.max_position_embeddings
for name, heads in (
    ("shared heads (this model)", config.num_key_value_heads),
    ("one each", config.num_attention_heads),
):
    size = per_head * heads
    print(f"{name:26} {size / 1e3:7.1f} kB a token, {size * context / 1e6:9,.1f} MB at {context:,} tokens")
print(f"factor {config.num_attention_heads / config.num_key_value_heads:g}, and k_proj, v_proj are as much smaller")

# %% [markdown]
# The measured cache is the formula's to the byte. Sharing also makes `k_proj` and `v_proj` narrower, so an adapter
# on `v_proj` is smaller than an adapter on `q_proj`.
#
# > **Try it 02.3 · grouped-query attention** · medium · 10 minutes
# > All heads at once: `q` is `(B, heads, T, d)`, `k` and `v` are `(B, kv_heads, T, d)`; return `(B, heads, T, d)`.
# > *Common bug:* tiling the heads (0, 1, 0, 1) where each must be repeated (0, 0, 1, 1).


# %%
def my_grouped_query_attention(q, k, v):
    raise NotImplementedError  # your lines here


check("02.3", my_grouped_query_attention)

# %% [markdown]
# <details><summary>Solution 02.3</summary>
#
# ```python
# def my_grouped_query_attention(q, k, v):
#     group, T = q.shape[1] // k.shape[1], q.shape[2]
#     k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # (B, heads, T, d)
#     scores = q @ k.mT / q.shape[-1] ** 0.5  # (B, heads, T, T)
#     future = torch.ones(T, T, dtype=torch.bool).triu(1)
#     return scores.masked_fill(future, -torch.inf).softmax(-1) @ v
# ```
# torch's `F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)` is the same in one call.
# </details>

# %% [markdown]
# ## 6. The whole forward, from scratch
#
# - The MLP is a **SwiGLU**: `up` proposes values, `gate` decides how much of each passes, `down` brings the result back
#   to the stream's width. The gate's curve is SiLU, $\text{silu}(z) = z \cdot \sigma(z)$, a smooth cousin of ReLU.
#
# $$\text{SwiGLU}(x) = W_{\text{down}}\big(\text{silu}(W_{\text{gate}}\,x) \odot W_{\text{up}}\,x\big)$$
#
# - Six functions make the model. One argument is unusual: `inner` is the precision in which the norm's mean and RoPE's
#   angles are computed, because `transformers` always uses float32 for these two.


# %%
def rms_norm(x, weight, eps, inner):
    wide = x.to(inner)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)  # (B, T, hidden)


def rope(x, theta, inner):
    T, d = x.shape[-2:]
    frequencies = 1 / theta ** (torch.arange(0, d, 2, dtype=inner, device=x.device) / d)  # (d/2,)
    angles = torch.arange(T, dtype=inner, device=x.device)[:, None] * frequencies  # (T, d/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)  # (B, heads, T, d/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)  # (B, heads, T, d)


# %%
def attention(x, w, config, inner):
    def heads(name):
        return F.linear(x, w[f"self_attn.{name}.weight"]).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)

    q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")  # (B, heads, T, d), (B, kv_heads, T, d) twice
    q, k = (rope(t, config.rope_parameters["rope_theta"], inner) for t in (q, k))
    group, T = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # (B, heads, T, d)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    weights = (q @ k.mT / config.head_dim**0.5).masked_fill(future, -torch.inf).softmax(-1)  # (B, heads, T, T)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), w["self_attn.o_proj.weight"])  # (B, T, hidden)


# %%
def swiglu(x, w_gate, w_up, w_down):
    return F.linear(F.silu(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)  # (B, T, hidden)


def llama_block(h, w, config, inner):
    x = rms_norm(h, w["input_layernorm.weight"], config.rms_norm_eps, inner)
    h = h + attention(x, w, config, inner)
    x = rms_norm(h, w["post_attention_layernorm.weight"], config.rms_norm_eps, inner)
    return h + swiglu(x, *(w[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))


# %%
def llama(ids, w, config, inner):
    """Logits of a whole LLaMA from its state dict: the model is nothing but these tensors and six functions."""
    h = w["model.embed_tokens.weight"][ids]  # (B, T, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = llama_block(h, {n.removeprefix(prefix): t for n, t in w.items() if n.startswith(prefix)}, config, inner)
    h = rms_norm(h, w["model.norm.weight"], config.rms_norm_eps, inner)
    return F.linear(h, w["lm_head.weight"])  # (B, T, vocabulary); tied: the embedding's own matrix


with torch.no_grad():
    ours = llama(ids, model.state_dict(), config, torch.float32)
top = ours[0, -1].topk(5).indices
print("next token, ours:        ", [tokenizer.decode(i) for i in top])
print("next token, transformers:", [tokenizer.decode(i) for i in best])

# %% [markdown]
# Five equal words are weak evidence: a wrong `eps` would pass this test. So compare numbers, in two precisions:
# float32 keeps about 7 digits, float64 about 16. **Predict** the largest relative difference after one block, for
# float32, and for float64.


# %%
@torch.no_grad()
def compare(dtype, inner):
    """Our blocks beside transformers' own on the same weights: the difference after each block, and of the logits."""
    ours = theirs = model.get_input_embeddings()(ids).to(dtype)
    where, differences = torch.arange(T, device=ids.device)[None], []
    for layer in model.model.layers:
        layer = copy.deepcopy(layer).to(dtype)  # float32 -> float64 loses nothing
        theirs = layer(theirs, position_embeddings=model.model.rotary_emb(theirs, where))
        ours = llama_block(ours, layer.state_dict(), config, inner)
        differences.append(relative(ours, theirs))
    last, w_head = copy.deepcopy(model.model.norm).to(dtype), model.lm_head.weight.to(dtype)
    ours = F.linear(rms_norm(ours, last.weight, config.rms_norm_eps, inner), w_head)
    return [*differences, relative(ours, F.linear(last(theirs), w_head))]

# %%
PRECISIONS = {
    "all in float32": (torch.float32, torch.float32),
    "float64, norm and angles too": (torch.float64, torch.float64),
    "float64, norm and angles in float32": (torch.float64, torch.float32),
}
differences = {name: compare(*precision) for name, precision in PRECISIONS.items()}
rows = [(name, f"{by[0]:.1e}", f"{max(by[:-1]):.1e}", f"{by[-1]:.1e}") for name, by in differences.items()]
TOLERANCES = {"all in float32": 1e-4, "float64, norm and angles in float32": 1e-10}
for name, tolerance in TOLERANCES.items():
    assert max(differences[name]) < tolerance, (name, max(differences[name]))
Table(
    ("precision", "after block 0", "worst block", "logits"),
    tuple(rows),
    "Length of the difference / length of the vector, worst token.",
)

# %%
figure, axes = plt.subplots(figsize=(8, 3.2))
axes.set_yscale("log")
series = {name: (range(1, len(by) + 1), [max(x, 1e-18) for x in by]) for name, by in differences.items()}
figures.plot_series(axes, series, "blocks passed (the last point: logits)", "relative difference")
axes.legend(frameon=False, loc="center right", fontsize=8)
panels.show(
    figure,
    alt="Relative difference between our forward and transformers' after each block, on a logarithmic axis, for three "
    "precisions; only the one that copies transformers' float32 norm and angles falls to float64's rounding.",
)
print(f"tolerances: {TOLERANCES}, both kept in every block and in the logits")

# %% [markdown]
# In float64 alone the difference stops far above float64's own rounding, which looks like a mistake in our code. It is
# not: `transformers` computes the norm and the angles in float32 even when the weights are float64. When we do the
# same, the difference falls to float64's last digits. This is strong evidence for all six functions. (A point at the
# lower edge is an exact zero: the last norm rounds to float32, and what differed beyond that is gone.) A comparison in
# float32 alone could have missed a small mistake.

# %%
with torch.no_grad():
    whole = relative(llama(ids, model.state_dict(), config, torch.float32).float(), logits.float())
print(f"logits of the whole model, ours against model(...): {whole:.1e} of a token's logits")

# %% [markdown]
# ## 7. Where adapters can go: numbers and bytes
#
# - An adapter of rank $r$ on a matrix `(out, in)` has $r\,(\text{in} + \text{out})$ parameters (lesson 01). The LoRA
#   article adapts attention only, and at a fixed budget finds several matrices at low rank better than one at high rank
#   (§7.1).
# - During training each adapter parameter also needs a gradient and AdamW's two running averages: three more numbers.
#
# We put several adapters side by side on *one* base and switch between them. **Predict:** which of these placements has
# more parameters: q, k, v, o together, or gate, up, down together?

# %%
last_third = range(config.num_hidden_layers - max(1, config.num_hidden_layers // 3), config.num_hidden_layers)
PLACEMENTS = {
    "q, v in the last third": tuple(f"layers.{i}.self_attn.{m}_proj" for i in last_third for m in "qv"),
    "q, v": ("q_proj", "v_proj"),
    "q, k, v, o": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gate, up, down": ("gate_proj", "up_proj", "down_proj"),
    "all seven": "all-linear",
}

# %%
for name in PLACEMENTS:
    adapters.remove(model, name)  # if this cell runs again
base_total = adapters.count_parameters(model).total
counts, full = {}, {}
for name, targets in PLACEMENTS.items():
    chosen = LoRAConfig(rank=profile.rank, alpha=profile.alpha, target_modules=targets)
    layers = adapters.inject(model, chosen, adapter=name, seed=0)
    counts[name] = adapters.count_parameters(model).trainable
    full[name] = sum(layer.weight.numel() for _, layer in layers)
    assert counts[name] == sum(profile.rank * (layer.in_features + layer.out_features) for _, layer in layers)

# %%
sizes = {}
with tempfile.TemporaryDirectory() as folder:
    for name in PLACEMENTS:
        saved = adapter_files.save_adapter(model, Path(folder) / "adapter", adapter=name)
        sizes[name] = (saved / adapter_files.WEIGHTS_FILE).stat().st_size
base_bytes = sum(p.nbytes for n, p in model.named_parameters() if "lora_" not in n)

# %%
rows = [
    (
        name,
        f"{counts[name]:,}",
        f"{counts[name] / base_total:.2%}",
        f"{counts[name] / full[name]:.2%}",
        f"{sizes[name] / 1e6:.2f}",
        f"{3 * model.dtype.itemsize * counts[name] / 1e6:.2f}",
    )
    for name in PLACEMENTS
]
header = ("placement", "parameters", "of the model", "of the adapted matrices", "file (MB)", "gradient + AdamW (MB)")
caption = f"Rank {profile.rank}. The base model has {base_total:,} parameters, {base_bytes / 1e6:,.1f} MB."
Table(header, tuple(rows), caption)

# %% [markdown]
# The MLP's matrices are larger, so adapters on them are too. But a rank-$r$ strip grows with a matrix's *sides*, and the
# matrix grows with their product. So the larger the matrix, the smaller the adapter's share of it. Every placement is a
# small file beside the base.

# %% [markdown]
# > **Try it 02.4 · count an adapter without building it** · medium · 10 minutes
# > `config` is the model's; `targets` are names such as `("q_proj", "v_proj")`; return the parameters in all blocks.
# > *Common bug:* taking `k_proj` and `v_proj` as wide as `q_proj`.


# %%
def my_adapter_parameters(config, rank, targets):
    raise NotImplementedError  # your lines here


check("02.4", my_adapter_parameters)

# %% [markdown]
# <details><summary>Solution 02.4</summary>
#
# ```python
# def my_adapter_parameters(config, rank, targets):
#     d, f = config.hidden_size, config.intermediate_size
#     q = config.num_attention_heads * config.head_dim
#     kv = config.num_key_value_heads * config.head_dim
#     sides = {  # in + out
#         "q_proj": d + q, "k_proj": d + kv, "v_proj": d + kv, "o_proj": q + d,
#         "gate_proj": d + f, "up_proj": d + f, "down_proj": f + d,
#     }
#     return config.num_hidden_layers * rank * sum(sides[name] for name in targets)
# ```
# `q` need not equal `d`: some models choose `head_dim` freely.
# </details>

# %% [markdown]
# ## 8. What each placement costs in time
#
# - A training step runs **forward** (to the loss) and **backward** (gradients, from the loss down). Backward does two
#   things in every matrix: it passes the gradient on to the layers below, and it computes the gradient of the weight.
# - A frozen matrix skips the second. It may skip the first only if nothing *below* it is trained.
#
# So the number of parameters says little about time. **Predict** the order of these seven, fastest first: forward
# only · the five placements · training everything.


# %%
def seconds(choice, batch):  # of forward and backward with one placement trained, the base frozen
    adapters.freeze(model)
    adapters.set_adapter(model, choice if choice in PLACEMENTS else None)
    if choice == "everything":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" not in name)
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.set_grad_enabled(choice != "forward only"):
        loss = model(input_ids=batch, labels=batch).loss
    if choice != "forward only":
        loss.backward()
    if batch.is_cuda:
        torch.cuda.synchronize()  # a GPU answers before it has finished
    return time.perf_counter() - started

# %%
REPEATS, ENOUGH, BUDGET = 5, 3, 40.0  # a slow machine may stop after 3 rounds, once 40 seconds have passed
random_ids = torch.randint(
    3, config.vocab_size, (1, profile.block_size // 2), generator=torch.Generator().manual_seed(0)
)
batch = random_ids.to(model.device)  # (1, T): which tokens does not matter for time
choices = ["forward only", *PLACEMENTS, "everything"]
for choice in choices:  # once to warm up
    seconds(choice, batch)
times, began = {choice: [] for choice in choices}, time.perf_counter()
for repeat in range(REPEATS):  # interleaved, so that a busy moment of the machine hits all of them
    if repeat >= ENOUGH and time.perf_counter() - began > BUDGET:
        break
    for choice in choices:
        times[choice].append(seconds(choice, batch))
model.zero_grad(set_to_none=True)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True)
trained = {"forward only": 0} | counts | {"everything": base_total}
figures.plot_bars(left, {c: [max(trained[c], 1)] for c in choices}, "trained parameters (logarithmic)", "{:,.0f}")
left.set_xscale("log")
left.set_xlim(1e3, 100 * base_total)
left.annotate("none", (1e3, 0), (4, 0), textcoords="offset points", va="center")
figures.plot_bars(right, times, f"seconds a step of {batch.shape[1]} tokens (bar: median, line: range)")
left.invert_yaxis()  # shared with the right panel, which has turned it once more
panels.show(
    figure,
    alt="Left: trained parameters of each placement. Right: seconds for forward and backward with their range. "
    "Parameters differ by orders of magnitude, times by much less.",
)

# %%
unit = f"s for {batch.shape[1]} tokens"
step_times = [Row(f"step_seconds: {choice}", times[choice], unit) for choice in choices]
median = {row.name.removeprefix("step_seconds: "): row.finding(profile) for row in step_times}
rows = []
for choice in choices:
    low, high = median[choice].spread
    by = median[choice].value / median["q, v"].value
    apart = high < median["q, v"].spread[0] or low > median["q, v"].spread[1]
    rows.append((choice, f"{trained[choice]:,}", str(median[choice]), f"{by:.2f}", "yes" if apart else "no"))
Table(("trained", "parameters", "seconds (range)", "against q, v", "ranges apart from q, v"), tuple(rows))

# %% [markdown]
# Where the ranges overlap ("no"), this machine can't tell the two apart, and neither should you. The placement in the
# last third of the blocks ends its backward early, because the blocks below train nothing. All others send the gradient
# down to the first block. How many matrices are adapted matters less, and may vanish in the noise. Training
# everything adds a gradient as large as the model itself, which must be computed and stored whatever the length of
# the batch (try a longer `batch`: does the gap narrow?).
#
# So time depends mostly on *how deep* the lowest adapter sits. The optimizer's memory depends on the *number* of
# trained parameters. Which placement *learns* best is another question: the LoRA article measures it in §7.1.

# %%
LAST, QV = "q, v in the last third", "q, v"
top, low, every = (median[c].value for c in (LAST, QV, "everything"))
print(
    f"{LAST}, against {QV} in all blocks: {top / low:.2f} of the time, {counts[LAST] / counts[QV]:.2f} of the parameters"
)
print(f"{QV}, against everything: {low / every:.2f} of the time, {counts[QV] / base_total:.4f} of the parameters")

# %% [markdown]
# ## Findings
#
# This lesson has no claim of its own; it supports two of the first source's with counts from a real model. R5 counts as
# shown when the adapters have less than a tenth of the full update's parameters, R6 (its size half) when the file is
# less than a twentieth of the base. The forward's differences and the times are recorded too, without a claim.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
share = {name: 100 * counts[name] / full[name] for name in PLACEMENTS}
listed = "; ".join(f"{name} {share[name]:.2f} %" for name in PLACEMENTS)
precise = {"float32": differences["all in float32"], "float64": differences["float64, norm and angles in float32"]}
forward_differences = [
    Row(f"forward_difference_{place}_{precision}", by[index], "of the vector")
    for precision, by in precise.items()
    for place, index in (("block", 0), ("logits", -1))
]
shares = [Row(f"adapter_share_of_model: {n}", 100 * counts[n] / base_total, "% of parameters") for n in PLACEMENTS]
measured = [*forward_differences, *shares, *step_times]
Table(("also measured in this run", "value (range)"), tuple((row.name, str(row.finding(profile))) for row in measured))

# %% tags=["hide-input"] jupyter={"source_hidden": true}
publish("02", [
    *measured,
    Row(
        "adapter_share_of_matrices", share["all seven"], "% of the full update, all seven matrices",
        verdict(max(share.values()) < 10, True),
        f"{counts['all seven']:,} instead of {full['all seven']:,}; by placement: {listed}", claim="R5",
    ),
    Row(
        "adapter_file", sizes["q, v"] / 1e6, "MB, q and v", verdict(max(sizes.values()) < 0.05 * base_bytes, True),
        f"the size only (merging: lesson 01). The base: {base_bytes / 1e6:,.1f} MB; all seven: "
        f"{sizes['all seven'] / 1e6:.2f} MB", claim="R6",
    ),
], profile)  # fmt: skip

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("02")

# %% [markdown]
# ## What to remember
#
# - A LLaMA is a sum: embedding plus what attention and MLP of every block add to the residual stream. Seven matrices a
#   block, no biases.
# - Norm, rotation, shared key/value heads and a gated MLP are a few lines each. What vouches for them is equality in
#   float64, with the precision of the inner steps copied.
# - An adapter's *size* follows its rank and the sides of its matrices; its *time* follows mostly how deep the gradient
#   must go.
#
# **Go further:** LoRA §7.1 (which matrices to adapt at a fixed budget) · the GQA article's comparison of quality and
# speed · `pretrained.load_config("open_llama_7b_v2")`, the base of the `gpu24` profile (a small file from the hub): does it
# share key/value heads? Count its adapter with your answer to 02.4.
#
# **Next:** lesson 03, where adapters on these matrices learn to follow Alpaca's instructions.
