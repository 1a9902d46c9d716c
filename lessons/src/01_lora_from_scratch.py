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
# # 01 · LoRA from scratch
#
# **Promise.** You build LoRA (low-rank adaptation) in fifteen lines, put it on a real language model, and measure
# each thing that is said about it.
#
# **You will be able to**
# - say what a fine-tuning update is and measure how many directions it needs,
# - write the LoRA layer, its start and its merge, and know why each line is there,
# - count the parameters and bytes of an adapter before you train it,
# - serve several customers from one base model.
#
# **You need** Python and a little PyTorch: tensors, `nn.Module`, `loss.backward()`. Lesson 00 shows how the checks
# work.
#
# **It covers** of the LoRA article: *making weight updates more efficient*, *choosing the rank*, *implementing LoRA*,
# *parameter efficiency* and *reducing inference overhead* (claims R1 to R6).
#
# **It takes:**

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import dataclasses
import itertools
import math
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lorahub_edu import evaluation
from lorahub_edu.data import alpaca, tasks
from lorahub_edu.hub import stand_ins
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig, LoRALinear
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

warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT still calls an old name of transformers
open_lesson("01_lora_from_scratch")

# %% [markdown]
# ## Notation
#
# A linear layer keeps a weight matrix $W$ of shape `(out, in)`. LoRA adds two thin matrices, $A$ of shape `(r, in)` and
# $B$ of shape `(out, r)`; the small number $r$ is the **rank**. The update is $\Delta W = \frac{\alpha}{r} B A$.
#
# The article writes the same with rows on the left, $h = xW + \alpha\, x W_A W_B$: its $W_A$ is our $A^\top$, its $W_B$
# our $B^\top$, and its $\alpha$ is our whole factor $\alpha / r$.

# %%
profile = get_profile()
model, tokenizer = pretrained.load(profile)
model.requires_grad_(False)
count = adapters.count_parameters(model).total
model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
print(f"{profile.base_model}: {count:,} parameters, {model_bytes / 1e6:,.0f} MB in {profile.dtype}")

# %% [markdown]
# ## What an adapter does
#
# SmolLM2-135M-*Instruct* has been tuned to follow instructions already. Still, here is a task that it does not do: one
# word in, one word out. Then we put a small adapter on it, which the course has trained for this task, and ask again.
# By the end of this lesson you know what is in that file.
#
# **Predict.** What does the model write for *walk*, before and after?

# %%
modules = {file.path.name: file for file in stand_ins.modules_for(profile)}
asked = [tasks.prompt("Give the past tense of the verb.", verb) for verb in ("walk", "bring", "swim")]
adapters.remove(model, "past")
adapter_files.put_adapter(model, modules["past"], "past")
for label, adapter in (("before", None), ("after", "past")):
    adapters.set_adapter(model, adapter)
    written = evaluation.generate(model, tokenizer, asked, max_new_tokens=6).texts
    print(f"{label}: {', '.join(repr(text.strip()[:30]) for text in written)}")
adapters.remove(model, "past")
model.requires_grad_(False)
size = sum(t.numel() * t.element_size() for pair in modules["past"].weights.values() for t in pair)
print(f"the adapter: {size / 1e6:.1f} MB beside the model's {model_bytes / 1e6:,.0f} MB")

# %% [markdown]
# ## Step 1. A fine-tuned weight is the old weight plus an update
#
# - **Full fine-tuning** changes every entry of a weight matrix. The result can always be written as
#   $W' = W + \Delta W$: the old weight plus an **update**.
# - So there are two ways to compute the layer's output, and they must agree: $W'x = Wx + \Delta W x$.
#
# We need a *real* update. So we fine-tune every entry of the query and value projections of the **last four
# layers**, on instruction rows. These are the course's own rows in Alpaca's format; lesson 03 takes the real Alpaca. All layers
# below stay frozen and give the same output for the same rows every time. So we run them **once** and keep their
# output.
#
# Losses are in [**nats**](../docs/glossary.md) a token: minus the natural logarithm of the probability that the model
# gave the right token. 0.69 nats less means that this probability has doubled.

# %%
ROWS, STEPS, SEEDS = profile.micro_batch_size, 8, (0, 1, 2)
below, above = model.model.layers[:-4], model.model.layers[-4:]
handed_on = {}
above[0].register_forward_pre_hook(
    lambda _, args, options: handed_on.update(x=args[0], options=options), with_kwargs=True
)


