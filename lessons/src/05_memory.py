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
# # 05 · Memory: will it fit in 24 GB?
#
# **In this lesson you learn what a training step keeps in memory. You build a tool that says how much a step will take,
# before anything runs and without a GPU.** "CUDA out of memory" then stops being a surprise.
#
# You will be able to
#
# - name the five things that memory goes to and count three of them on paper;
# - build a tracker that counts every tensor's bytes, and run a 7B's training step through it with no memory at all;
# - choose among five ways to make a step smaller, knowing what each saves and what it costs;
# - tell a claim about memory from a difference of dtypes.
#
# *You need:* lessons 01 and 03. *Sources covered:* Raschka 2023, "Computational performance" (claims R9-R11, R15, R16);
# Huang et al. 2023, memory (H17); Chen et al. 2016 (checkpointing, arXiv 1604.06174); Dettmers et al. 2023 (QLoRA,
# arXiv 2305.14314).

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import json
import statistics
import weakref
from dataclasses import replace
from functools import cache

import matplotlib.pyplot as plt
import torch
from matplotlib import ticker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorahub_edu import evaluation
from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.lora import adapters
from lorahub_edu.memory.plan import advise, capacity
from lorahub_edu.memory.predict import predict
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.memory.tracker import PARTS, WEIGHTS, StorageTracker
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
    predictions,
    publish,
    recall,
    results,
    verdict,
)
from lorahub_edu.training.loop import TrainingConfig, train

profile = get_profile()
GB = 1e9
open_lesson("05_memory")

# %% [markdown]
# ## 1 · What memory goes to
#
# - **Weights**: every parameter, trained or not. **Gradients**: one number for each *trained* parameter. **Optimizer**:
#   AdamW keeps two more numbers for each trained parameter, the running means of its gradient and of the square.
# - **Activations**: what the forward pass keeps so that the backward pass can compute gradients; they grow with the
#   tokens in a batch. **Logits**: one number for every token of the vocabulary at every position that has a loss.
#
# The first three can be counted on paper. A LLaMA's parameters, from the numbers in its configuration:

# %%
config = read_config(profile.base_model)
d, inner, vocabulary, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
kv = d * config.num_key_value_heads // config.num_attention_heads  # keys and values are narrower than queries
layer = 2 * d * d + 2 * d * kv + 3 * d * inner + 2 * d  # q and o; k and v; gate, up and down; two norms
embeddings = vocabulary * d * (1 if config.tie_word_embeddings else 2)
parameters = layers * layer + embeddings + d
adapter = layers * (adapters.lora_parameter_count(d, d, 8) + adapters.lora_parameter_count(d, kv, 8))
print(f"{profile.base_model}: {parameters:,} parameters; LoRA with r = 8 on q and v adds {adapter:,}")
meta = predict(config, Setting(method="none", task="scoring", micro_batch=1, block=8))
assert meta.parameters == parameters, "by hand and by the model itself"

# %% [markdown]
# **Predict.** All in float32, four bytes a number: how many times the weights' memory do weights, gradients and AdamW
# take together in full fine-tuning? And with LoRA?

# %%
rows = []
for name, frozen, trained in (("full fine-tuning", 0, parameters), ("LoRA, r = 8", parameters, adapter)):
    parts = 4 * (frozen + trained), 4 * trained, 8 * trained
    rows.append((name, *(f"{part / GB:.3f}" for part in parts), f"{sum(parts) / (4 * parameters):.2f} x the base"))
Table(("in GB", "weights", "gradients", "optimizer", "together"), tuple(rows))

# %% [markdown]
# Full fine-tuning takes four times the weights before a single activation is there; LoRA hardly more than the weights.
# This is the whole difference between the two: the activations, which come next, are nearly the same.

# %% [markdown]
# ### Try it
#
# **05.1 Bytes before any activation** · difficulty 1 of 5 · 5 minutes · *common bug:* giving frozen weights gradients
# and moments too.
#
# Write `state_bytes(frozen, trained, frozen_bytes, trained_bytes)`: the bytes of weights, gradients and AdamW's
# moments; the last two arguments are bytes a number.


# %%
def state_bytes(frozen: int, trained: int, frozen_bytes: int, trained_bytes: int) -> int:
    raise NotImplementedError