@torch.no_grad()
def prepare(rows: list[alpaca.Encoded]) -> tuple:
    """A padded batch as it enters the last four layers. Padding stands on the right, where a causal model can't look."""
    ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True)  # (rows, T)
    labels = pad_sequence([torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=alpaca.IGNORED)
    model.model(input_ids=ids.to(model.device), use_cache=False)
    return handed_on["x"], handed_on["options"], labels.to(model.device)  # x (rows, T, width)


# %%
def forward(batch: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss in nats a response token, and the logits (response tokens, vocabulary) that it comes from."""
    hidden, options, labels = batch
    for layer in above:
        hidden = layer(hidden, **options)  # (rows, T, width)
    targets = labels[:, 1:]  # the token at t is predicted at t - 1
    wanted = targets != alpaca.IGNORED
    logits = model.lm_head(model.model.norm(hidden[:, :-1][wanted]))  # (response tokens, vocabulary)
    return nn.functional.cross_entropy(logits.float(), targets[wanted]), logits

# %%
encoded = alpaca.encode_rows(alpaca.shipped_examples(), tokenizer, profile.block_size, too_long="drop")
short = sorted(encoded, key=lambda row: len(row.input_ids))[:76]
random.Random(0).shuffle(short)
held_out = prepare(short[:12])
train_batches = [prepare(short[i : i + ROWS]) for i in range(12, len(short), ROWS)]


@torch.no_grad()
def held_out_loss() -> float:
    """Loss on twelve rows that no run trains on."""
    return forward(held_out)[0].item()

# %%
ids = torch.tensor([short[0].input_ids], device=model.device)  # (1, T)
with torch.no_grad():
    whole = model(ids, labels=torch.tensor([short[0].labels], device=model.device)).loss
    short_way = forward(prepare(short[:1]))[0]
base_loss = held_out_loss()
print(f"one row's loss through the whole model {whole:.6f}, by the short way {short_way:.6f}")
print(f"{len(train_batches)} batches of {ROWS} rows to train on; held-out loss of the base model {base_loss:.3f} nats")

# %% [markdown]
# Now the plain training loop: AdamW, without a schedule. We use it for full fine-tuning here and for LoRA later. Full
# fine-tuning takes a tenth of LoRA's learning rate, as is usual. Step 5 says why.

# %%
first_trained = len(below)
names = [n for n in adapters.find_targets(model, profile.target_modules) if int(n.split(".")[2]) >= first_trained]
weights = {name: model.get_submodule(name).weight for name in names}  # each (out, in)
start = {name: weight.detach().clone() for name, weight in weights.items()}


def train(parameters: list[nn.Parameter], learning_rate: float, seed: int) -> torch.optim.AdamW:
    """STEPS steps of AdamW on batches that the seed draws; returns the optimizer."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for batch in random.Random(seed).sample(train_batches, STEPS):
        optimizer.zero_grad()  # first, because a run that was stopped leaves its gradients behind
        forward(batch)[0].backward()
        optimizer.step()
    return optimizer

# %%
updates, mean_gradients, full_loss = {}, {}, {}
for seed in SEEDS:
    for name, weight in weights.items():
        weight.data.copy_(start[name])
        weight.requires_grad_(True)
    state = train(list(weights.values()), profile.learning_rate / 10, seed).state
    full_loss[seed] = held_out_loss()
    updates[seed] = {name: (weight.detach() - start[name]).float() for name, weight in weights.items()}
    mean_gradients[seed] = {name: state[weight]["exp_avg"].float() for name, weight in weights.items()}
    print(f"seed {seed}: held-out loss {base_loss:.3f} -> {full_loss[seed]:.3f} nats a token after {STEPS} steps")
for name, weight in weights.items():  # back to the base model
    weight.data.copy_(start[name])
    weight.requires_grad_(False)

# %% [markdown]
# **Predict.** We compute the output of one layer both ways, in 32-bit and in 64-bit numbers. Will the two agree to the
# last bit? Write it down.

# %%
name = next(n for n in reversed(names) if n.endswith(profile.target_modules[0]))
x = held_out[0][0]  # (T, in): what real tokens look like at this depth


def two_ways_differ(dtype: torch.dtype, seed: int) -> float:
    """Largest |W'x - (Wx + ΔWx)| as a share of the largest output."""
    W, delta, inputs = start[name].to(dtype), updates[seed][name].to(dtype), x.to(dtype)
    one = inputs @ (W + delta).T  # (T, in) @ (in, out) -> (T, out)
    two = inputs @ W.T + inputs @ delta.T  # the same shape
    return ((one - two).abs().max() / one.abs().max()).item()


r1 = {dtype: [two_ways_differ(dtype, seed) for seed in SEEDS] for dtype in (torch.float32, torch.float64)}
for dtype, errors in r1.items():
    print(f"{dtype}: largest relative difference {max(errors):.1e} (rounding unit {torch.finfo(dtype).eps:.1e})")

# %% [markdown]
# **Read it.** Mathematically the two are equal. The difference has the size of each number format's rounding, and it
# shrinks as the format gets finer. So nothing forces us to write $\Delta W$ into $W$. We may keep it beside $W$, and
# then we are free to choose its *form*.

# %% [markdown]
# ## Step 2. How many directions does the update need?
#
# - The **singular value decomposition** (SVD) writes a matrix as a sum of simple ones, strongest first:
#   $\Delta W = \sum_k s_k\, u_k v_k^\top$. Each term is one direction in, one direction out. The first $r$ terms are
#   the best rank-$r$ copy there is. They keep the share $\sum_{k \le r} s_k^2 / \sum_k s_k^2$ of the **energy**, the
#   sum of squared entries.
# - LoRA's authors build on Aghajanyan et al.: a pretrained model has a low **intrinsic dimension** for a new task.
#   Moving along few directions is nearly as good as moving along all of them.
#
# Such a curve needs a **control**: a random matrix of the same size, which has no structure at all. (The shares do not
# depend on its norm.) As a second comparison we take AdamW's running mean of the gradients.
#
# **Predict.** What share of the energy does rank 8 keep: of the update, of the gradients, of the random matrix? Write
# three numbers down.


# %%
predict("01.a", "Percent of the energy that rank 8 keeps of the update", low=0, high=100)

# %%
def energy_kept(singular_values: torch.Tensor) -> np.ndarray:
    """Share of the squared entries that the best copies of rank 1, 2, 3, … keep."""
    squares = singular_values**2  # (min(out, in),)
    return (squares.cumsum(0) / squares.sum()).cpu().numpy()


torch.manual_seed(0)
svds = {s: {n: torch.linalg.svd(updates[s][n], full_matrices=False) for n in names} for s in SEEDS}  # U, S, Vt
curves = {
    "update of full fine-tuning": [energy_kept(svds[s][n].S) for s in SEEDS for n in names],
    "its gradients, averaged": [energy_kept(torch.linalg.svdvals(mean_gradients[s][n])) for s in SEEDS for n in names],
    "random control": [
        energy_kept(torch.linalg.svdvals(torch.randn_like(updates[s][n]))) for s in SEEDS for n in names
    ],
}

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
kept_at_8 = {label: [100 * float(curve[7]) for curve in c] for label, c in curves.items()}
compare("01.a", statistics.median(kept_at_8["update of full fine-tuning"]))
for label, shares in kept_at_8.items():
    low, high = min(shares), max(shares)
    print(
        f"{label:28s} rank 8 keeps {statistics.median(shares):5.1f} % (from {low:.1f} to {high:.1f} over the matrices)"
    )

# %% tags=["hide-input", "hide-output"] jupyter={"source_hidden": true, "outputs_hidden": true}
figure, axes = plt.subplots()
ranks_shown = [2**k for k in range(10) if 2**k <= min(start[name].shape)]
here = SEEDS.index(0) * len(names) + names.index(name)
figures.plot_series(
    axes,
    {label: (ranks_shown, [100 * c[here][r - 1] for r in ranks_shown]) for label, c in curves.items()},
    "rank r that is kept",
    "energy kept (%)",
)
axes.set_xscale("log", base=2)
axes.set_xticks(ranks_shown, ranks_shown)
axes.set_title(f"{name}, {tuple(start[name].shape)}", fontsize=9)
panels.show(
    figure,
    alt="Energy kept against rank for one matrix: at rank 8 the gradients keep "
    f"{100 * curves['its gradients, averaged'][here][7]:.0f} percent, the update of full fine-tuning "
    f"{100 * curves['update of full fine-tuning'][here][7]:.0f} percent and the random control "
    f"{100 * curves['random control'][here][7]:.0f} percent.",
)

# %% [markdown]
# **Read it.** The update is far from random: it has several times more energy in the first directions than the
# control. But it is *not* simply a matrix of low rank; its gradients are much closer to low rank. The reason is AdamW.
# It divides every entry by that entry's own typical size, so weak directions move nearly as far as strong ones.
# "Updates are low-rank" is too short. The question that counts is whether the *weak* directions do anything for the
# task. Step 7 measures that.
#
# Move the slider and compare the middle picture with the left one.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
delta = updates[0][name]  # (out, in)
U, S, Vt = svds[0][name]  # (out, k), (k,), (k, in)
errors = {label: np.sqrt(np.maximum(0, 1 - c[here])) for label, c in curves.items() if "grad" not in label}


def draw(figure: plt.Figure, rank: int) -> str:
    """The update, its best copy of that rank, and the relative error beside the control's."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    copy = (U[:, :rank] * S[:rank]) @ Vt[:rank]  # (out, r) @ (r, in) -> (out, in)
    limit = 3 * delta.std().item()
    figures.plot_matrix(left, delta[:64, :64].cpu().numpy(), "the update (corner)", limit)
    figures.plot_matrix(middle, copy[:64, :64].cpu().numpy(), f"its copy of rank {rank}", limit)
    figures.plot_series(
        right, {n: (ranks_shown, [e[r - 1] for r in ranks_shown]) for n, e in errors.items()}, "rank", "relative error"
    )
    right.plot([rank], [errors["update of full fine-tuning"][rank - 1]], "*", markersize=15, color="black")
    right.set_xscale("log", base=2)
    right.set_xticks(ranks_shown, ranks_shown, fontsize=7)
    right.set_ylim(0, 1.05)
    right.legend(frameon=False, fontsize=7, loc="lower left")
    error, numbers = errors["update of full fine-tuning"][rank - 1], rank * sum(delta.shape)
    return f"Rank {rank}: relative error {error:.2f} with {numbers:,} numbers instead of {delta.numel():,}."


panels.slider_panel("rank", ranks_shown, draw, start=8, size=(9, 3))

# %% [markdown]
# The same without a kernel, for a few ranks:

# %%
for rank in ranks_shown[:-1:3]:
    figure = plt.figure(figsize=(9, 2.6))
    sentence = draw(figure, rank)
    panels.show(figure, alt=f"The update, its copy, and the error curve with a star at this rank. {sentence}")
    print(sentence)

# %% [markdown]
# **Read it.** Rank 1 already shows the stripes: rows and columns that move together. The fine detail comes slowly. A
# rank near half of the full one needs *as many numbers as the matrix itself*: LoRA saves numbers only while $r$ is
# small.

# %% [markdown]
# ## Step 3. Two thin matrices: the count
#
# - A full update of an `(out, in)` matrix has $out \cdot in$ numbers. $A$ and $B$ together have $r \cdot (in + out)$.
# - The article's example: a matrix of 100 × 500 at $r = 5$.
#
# **Predict.** How many numbers are there in the full update, how many in $A$ and $B$?

# %%
example = LoRALinear(nn.Linear(100, 500, bias=False), LoRAConfig(rank=5))
full_numbers = example.weight.numel()
thin_numbers = sum(p.numel() for p in example.parameters() if p.requires_grad)
print(f"full update {full_numbers:,}, A and B {thin_numbers:,}: {full_numbers / thin_numbers:.1f} times fewer")

# %% [markdown]
# **Read it.** These are the article's 50,000 and 3,000. The saving grows with the matrix. For whole models, with $A$
# and $B$ on every query and value projection and two bytes a number:


# %%
def llama_parameters(width: int, inner: int, layers: int, vocabulary: int) -> int:
    """Parameters of a LLaMA: four attention and three feed-forward matrices a layer, norms, embedding and head."""
    return 2 * vocabulary * width + layers * (4 * width**2 + 3 * width * inner + 2 * width) + width


llama_7b = llama_parameters(4096, 11008, 32, 32000)
shapes = [tuple(model.get_submodule(n).weight.shape) for n in adapters.find_targets(model, profile.target_modules)]
table = []
for r in (1, 2, 4, 8, 16, 64):
    ours = sum(adapters.lora_parameter_count(i, o, r) for o, i in shapes)
    theirs = 32 * 2 * adapters.lora_parameter_count(4096, 4096, r)
    row = (f"{r}", f"{ours:,}", f"{2 * ours / 2**20:.2f} MB", f"{ours / count:.2%}", f"{theirs:,}")
    table.append((*row, f"{2 * theirs / 2**20:.0f} MB", f"{theirs / llama_7b:.3%}"))
header = ("rank", profile.base_model, "16-bit file", "of the model", "LLaMA-7B", "16-bit file", "of the model")
Table(header, tuple(table), "1 MB = 2^20 bytes here, as in the article's 8 MB.")

# %%
print(
    f"LLaMA-7B: {llama_7b:,} parameters, {2 * llama_7b / 1e9:.1f} GB in 16 bit, {4 * llama_7b / 1e9:.1f} GB in 32 bit"
)
print(f"the article's 23 GB would be {23e9 / llama_7b:.1f} bytes a parameter")

# %% [markdown]
# **Read it.** The row of rank 8 gives exactly the article's 8 MB, so that figure is for 16-bit numbers on query and
# value projections. Its 23 GB for the whole checkpoint is neither the 16-bit nor the 32-bit size of LLaMA-7B; the
# article doesn't say what else is in the file. The comparison mixes formats. With 16 bit on both
# sides, the adapter is still more than a thousand times smaller.

# %% [markdown]
# ### Try it 01.1: count
# *Difficulty 1 of 5, two minutes. Common bug: counting only one of the two matrices.*
#
# Write the number of trainable parameters of one adapter.


# %%
def lora_count(in_features: int, out_features: int, rank: int) -> int:
    """Number of entries of A and B together."""
    raise NotImplementedError


check("01.1", lora_count)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def lora_count(in_features, out_features, rank):
#     return rank * in_features + out_features * rank
# ```
# </details>

# %% [markdown]
# ## Step 4. The layer
#
# - Keep the old layer, frozen. Send the input also through a second, narrow path, and add the two results:
#   $h = Wx + \frac{\alpha}{r} B (A x)$.
# - The brackets matter: $A x$ first gives a vector of only $r$ numbers. $\Delta W$ itself is never built.


# %%
class MyLoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank path beside it."""

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        weight = base_layer.weight  # (out, in)
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))  # (r, in)
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))  # (out, r)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scaling = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = x @ self.A.T  # (..., in) @ (in, r) -> (..., r)
        return self.base_layer(x) + self.scaling * (narrow @ self.B.T)  # (..., r) @ (r, out) -> (..., out)

# %%
print(MyLoRALinear(nn.Linear(100, 500, bias=False), rank=5, alpha=10))

# %% [markdown]
# Does it compute what others compute? We give the same $A$ and $B$ to three layers: ours, the course's `LoRALinear` and
# the one of **PEFT**, the library that most projects use. In 64-bit numbers, outputs *and* gradients must agree.
#
# **Predict.** All three, or does PEFT do something more?

# %%
import peft

torch.manual_seed(0)
linear = nn.Linear(48, 32, dtype=torch.float64)
mine = MyLoRALinear(linear, rank=4, alpha=8)
nn.init.normal_(mine.B)
course = LoRALinear(linear, LoRAConfig(rank=4, alpha=8))
settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
wrapped = peft.get_peft_model(nn.Sequential(linear), settings, autocast_adapter_dtype=False).double()
theirs = wrapped.base_model.model[0]
pairs = [(course.lora_A["default"], course.lora_B["default"])]
pairs.append((theirs.lora_A["default"].weight, theirs.lora_B["default"].weight))

# %%
inputs = torch.randn(6, 48, dtype=torch.float64)  # (rows, in)
expected = mine(inputs)
expected.square().sum().backward()
for who, layer, (A, B) in zip(("the course's", "PEFT's"), (course, theirs), pairs, strict=True):
    A.data.copy_(mine.A)
    B.data.copy_(mine.B)
    layer(inputs).square().sum().backward()
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((A.grad, B.grad), (mine.A.grad, mine.B.grad), rtol=1e-10, atol=1e-10)
    print(f"{who} layer: output and gradients equal ours to 10 digits")