check("05.1", state_bytes)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# def state_bytes(frozen, trained, frozen_bytes, trained_bytes):
#     return frozen * frozen_bytes + 4 * trained * trained_bytes
# ```
# </details>

# %% [markdown]
# ## 2 · A tracker from scratch
#
# - Activations can't be read off a configuration, because torch decides what to keep. But an operation makes every
#   tensor, and torch lets a program watch all operations: a `TorchDispatchMode` sees each operation's results.
# - Count a **storage** (the bytes under a tensor; views share them) when it is first seen, and subtract it when nothing
#   holds it any more. The largest running total is the **peak**.


# %%
class Ledger:
    """Bytes of the storages that are alive, and the most that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}  # bytes by storage

    def count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.sizes:
            self.sizes[id(storage)] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, id(storage))


# %%
class Tracker(Ledger, TorchDispatchMode):
    """Counts the storage of every tensor that an operation returns."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def forget(self, storage: int) -> None:  # called when nobody holds the storage any more
        self.live -= self.sizes.pop(storage)

# %% [markdown]
# **Predict.** A million numbers in float32 are 4 MB. How many MB are live at the peak of `(x * 2 + 1).exp()`, `x` not
# counted, when nothing needs a gradient? And when `x` does?

# %%
peaks = {}
for wanted in (False, True):
    x = torch.ones(1_000_000, requires_grad=wanted)
    with Tracker() as watch:
        y = (x * 2 + 1).exp()
    peaks[wanted] = watch.peak / 1e6, watch.live / 1e6
    print(f"x requires a gradient: {wanted!s:5}  peak {watch.peak / 1e6:.0f} MB, left at the end {watch.live / 1e6:.0f} MB")

# %% [markdown]
# Two are live at a time: an operation's input and its result. The gradient changes nothing here: for the backward pass
# `exp` needs only its own result, and doubling and adding one need nothing. What is kept depends on each operation.
#
# Now a real training step: the course's loop, LoRA on the model of this profile, two rows. The package's tracker is
# the tracker above plus names for the parts. Both watch the same step.

# %%
length = profile.block_size // 2
rows_here = [Encoded([(7 * i + j) % vocabulary for j in range(length)], [1] * length) for i in range(2)]
run = TrainingConfig(
    steps=1, batch_size=2, micro_batch_size=2, autocast=None if profile.dtype == "float32" else profile.dtype
)
lora = replace(Setting().lora, dtype=torch.float32)  # r = 8 on q and v; A and B in float32 on any base
model, tokenizer = pretrained.load(profile, attention="packed")
adapters.inject(model, lora, seed=0)
train(model, rows_here, run, progress=False)  # the first step loads what later ones find loaded
tensors = [*model.parameters(), *model.buffers()]

# %%
own, package = Tracker(), StorageTracker(vocabulary=vocabulary)
for tensor in tensors:  # the ledger must know what was there before
    own.count(tensor.untyped_storage())
package.add(tensors, WEIGHTS)
with own, evaluation.peak_memory(profile.device) as process, package:
    package.enter("step")
    train(model, rows_here, run, progress=False)
print(f"own tracker {own.peak / GB:.4f} GB, the package's {package.peak.total / GB:.4f} GB")
print({part: f"{size / GB:.4f} GB" for part, size in package.peak.parts.items()})
assert abs(own.peak - package.peak.total) < 1e-3 * package.peak.total

# %% [markdown]
# ### Try it
#
# **05.2 The peak of a run** · difficulty 1 of 5 · 5 minutes · *common bug:* returning what is live at the end.
#
# Write `peak_of(changes)`: `changes` are bytes taken (positive) and given back (negative), in their order; return the
# most that were live at one time.


# %%
def peak_of(changes: list[int]) -> int:
    raise NotImplementedError


check("05.2", peak_of)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# def peak_of(changes):
#     live = peak = 0
#     for change in changes:
#         live += change
#         peak = max(peak, live)
#     return peak
# ```
# </details>

# %% [markdown]
# ## 3 · The same step without its memory
#
# - The tracker needs shapes, not numbers. torch has **fake tensors**: operations on them compute shapes and dtypes and
#   hold nothing. So the very same step can be counted for a model that no machine here could load.
# - `predict` does that: it builds the model without weights (on torch's *meta* device), puts the method on it, and runs
#   the course's own training step and loss on fake tensors under the tracker.