# %% [markdown]
# **Read it.** LoRA is these fifteen lines. The libraries add dropout, several adapters by name, merging and checks.
# From here on we import `LoRALinear`.

# %% [markdown]
# ### Try it 01.2: the forward pass
# *Difficulty 2 of 5, five minutes. Common bug: the order `A @ B`, or `alpha` in place of `alpha / r`.*
#
# The same as a plain function. `x` is `(..., in)`, `W` is `(out, in)`; read the rank off `A`.


# %%
def lora_forward(x: torch.Tensor, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, alpha: float) -> torch.Tensor:
    """W x plus the scaled low-rank path, (..., out)."""
    raise NotImplementedError


check("01.2", lora_forward)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def lora_forward(x, W, A, B, alpha):
#     return x @ W.T + alpha / A.shape[0] * (x @ A.T @ B.T)
# ```
# </details>

# %% [markdown]
# ## Step 5. Start at zero
#
# - $B = 0$, so $\Delta W = BA = 0$: before the first step the model *is* the pretrained one. $A$ is random, uniform
#   between $\pm 1/\sqrt{in}$ (this is what Kaiming's rule gives with $a = \sqrt 5$).
# - Why not both zero? The gradient of $B$ contains $A$ and the gradient of $A$ contains $B$; if both are zero, both
#   gradients are zero and nothing ever moves.
#
# **Predict.** We put rank-r adapters on the same matrices as before and compare the logits (the scores of the next
# token, before softmax) with the base model's. How large is the largest difference?