# %%
here = Setting(
    lora=lora, micro_batch=2, block=length, dtype=profile.dtype, device=torch.device(profile.device).type
)
fake = predict(config, here)
print(f"predicted {fake.peak / GB:.4f} GB, counted in the real step {package.peak.total / GB:.4f} GB")
print(f"the process itself grew by {process.added / GB:.4f} GB beyond what it had kept from the step before")
fake_error = fake.peak / package.peak.total - 1
assert abs(fake_error) < 0.02

# %% [markdown]
# The two counts differ by less than one percent. A *process* can take more than its tensors: allocators round sizes, and keep
# pieces for later that they can't always use. The course compared the planner with the real peak of a fresh process for
# many settings of SmolLM2, once with malloc's defaults, and once with a malloc that returns freed memory at once:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
committed = results.committed_folder()
validation = json.loads((committed / "memory_plan.json").read_text(encoding="utf-8"))
cases = validation["cases"]
words = {"giving_back": "malloc gives back at once", "as_it_comes": "malloc as it comes"}
figure, axes = plt.subplots()
for index, (mode, label) in enumerate(words.items()):
    of = "tensors_gb" if mode == "giving_back" else "with_allowance_gb"
    style = figures.line_style(index) | {"linestyle": "none"}
    axes.plot([row[mode]["real_gb"] for row in cases.values()], [row[of] for row in cases.values()], label=label, **style)
reals = [row[mode]["real_gb"] for row in cases.values() for mode in words]
ends = torch.tensor([0.9 * min(reals), 1.1 * max(reals)])
axes.plot(ends, ends, color="#555555", linewidth=1)
axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="#555555", alpha=0.15, label="within a tenth")
axes.set(xlabel="real peak of a process (GB)", ylabel="predicted (GB)", xscale="log", yscale="log")
for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.FixedLocator([0.3, 0.5, 1, 2, 3]))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
axes.legend(frameon=False)
summary = validation["summary"]
within = {mode: f"{part['within_10_percent']} of {part['cases']}" for mode, part in summary.items()}
panels.show(figure, alt=f"Predicted against real peak for {len(cases)} settings, close to the diagonal: {within['giving_back']} within a tenth where malloc gives back at once, {within['as_it_comes']} as it comes.")  # fmt: skip
Table(
    ("setting of SmolLM2", "predicted", "real, giving back", "error", "with allowance", "real, as it comes", "error"),
    tuple(
        (
            name, f"{row['tensors_gb']:.2f} GB", f"{row['giving_back']['real_gb']:.2f} GB",
            f"{row['giving_back']['error_percent']:+.1f} %", f"{row['with_allowance_gb']:.2f} GB",
            f"{row['as_it_comes']['real_gb']:.2f} GB", f"{row['as_it_comes']['error_percent']:+.1f} %",
        )
        for name, row in cases.items()
    ),
    f"Within a tenth: {within['giving_back']} where malloc gives back at once, {within['as_it_comes']} as it comes.",
)  # fmt: skip

# %% [markdown]
# So what a step *needs* is its tensors and, in a few places, a kernel's workspace. A CPU that generates in bfloat16
# copies the output head once for every row, and no tensor shows that. The rest comes from the allocator. On a GPU torch
# uses its own allocator, with its own rules, and the planner adds a stated allowance for it (`allowance` in
# `memory/plan.py` gives the reasons).

# %% [markdown]
# ## 4 · A 7B on a 24 GB card
#
# - The source's settings: LLaMA-7B, r = 8, micro-batches of 4 rows, 512 tokens, weights in bfloat16.
# - 1 GB is $10^9$ bytes in this course. A card that is sold with 24 GB has 24 [**GiB**](../docs/glossary.md), which are
#   25.8 GB. The driver takes half a GiB before any tensor.
#
# **Predict** before you run the cell: how much of the peak are activations? Does it fit into 24 GB?

# %%
llama = read_config("llama-7b")
source = Setting(method="lora", micro_batch=4, block=512, dtype="bfloat16")
card = capacity(24)
counted = cache(lambda setting: predict(llama, setting))  # each setting once
plan_7b = advise("llama-7b", llama, source, card, "a 24 GB card without the driver's part")
print(plan_7b.verdict())
plan_7b.parts()

# %% [markdown]
# Where do the activations come from? We count by hand, for each token and layer, in bytes. Two norms keep their
# input in float32. The adapters keep the norm's output. Attention keeps queries, keys, values and its result. The MLP
# keeps three inner vectors.

# %%
D, KV, INNER = llama.hidden_size, llama.hidden_size, llama.intermediate_size
by_hand = 2 * 4 * D + 2 * D + 2 * (2 * D + 2 * KV) + 2 * 3 * INNER
shorter = counted(replace(source, block=256))
per_token_layer = (plan_7b.plan.prediction.peak - shorter.peak) / (4 * 256 * llama.num_hidden_layers)
print(f"by hand {by_hand / 1e3:.0f} KB a token and layer, by the tracker {per_token_layer / 1e3:.0f} KB")

# %% [markdown]
# **Predict** the order of these changes, from the one that saves most to the one that saves least:

# %%
changes = {
    "as it is": source,
    "micro-batches of 1": replace(source, micro_batch=1, accumulation=4),
    "checkpointing": replace(source, checkpointing=True),
    "8-bit optimizer": replace(source, optimizer="adamw-8bit"),
    "4-bit base": replace(source, quantisation="nf4-dq"),
    "block of 256": replace(source, block=256),
}
counts = {name: counted(setting) for name, setting in changes.items()}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots(figsize=(8, 3.2))
left = [0.0] * len(counts)
for index, part in enumerate(PARTS):
    sizes = [count.parts[part] / GB for count in counts.values()]
    hatch = ("", "//", "xx", "..", "++")[index]
    axes.barh(list(counts), sizes, left=left, label=part, color=figures.COLOURS[index], hatch=hatch, edgecolor="white")
    left = [a + b for a, b in zip(left, sizes, strict=True)]