# %%
config = LoRAConfig(rank=profile.rank, alpha=profile.alpha, target_modules=tuple(names))
adapters.remove(model, "trained")  # if this cell runs again
with torch.no_grad():
    without = model(ids).logits  # (1, T, vocabulary), through the whole model
    base_logits = forward(held_out)[1]  # (response tokens, vocabulary), for step 6
    adapters.inject(model, config, "trained", seed=0)
    with_adapter = model(ids).logits
start_difference = (with_adapter - without).abs().max().item()
counted = adapters.count_parameters(model)
print(f"largest difference of {without.numel():,} logits: {start_difference}")
print(f"trainable now: {counted.trainable:,} of {counted.total:,} parameters ({counted.trainable_share:.3%})")

# %% [markdown]
# **Read it.** Exactly zero, not merely small: adding $0$ changes no bit. Training starts at the pretrained model.
#
# Now let LoRA *learn* its $A$ and $B$ by backpropagation, on the rows that full fine-tuning saw with seed 0. (LoRA
# itself never decomposes an update. The SVD of step 2 was our tool for looking at it.)
#
# **Predict.** With the same rows and the same number of steps, which of the two ends with the lower held-out loss?

# %%
adapters.remove(model, "trained")  # this cell, too, starts anew each time
adapters.inject(model, config, "trained", seed=0)
train([p for p in model.parameters() if p.requires_grad], profile.learning_rate, seed=0)
lora_loss = held_out_loss()
full_parameters = sum(w.numel() for w in weights.values())
share = (base_loss - lora_loss) / (base_loss - full_loss[0])
print(f"base {base_loss:.3f}, full fine-tuning {full_loss[0]:.3f} with {full_parameters:,} trained numbers")
print(f"LoRA {lora_loss:.3f} with {counted.trainable:,}: {share:.0%} of the gain")

# %% [markdown]
# **Read it.** One seed and a few steps give only a first impression; lesson 03 trains properly. The two learning
# rates differ because of the start: while $B$ is near zero, $\Delta W$ is the product of a
# small matrix and a nearly-zero one, so the same learning rate moves $W'$ much less than full fine-tuning does.

# %% [markdown]
# ### Try it 01.3: the start
# *Difficulty 2 of 5, five minutes. Common bug: `kaiming_uniform_` reads the "fan-in" from the second axis. The
# article's pseudo-code calls it on a matrix of shape `(in, r)`, so it takes $r$ for the fan-in and draws numbers that
# are larger by $\sqrt{in / r}$.*
#
# Return $A$ and $B$ as a new adapter needs them.


# %%
def init_lora(in_features: int, out_features: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) at the start of training."""
    raise NotImplementedError


check("01.3", init_lora)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def init_lora(in_features, out_features, rank):
#     A = torch.empty(rank, in_features)
#     nn.init.kaiming_uniform_(A, a=math.sqrt(5))
#     return A, torch.zeros(out_features, rank)
# ```
# </details>

# %% [markdown]
# ## Step 6. α is a dial
#
# - $\Delta W = \frac{\alpha}{r} BA$: twice the $\alpha$, twice the update. Dividing by $r$ keeps the size comparable
#   when you change the rank. (Where the article sets $\alpha = 1$, it means the whole factor; PEFT's $\alpha$ is
#   divided by $r$.)
# - The dial works after training too: 0 gives the base model, the trained value gives the tuned model.
#
# **Predict.** The adapter was trained at one $\alpha$. What will the held-out loss do at half, twice, eight times that?


# %%
@torch.no_grad()
def at_alpha(alpha: float) -> tuple[float, float, float]:
    """Size of the update at one layer, relative change of the logits, and held-out loss."""
    for _, layer in adapters.layers_with(model, "trained"):
        layer.configs["trained"] = dataclasses.replace(layer.configs["trained"], alpha=alpha)
    update = (x.to(model.dtype) @ model.get_submodule(name).delta_weight("trained").to(model.dtype).T).norm().item()
    loss, logits = forward(held_out)
    return update, ((logits - base_logits).norm() / base_logits.norm()).item(), loss.item()

# %%
dial = [profile.alpha * k for k in (0.25, 0.5, 1, 2, 4, 8, 16)]
sizes, changes, losses = zip(*(at_alpha(alpha) for alpha in dial), strict=True)
slope = np.polyfit(np.log(dial), np.log(sizes), 1)[0]
at_alpha(profile.alpha)  # back to the trained value
for alpha, size, change, loss in zip(dial, sizes, changes, losses, strict=True):
    strength = size / sizes[dial.index(profile.alpha)]
    print(f"alpha {alpha:5.0f}: |ΔWx| {strength:5.2f} of the trained, logits moved by {change:6.1%}, loss {loss:.3f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
figures.plot_series(
    left,
    {"|ΔWx| at one layer": (dial, np.array(sizes) / sizes[2]), "logits": (dial, np.array(changes) / changes[2])},
    "alpha",
    "change / change at trained alpha",
)
left.set_yscale("log", base=2)
figures.plot_series(right, {"with the adapter": (dial, losses)}, "alpha", "held-out loss (nats a token)")
right.axhline(base_loss, color="grey", linestyle="--", label="base model")
right.axvline(profile.alpha, color="black", linestyle=":", label="trained alpha")
right.set_ylim(min(losses) - 0.02, base_loss + 3 * (base_loss - min(losses)) + 0.02)
right.set_title("(higher points are cut off)", fontsize=9)
right.legend(fontsize=8, loc="upper left", framealpha=1, edgecolor="none")
for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xticks(dial, [f"{alpha:g}" for alpha in dial])
best = dial[losses.index(min(losses))]
panels.show(
    figure,
    alt=f"Left: the update of one layer grows in proportion to alpha (slope {slope:.2f} on a log-log scale), and the "
    f"logits move with it. Right: held-out loss, lowest at alpha {best:g}, against {base_loss:.2f} of the base model.",
)
print(f"slope of log |ΔWx| over log alpha: {slope:.6f}; lowest loss at alpha {best:g}, trained at {profile.alpha:g}")

# %% [markdown]
# **Read it.** At the layer, the strength follows $\alpha$ exactly; between the layer and the
# logits lie many nonlinear parts, so the line bends. The loss has a lowest point: beyond it, the same directions are
# pushed too far. If the lowest point lies to the right of the trained value, the few steps were not enough.
#
# During training, $\alpha$ and the learning rate do much the same job: a larger $\alpha$ makes each step of $A$ and $B$
# move $\Delta W$ further. Fix one (commonly $\alpha = 2r$) and tune the other.

# %% [markdown]
# ## Step 7. Rank: capacity against parameters
#
# - A higher rank can copy more of an update, and costs $r \cdot (in + out)$ numbers. That is the trade.
# - Two measures of *how much is lost*: the **error** of the matrix, and the **held-out loss** of the model that runs
#   with the copy. We cut the three full fine-tuning updates (three seeds, other rows each) to rank $r$, the best any
#   adapter of that rank could do for *these* updates.
#
# **Predict.** In step 2, rank 8 kept only a part of the energy. What part of the *gain in loss* does it keep?


# %%
predict("01.b", "Percent of full fine-tuning's gain in loss that a copy of rank 1 keeps", low=0, high=100)

# %%
def cut(seed: int, name: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in) and B (out, r) whose product B @ A is the best copy of rank r of that update."""
    U, S, Vt = svds[seed][name]  # (out, k), (k,), (k, in)
    root = S[:rank].sqrt()  # (r,)
    return root[:, None] * Vt[:rank], U[:, :rank] * root


# %%
def gain_of(seed: int, deltas: dict[str, torch.Tensor]) -> float:
    """Percent of full fine-tuning's gain in held-out loss that the base model has with these updates."""
    for n in names:
        weights[n].data.copy_(start[n] + deltas[n].to(start[n].dtype))
    gain = 100 * (base_loss - held_out_loss()) / (base_loss - full_loss[seed])
    for n in names:
        weights[n].data.copy_(start[n])
    return gain


def norm(deltas: dict[str, torch.Tensor]) -> float:
    """Norm of all matrices together."""
    return math.sqrt(sum(delta.square().sum().item() for delta in deltas.values()))

# %%
adapters.set_adapter(model, None)
ranks = (1, 2, 4, 8, 16)
rank_error, rank_gain, rest_gain = {r: [] for r in ranks}, {r: [] for r in ranks}, {r: [] for r in ranks}
for seed in SEEDS:
    for r in ranks:
        pairs = {n: cut(seed, n, r) for n in names}
        copy = {n: B @ A for n, (A, B) in pairs.items()}  # each (out, in)
        rest = {n: updates[seed][n] - copy[n] for n in names}  # what the copy drops
        rank_error[r].append(norm(rest) / norm(updates[seed]))
        rank_gain[r].append(gain_of(seed, copy))
        rest_gain[r].append(gain_of(seed, rest))

# %% tags=["hide-input", "hide-output"] jupyter={"source_hidden": true, "outputs_hidden": true}
kept = {r: statistics.median(rank_gain[r]) for r in ranks}
compare("01.b", kept[1])
left_over = {r: statistics.median(rank_error[r]) for r in ranks}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))


def medians(measured: dict[int, list[float]]) -> tuple[tuple[int, ...], list[float]]:
    return ranks, [statistics.median(measured[r]) for r in ranks]


figures.plot_series(left, {"copy of rank r": medians(rank_error)}, "rank", "relative error of the update")
gains = {"copy of rank r": medians(rank_gain), "what the copy drops": medians(rest_gain)}
figures.plot_series(right, gains, "rank", "gain in held-out loss (%)")
for axes, measured in ((left, rank_error), (right, rank_gain), (right, rest_gain)):
    for r in ranks:
        axes.plot([r] * len(SEEDS), measured[r], "x", color="black", markersize=5)
    axes.plot([], [], "x", color="black", label="each seed")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, ranks)
left.set_ylim(0, 1.05)
right.axhline(100, color="grey", linestyle="--", label="full fine-tuning")
left.legend(frameon=False, fontsize=8)
handles = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))  # each label once
right.legend(handles.values(), handles.keys(), frameon=False, fontsize=8)
panels.show(
    figure,
    alt=f"Left: the error of the rank-r copy falls slowly, from {left_over[1]:.2f} at rank 1 to {left_over[16]:.2f} at "
    f"rank 16. Right: the gain in held-out loss it keeps, {kept[1]:.0f} percent at rank 1 and {kept[16]:.0f} at 16; "
    f"what the copy of rank 8 drops gains {statistics.median(rest_gain[8]):.0f} percent. Crosses: the three seeds.",
)

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
numbers = {r: sum(adapters.lora_parameter_count(w.shape[1], w.shape[0], r) for w in weights.values()) for r in ranks}
for r in ranks:
    spread = f"{min(rank_gain[r]):.0f} to {max(rank_gain[r]):.0f}"
    print(
        f"rank {r:2d}: {numbers[r]:7,} numbers, error {left_over[r]:.2f}, gain kept {kept[r]:4.0f} % ({spread})", end=""
    )
    print(f", the dropped part alone gains {statistics.median(rest_gain[r]):3.0f} %")

# %% [markdown]
# **Read it.** Compare the panels. As a *matrix*, the update is copied poorly at these ranks: most of the error is still
# there. As a *model*, the low-rank copy already has most of the gain. The dropped part has much of the norm, but little
# of the gain when it runs alone. This is what a low intrinsic dimension looks like, and why LoRA works although the
# update is not of low rank. Each further rank brings less. The matrix can't say where to stop, so several ranks must be
# tried on held-out rows.