axes.axvline(card / GB, color="black", linestyle=":")
axes.annotate("24 GB card", (card / GB, 5.45), ha="right", fontsize=8)
axes.invert_yaxis()
axes.set_xlabel("GB of tensors at the peak")
axes.legend(frameon=False, fontsize=8, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
order = sorted(counts, key=lambda name: counts[name].peak)
panels.show(figure, alt=f"Stacked bars of what a 7B's LoRA step takes. From least to most: {', '.join(f'{name} {counts[name].peak / GB:.1f} GB' for name in order)}. Weights and activations are nearly all of it.")  # fmt: skip

# %% [markdown]
# - **Micro-batches with accumulation** and **checkpointing** (keep each layer's input only, and run the layer again on
#   the way back) shrink activations and leave the gradient as it is. Accumulation costs hardly any time; checkpointing
#   costs a forward pass.
# - A **4-bit base** shrinks the weights, and changes them a little. An **8-bit optimizer** does nothing for LoRA: there
#   is hardly an optimizer to shrink. A **shorter block** loses the long rows.
#
# The planner tries the changes in that order of cost and proposes the first that is sufficient. Move the sliders:


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_plan(figure, rows: int, tokens: int, checkpointing: int) -> str:
    """The parts of one plan as bars; returns the sentence that reads them."""
    count = counted(replace(source, micro_batch=rows, block=tokens, checkpointing=bool(checkpointing)))
    axes = figure.subplots()
    figures.plot_bars(axes, {part: [count.parts[part] / GB] for part in PARTS}, "GB", "{:.2f}")
    axes.set_title(f"{rows} x {tokens} tokens, checkpointing {'on' if checkpointing else 'off'}: {count.peak / GB:.1f} GB")
    cards = [size for size in (12, 16, 24, 40, 48, 80) if 1.05 * count.peak < capacity(size)]
    return f"{count.peak / GB:.1f} GB of tensors: " + (f"a {cards[0]} GB card will do." if cards else "more than 80 GB.")


panels.sliders_panel(
    {"rows at one time": [1, 2, 4, 8], "tokens a row": [256, 512, 1024, 2048], "checkpointing (1 is on)": [0, 1]},
    draw_plan,
    start={"rows at one time": 4, "tokens a row": 512},
    continuous=False,
    size=(7, 3),
)

# %% [markdown]
# Where no kernel runs, here is its first position, the source's settings:

# %%
figure = plt.figure(figsize=(7, 3))
sentence = draw_plan(figure, 4, 512, 0)
panels.show(figure, alt=f"Bars: the parts of the memory of one step. {sentence}")
print(sentence)

# %% [markdown]
# On the command line:
# `lorahub-edu plan --model llama-7b --micro-batch 4 --block 1024 --gpu 24`, and `lorahub-edu train
# llama_7b_lora_alpaca` asks the planner before it loads a model. When the step does not fit, both answer like this:

# %%
long_rows = advise("llama-7b", llama, replace(source, block=1024), card, "a 24 GB card without the driver's part")
print(long_rows.verdict())
long_rows.alternatives()

# %% [markdown]
# How good is this for a 7B? Here are published figures and the planner's, with the reason for each difference:

# %%
Table(
    ("what", "published", "planner", "difference", "why"),
    tuple(
        (row["name"], f"{row['published_gb']:g} GB", f"{row['ours_gb']:.2f} GB", f"{row['difference_percent']:+.0f} %", row["why"])
        for row in validation["published"]
    ),
    "litgpt's figures are from its resource tables; those with a claim's number from the course's sources.",
)  # fmt: skip

# %%
adapter_7b = counted(replace(source, method="llama_adapter"))
step = committed / "step_7b.json"
if step.is_file():
    real = json.loads(step.read_text(encoding="utf-8"))
    print(f"A real 7B step on a CPU ({real['setting']}): {real['real_gb']:.2f} GB, predicted {real['predicted_gb']:.2f} GB.")

# %% [markdown]
# ## 5 · Four bits
#
# - **NF4** stores a weight in four bits, a place in a table of 16 values, times a **scale** that 64 weights share.
#   QLoRA keeps the frozen base in this form and trains LoRA on it. For each product the weight is unpacked for a
#   moment.
# - With **double quantisation** the scales are quantised too: 0.127 bits a weight instead of 0.5.
#
# **05.3 Bytes of a 4-bit matrix** · difficulty 2 of 5 · 5 minutes · *common bug:* forgetting the scales.
#
# Write `four_bit_bytes(weights, block)`: the bytes of so many 4-bit weights with one 32-bit scale for each block.


# %%
def four_bit_bytes(weights: int, block: int) -> float:
    raise NotImplementedError


check("05.3", four_bit_bytes)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# def four_bit_bytes(weights, block):
#     return weights / 2 + 4 * weights / block
# ```
# </details>

# %%
linear = llama.num_hidden_layers * (4 * D * D + 3 * D * INNER)
quantised = linear * (0.5 + (8 + 32 / 256) / 64 / 8) + (counts["as it is"].parameters - linear) * 2
measured = counts["4-bit base"].parts[WEIGHTS]
print(f"7B: {2 * counts['as it is'].parameters / GB:.2f} GB in bfloat16; by hand {quantised / GB:.2f} GB, planner {measured / GB:.2f} GB in NF4")
assert abs(measured / quantised - 1) < 0.01

# %% [markdown]
# ## 6 · Full fine-tuning: how much more expensive?
#
# The source says that it needs several GPUs and is 30 to 40 times more expensive than LoRA. **Predict** both: GB for a
# 7B, and how much longer a step takes when every weight is trained. It also says that a smaller rank trains faster:
# predict that too, for rank 64 against rank 1. (A matrix product costs as much backward as forward
# for the input's gradient, and as much again for the weight's, which LoRA does not need.)

# %%
full = {
    "all in bfloat16": Setting(method="full", micro_batch=1, block=512, checkpointing=True, trained_dtype="bfloat16"),
    "trained in float32": Setting(method="full", micro_batch=1, block=512, checkpointing=True),
}  # fmt: skip
full_counts = {name: counted(setting) for name, setting in full.items()}
Table(
    ("full fine-tuning of a 7B", *PARTS, "together", "24 GB cards at least"),
    tuple(
        (name, *(f"{count.parts[part] / GB:.1f}" for part in PARTS), f"{count.peak / GB:.1f} GB", f"{-(-count.peak // card)}")
        for name, count in full_counts.items()
    ),
    "One row of 512 tokens, with checkpointing; the optimizer's share includes the copy that it makes while it updates.",
)  # fmt: skip

# %%
short = [Encoded(row.input_ids[:64], row.labels[:64]) for row in rows_here]


def step_seconds(tuned: torch.nn.Module) -> list[float]:
    """Seconds of four training steps, after a first one that is not counted."""
    return [record["seconds"] for record in train(tuned, short, replace(run, steps=5), progress=False).history[1:]]


# %%
seconds: dict[str, list[float]] = {}
for name, rank in {"LoRA, r = 1": 1, "LoRA, r = 64": 64, "LoRA": lora.rank, "full": 0}.items():
    adapters.remove(model, "default")
    model.requires_grad_(True)
    if rank:  # the rest is frozen
        adapters.inject(model, replace(lora, rank=rank), seed=0)
    seconds[name] = step_seconds(model)
typical = {name: statistics.median(values) for name, values in seconds.items()}
ratio, slower = typical["full"] / typical["LoRA"], typical["LoRA, r = 64"] / typical["LoRA, r = 1"]
print({name: [round(value, 2) for value in values] for name, values in seconds.items()})
print(f"full takes {ratio:.1f} x LoRA's time, rank 64 takes {slower:.2f} x rank 1's")

# %% [markdown]
# The step itself is more expensive by a small factor. Counting products says the same: three against two, and the
# update of all weights. The rest of the source's factor must come from two things. Four GPUs shared one model: every
# layer's weights are sent to all of them for every micro-batch. And activations were recomputed. It describes that
# set-up, not full fine-tuning. And the rank? A and B are thin beside the matrix that they adapt, so their products take
# a small part of a step.

# %% [markdown]
# ## 7 · Inference
#
# - The source saw 27.65 GB for LoRA, unmerged, and says that *merging* reduces this. It gives no merged figure. Its
#   other figure, 13.56 GB, is of another method, LLaMA-Adapter.
# - **Predict** what A and B of rank 8 take, as a share of the model.

# %%
predictions.predict("05.a", "A and B of rank 8, in percent of a 7B model's memory", low=0.001, high=100, log=True)

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
generation = Setting(method="lora", task="generation", micro_batch=1, block=100, dtype="float32")
variants = {
    "LoRA apart, float32": generation,
    "merged, float32": replace(generation, method="none"),
    "LoRA apart, bfloat16": replace(generation, dtype="bfloat16"),
    "merged, bfloat16": replace(generation, method="none", dtype="bfloat16"),
}
memory = {name: {size: predict(read_config(size), setting).peak / GB for size in (profile.base_model, "llama-7b")} for name, setting in variants.items()}  # fmt: skip
Table(
    ("inference, a prompt of 100 tokens", profile.base_model, "llama-7b"),
    tuple((name, f"{row[profile.base_model]:.3f} GB", f"{row['llama-7b']:.2f} GB") for name, row in memory.items()),
)

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
saved = 1 - memory["merged, float32"]["llama-7b"] / memory["LoRA apart, float32"]["llama-7b"]
compare("05.a", 100 * saved)
dtypes = memory["LoRA apart, float32"]["llama-7b"] / memory["LoRA apart, bfloat16"]["llama-7b"]
adapters_held = {}
for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
    plain, _ = pretrained.load(profile, dtype=dtype)
    before = sum(p.numel() * p.element_size() for p in plain.parameters())
    adapters.inject(plain, Setting().lora, seed=0)
    adapters_held[name] = sum(p.numel() * p.element_size() for p in plain.parameters()) / before - 1
print(f"7B: merging saves {saved:.2%}, bfloat16 instead of float32 a factor of {dtypes:.2f}")
print(f"{profile.base_model}, loaded for real: A and B add {adapters_held['float32']:.2%} in float32")

# %% [markdown]
# The source ran two scripts with different defaults. Merging saves the memory of A and B, which is almost nothing.
#
# LoRAHub's search only runs a model forward. Its authors report about 5 GB against about 40 GB for full fine-tuning of
# FLAN-T5-large:

# %%
t5 = read_config("flan-t5-large")
lora_t5 = replace(Setting().lora, rank=16, target_modules=("q", "v"))
forward = Setting(lora=lora_t5, task="scoring", micro_batch=5, block=512, dtype="float32", loss="library")
t5_counts = {
    "inference, the base alone": predict(t5, replace(forward, method="none")).peak / GB,
    "LoRAHub: one composed module, scored": predict(t5, forward).peak / GB,
    "LoRA tuning": predict(t5, replace(forward, task="training")).peak / GB,
    "full fine-tuning": predict(t5, replace(forward, task="training", method="full")).peak / GB,
}
like = t5_counts["LoRAHub: one composed module, scored"] / t5_counts["inference, the base alone"]
times = t5_counts["full fine-tuning"] / t5_counts["LoRAHub: one composed module, scored"]
Table(("FLAN-T5-large in float32, five rows of 512 tokens", "GB of tensors"), tuple((name, f"{value:.1f}") for name, value in t5_counts.items()))

# %% [markdown]
# A forward pass without gradients keeps only the activations of the current layer. The gap to full fine-tuning is the
# optimizer and the activations, so it grows with the batch; the modules that are composed are small beside the base.

# %% [markdown]
# ## Findings

# %% tags=["hide-input"] jupyter={"source_hidden": true}
room = f"predicted to fit a 24 GB card with {plan_7b.plan.room / GB:.1f} GB to spare, not run on one; a batch of four full rows is the worst case"
everything = full_counts["all in bfloat16"]
cards = -(-everything.peak // card)
dearer = ratio * cards
publish("05", [
    Row("fake_against_tracked", 100 * fake_error, "% off the real step's tensors"),
    Row(
        "lora_7b_planned", plan_7b.plan.needed / GB, "GB at most, 4 x 512", "not shown here",
        room if plan_7b.plan.fits else "predicted not to fit", claim="R9",
    ),
    Row(
        "llama_adapter_7b_planned", adapter_7b.peak / GB, "GB of tensors, 4 x 512", "not shown here",
        "predicted, not run on a GPU", claim="R10",
    ),
    Row(
        "full_7b_planned", everything.peak / GB, "GB of tensors, all in bfloat16", verdict(everything.peak > card, True),
        "predicted; it does not fit one 24 GB card, nor one of 48", claim="R11",
    ),
    Row(
        "full_step_time", ratio, "x LoRA's time a step", verdict(dearer >= 20),
        f"times {cards} cards of 24 GB that makes {dearer:.0f} x (shown from 20 x); several GPUs can't be timed here. The "
        f"source's own times are of whole runs: 4 GPUs x 1,956 min against 192 min, {4 * 1956 / 192:.0f} x", claim="R11",
    ),
    Row(
        "step_time_of_r_64", slower, "x the time of a step at r = 1", verdict(slower >= 1.05),
        "adapters on q and v; shown from 1.05 x", claim="R16",
    ),
    Row(
        "merged_inference_saves", 100 * saved, "% of a 7B's inference", verdict(saved > 0.05, True),
        f"refuted below 5 %. The source's unmerged LoRA takes {27.65 / 13.56:.2f} x its LLaMA-Adapter; float32 takes "
        f"{dtypes:.2f} x bfloat16: lit-llama's LoRA script loads float32 by default, its adapter script bfloat16", claim="R15",
    ),
    Row(
        "lorahub_memory_like_inference", like, "x plain inference", verdict(like < 1.3 and times > 3, True),
        f"predicted for five rows of 512 tokens; full fine-tuning takes {times:.0f} x as much", claim="H17",
        circumstances={"model": "flan-t5-large"},
    ),
    Row(
        "planner_error", [row["giving_back"]["error_percent"] for row in cases.values()],
        "% off real peaks, malloc giving back", circumstances={"model": validation["model"], "profile": "cpu"},
    ),
], profile)  # fmt: skip

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("05")

# %% [markdown]
# ## What to remember
#
# - Memory is weights, gradients, optimizer, activations, logits. LoRA removes the second and third; it does not reduce
#   activations.
# - Whether a step fits can be known before it runs: `lorahub-edu plan`. Cheapest change first: smaller micro-batches,
#   then checkpointing; then what changes the result.
# - A difference of two in someone's memory figures may well be a dtype: ask for it first.
#
# **Go further:** Chen et al. 2016 (arXiv 1604.06174) on checkpointing; QLoRA (arXiv 2305.14314) section 3; `lorahub-edu
# plan --model llama-3-8b`. **Next:** 06, Composing.