# %% [markdown]
# ## Step 8. Merge, or keep apart
#
# - **Merge**: $W' = W + \frac{\alpha}{r} BA$, once, after training. The layer is a plain linear layer again, so
#   inference costs what the base costs.
# - **Keep apart**: the extra path costs a little time in every forward pass, but one base model serves many adapters.
#
# We put an adapter on *every* query and value projection, as the article does, and time a forward pass of a single
# token, because generating text consists of such passes. We time the base, the unmerged and the merged model. They take
# turns, so that a busy moment of the machine affects all three. We count the turns in which merged is faster than
# unmerged.
#
# **Predict.** How many percent does the unmerged path cost? And after merging?

# %%
everywhere = LoRAConfig(rank=profile.rank, alpha=profile.alpha, target_modules=profile.target_modules)
adapters.remove(model, "everywhere")
adapters.inject(model, everywhere, "everywhere", seed=1)
generator = torch.Generator().manual_seed(2)
for _, layer in adapters.lora_layers(model):  # B as if trained: the time does not depend on its values
    layer.lora_B["everywhere"].data.copy_(torch.randn(layer.out_features, profile.rank, generator=generator) / 100)
prompt = torch.tensor([short[0].input_ids[:16]], device=model.device)  # (1, 16)
before = {n: layer.weight.detach().clone() for n, layer in adapters.lora_layers(model)}


# %%
@torch.no_grad()
def timed_forward() -> tuple[float, torch.Tensor]:
    """Milliseconds and logits of one forward pass, after one that is not counted: switching leaves the caches cold."""
    model(prompt[:, :1], use_cache=False)
    started = time.perf_counter()
    logits = model(prompt[:, :1], use_cache=False).logits  # (1, 1, vocabulary)
    logits[0, -1, 0].item()  # waits for the device
    return 1000 * (time.perf_counter() - started), logits

# %%
times = {"base": [], "unmerged": [], "merged": []}
TURNS = 40
timed_forward()  # warm up
for _ in range(TURNS):
    adapters.set_adapter(model, None)
    times["base"].append(timed_forward()[0])
    adapters.set_adapter(model, "everywhere")
    milliseconds, beside_logits = timed_forward()
    times["unmerged"].append(milliseconds)
    adapters.merge(model)
    milliseconds, merged_logits = timed_forward()
    times["merged"].append(milliseconds)
    adapters.unmerge(model)
merge_difference = ((merged_logits - beside_logits).abs().max() / beside_logits.abs().max()).item()
restored = all(torch.equal(before[n], layer.weight) for n, layer in adapters.lora_layers(model))

# %%
for how, taken in times.items():
    low, _, high = statistics.quantiles(taken)
    print(f"{how:15s} median {statistics.median(taken):6.1f} ms (middle half {low:.1f} to {high:.1f})")
merged_wins = sum(m < b for m, b in zip(times["merged"], times["unmerged"], strict=True))
beside_cost, merged_cost = (
    [100 * (a / b - 1) for a, b in zip(times[how], times["base"], strict=True)] for how in ("unmerged", "merged")
)
print(f"against the base in the same turn: unmerged {statistics.median(beside_cost):+.1f} %, ", end="")
print(f"merged {statistics.median(merged_cost):+.1f} %; merged is the faster in {merged_wins} of {TURNS} turns")
print(f"merged logits differ by {merge_difference:.1g} of the largest; weights restored bit for bit: {restored}")

# %% [markdown]
# **Read it.** The unmerged path needs little arithmetic, but several small operations in each layer. The merged model
# has the same operations as the base. A remaining difference is noise of the machine, and it tells you how far to trust
# the other figure.
# Unmerging restores the *kept* old weights. Subtracting $\Delta W$ again would leave rounding errors.

# %% [markdown]
# ### Try it 01.4: merge
# *Difficulty 2 of 5, five minutes. Common bug: `W += …` changes the base weight for every other adapter too.*
#
# Return the merged weight as a new tensor.


# %%
def merge(W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, alpha: float) -> torch.Tensor:
    """W' (out, in) whose plain product with x equals both paths together."""
    raise NotImplementedError


check("01.4", merge)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def merge(W, A, B, alpha):
#     return W + alpha / A.shape[0] * (B @ A)
# ```
# </details>

# %% [markdown]
# ### One base, many customers
#
# Each of our three seeds trained on its own rows, like three customers. We cut each update to an adapter and put all
# three on *one* base model. Then **one batch** runs, and every row uses its own customer's adapter.
#
# **Predict.** Will a row's result depend on who else is in the batch?

# %%
customers = ("anna", "bilal", "chen")[: len(SEEDS)]
for customer, seed in zip(customers, SEEDS, strict=True):
    plain = LoRAConfig(rank=profile.rank, alpha=profile.rank, target_modules=tuple(names))  # alpha / r = 1
    adapters.remove(model, customer)
    for n, layer in adapters.inject(model, plain, customer):
        A, B = cut(seed, n, profile.rank)
        layer.lora_A[customer].data.copy_(A)
        layer.lora_B[customer].data.copy_(B)

# %%
alone = []
with torch.no_grad():
    for customer in (*customers, None):  # None: the plain base model
        adapters.set_adapter(model, customer)
        alone.append(model(prompt).logits)  # (1, 16, vocabulary)
    with adapters.route(model, [*customers, None]):
        together = model(prompt.expand(len(alone), -1)).logits  # (customers + 1, 16, vocabulary)
route_difference = ((together - torch.cat(alone)).abs().max() / together.abs().max()).item()
apart = min((a - b).abs().max().item() for a, b in itertools.combinations(alone, 2)) / together.abs().max().item()
print(f"largest difference between a row alone and in the mixed batch: {route_difference:.1g} of the largest logit")
print(f"any two of the four rows differ from each other by {apart:.1g} or more")

# %% [markdown]
# **Read it.** Up to rounding, every row gets what it would get alone. And an adapter is a small file. We save one in
# PEFT's layout, look at its size, and let PEFT itself load it onto a fresh base model:

# %%
with tempfile.TemporaryDirectory() as temporary:
    folder = adapter_files.save_adapter(
        model, Path(temporary) / customers[0], customers[0], base_model=profile.base_model
    )
    sizes_on_disk = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    fresh, _ = pretrained.load(profile)
    by_peft = peft.PeftModel.from_pretrained(fresh, str(folder)).eval()
    with torch.no_grad():
        peft_difference = ((by_peft(prompt).logits - alone[0]).abs().max() / alone[0].abs().max()).item()
for file, size in sizes_on_disk.items():
    print(f"{file}: {size:,} bytes")

# %%
wide = sum(adapters.lora_parameter_count(i, o, profile.rank) for o, i in shapes) * model.dtype.itemsize
print(f"PEFT's logits differ from ours by {peft_difference:.1g}")
print(
    f"on all layers it is {wide / 1e6:.2f} MB beside the model's {model_bytes / 1e6:,.0f} MB: {wide / model_bytes:.2%}"
)

# %% [markdown]
# **Read it.** A hundred customers need one base and a hundred small files, not a hundred models. The file is in the
# field's common layout, so what you train here runs elsewhere.

# %% [markdown]
# ## Findings
#
# One card for each claim of the article that this lesson covers. The verdicts are computed from the values. With the
# profile `tiny` the model is random, so your run gives no verdict.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
exact = max(r1[torch.float64]) < 1e-13 and max(r1[torch.float32]) < 1e-5
follows_alpha = abs(slope - 1) < 1e-3  # the article's formula: h grows by x·A·B times alpha
error_falls = all(max(rank_error[b]) < min(rank_error[a]) for a, b in zip(ranks, ranks[1:], strict=False))
gain_grows = min(rank_gain[16]) > max(rank_gain[1])
beside, merged = statistics.median(beside_cost), statistics.median(merged_cost)
# By chance alone merged would win 27 or more of 40 turns in 2 of 100 runs.
merging_is_free = merge_difference < 1e-4 and restored and abs(merged) < 5 and merged_wins >= 27
one_base_serves = max(route_difference, peft_difference) < 1e-4 < apart and wide < 0.05 * model_bytes

# %% tags=["hide-input"] jupyter={"source_hidden": true}
publish("01", [
    Row(
        "R1.difference_of_the_two_ways", r1[torch.float64], "relative, 64 bit", verdict(exact, True),
        f"up to {max(r1[torch.float32]):.0e} in 32 bit: rounding, nothing else", seeds=SEEDS,
    ),
    Row(
        "R2.logit_difference_at_start", [start_difference], "", verdict(start_difference == 0, True),
        f"exactly the same {without.numel():,} logits" if start_difference == 0 else "not exactly zero",
    ),
    Row(
        "R3.error_of_the_update_at_rank_8", rank_error[8], "relative", "",
        f"rank 1 leaves {left_over[1]:.2f}, rank 16 with 16 times the numbers {left_over[16]:.2f}; it falls with the rank "
        "for any matrix", claim="R3", seeds=SEEDS,
    ),
    Row(
        "R3.loss_gain_kept_at_rank_1", rank_gain[1], "% of full fine-tuning's", verdict(gain_grows),
        f"rank 8 keeps {kept[8]:.0f} %, rank 16 {kept[16]:.0f} %; shown if every seed's rank 16 beats every seed's "
        f"rank 1; {STEPS} steps only", seeds=SEEDS,
    ),
    Row(
        "R4.slope_of_update_over_alpha", [slope], "log over log", verdict(follows_alpha),
        f"logits move by {changes[0]:.1%} at alpha {dial[0]:g} and by {changes[-1]:.1%} at {dial[-1]:g}",
    ),
    Row(
        "R5.parameters_at_rank_5", [thin_numbers], "numbers",
        verdict((full_numbers, thin_numbers) == (50_000, 3_000), True), f"instead of {full_numbers:,}",
    ),
    Row(
        "R6.time_of_merged_forward", merged_cost, "% over the base", verdict(merging_is_free),
        f"unmerged {beside:+.1f} %; shown if merged is within 5 % of the base and faster than unmerged in at least 27 of {TURNS} turns (here {merged_wins})",
    ),
    Row(
        "R6.adapter_share_of_model", [100 * wide / model_bytes], "% of the bytes", verdict(one_base_serves),
        f"{len(customers)} customers in one batch, each row as if alone (up to {route_difference:.1g})",
    ),
], profile)  # fmt: skip

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("01")

# %% [markdown]
# ## What to remember
#
# - $\Delta W = \frac{\alpha}{r} BA$ beside a frozen $W$: $A$ random, $B$ zero, so training starts at the pretrained
#   model.
# - An update need not *be* of low rank for LoRA to work; it is enough that a low-rank part of it does the task. Try
#   several ranks on held-out rows.
# - Merge for one customer and no extra cost; keep apart for many customers on one base.
#
# ## Go further
#
# - Hu et al. 2021, *LoRA*, arXiv 2106.09685: section 4 for the method, section 7 for how much rank is needed.
# - Aghajanyan et al. 2020, *Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning*, arXiv
#   2012.13255: section 3 measures how few directions suffice.
# - Kalajdzievski 2023, *rsLoRA*, arXiv 2312.03732: why $\alpha / \sqrt r$ may be the better scaling at high ranks. Try
#   `LoRAConfig(rank_stabilised=True)`.
# - With a 24 GB GPU: `lorahub-edu run 01 --profile gpu24` takes the same steps on a 7B LLaMA.
#
# **Next:** lesson 02, *Inside a LLaMA*: which matrices there are to adapt, and what each choice costs.
