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
# # Assignment 03 · Alpaca: data and masking
#
# Eight problems on lesson 03. You put a row into the prompt, mask it and cut it to a block. Then you pad a batch, and pack
# rows without mixing them. At the end you split a set so that the split can be repeated. About 90 minutes; everything runs in seconds on any laptop.
#
# **How it works.** Write into the cells that say `YOUR CODE HERE`, and only there. Below each answer stands a locked cell
# with a check; run it as often as you like. Grading uses the same properties on other inputs.
# In grading, answers can't import `lorahub_edu`: they use torch, NumPy and Python.
#
# Token ids here are plain whole numbers, so no tokenizer is needed until the last problem. -100 is the label that takes no
# loss, in torch as in transformers.

# %%
import random

import torch

from lorahub_edu.show.check import check

# %%
from lorahub_edu.data import alpaca

print(alpaca.PROMPT_WITH_INPUT)

# %% [markdown]
# ## Problem 1. The prompt
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | Taori et al. 2023, Stanford Alpaca, templates | filling the places one after the other: an instruction may speak of `{input}` |
#
# `row` has an `instruction`, mostly an `output`, and an `input` that may be empty or missing. Both templates have the place
# `{instruction}`; the first has `{input}` as well. Return the text that stands before the response.
#
# **Expected:** text that ends with a line break after `### Response:`, and nothing of the row's output.


# %% answer="format_prompt"
def format_prompt(row, with_input, without_input):
    """The prompt of a row, in the template that fits it."""
    ### BEGIN SOLUTION
    given = row.get("input", "")
    template = with_input if given else without_input
    return template.format(instruction=row["instruction"], input=given)
    ### END SOLUTION


# %% test="test_format_prompt" points=2
check("03.4", format_prompt)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.4", format_prompt)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.4}}

# %% [markdown]
# ## Problem 2. The loss mask
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 10 | this course, lesson 03 | one off: the first token of the response masked as well |
#
# Return the labels of prompt, response and end token. They are as long as the sequence and not shifted: the model does
# that.
#
# **Expected:** a list; -100 on the prompt, the tokens themselves elsewhere.


# %% answer="labels_for"
def labels_for(prompt_ids, response_ids, eos_id):
    """The labels of a row: no loss on the prompt."""
    ### BEGIN SOLUTION
    return [-100] * len(prompt_ids) + list(response_ids) + [eos_id]
    ### END SOLUTION


# %% test="test_labels_for" points=2
check("03.1", labels_for)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.1", labels_for)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.1}}

# %% [markdown]
# ## Problem 3. A row in a block
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | this course, lesson 03 | an end token behind a response that was cut: the model learns to stop in the middle |
#
# Put prompt, response and end token together and keep the first `block` tokens. Return token ids and labels. A row whose
# prompt fills the block alone has nothing to learn: return `None` for it.
#
# **Expected:** a pair of lists of the same length, at most `block`; or `None`.


# %% answer="cut"
def cut(prompt_ids, response_ids, eos_id, block):
    """(input ids, labels) of a row in a block, or None if no label fits."""
    ### BEGIN SOLUTION
    if len(prompt_ids) >= block:
        return None
    ids = (list(prompt_ids) + list(response_ids) + [eos_id])[:block]
    return ids, [-100] * len(prompt_ids) + ids[len(prompt_ids) :]
    ### END SOLUTION


# %% test="test_cut" points=3
check("03.5", cut)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.5", cut)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.5}}

# %% [markdown]
# ## Problem 4. A padded batch
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 20 | this course, lesson 03 | looking for the padding token, which in a LLaMA is often the end token too |
#
# `rows` holds pairs of token ids and labels, of different lengths. Fill them up on the right to the longest. No token sees
# padding, and padding takes no loss.
#
# **Expected:** three tensors of shape `(rows, longest)`: input ids, labels, and a mask with 1 at tokens and 0 at padding.


# %% answer="collate"
def collate(rows, pad_id):
    """Input ids, labels and attention mask of a batch."""
    ### BEGIN SOLUTION
    longest = max(len(ids) for ids, _ in rows)
    ids = [ids + [pad_id] * (longest - len(ids)) for ids, _ in rows]
    labels = [labels + [-100] * (longest - len(labels)) for _, labels in rows]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(mask)
    ### END SOLUTION


# %% test="test_collate" points=3
check("03.6", collate)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.6", collate)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.6}}

# %% [markdown]
# ## Problem 5. Positions in a packed sequence
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | this course, lesson 03 | positions that run on from one row into the next |
#
# Rows of these lengths stand one after the other in one sequence. Return each token's position, as if its row stood alone.
#
# **Expected:** a list as long as all rows together.


# %% answer="packed_positions"
def packed_positions(lengths):
    """The positions of all tokens of packed rows."""
    ### BEGIN SOLUTION
    return [position for length in lengths for position in range(length)]
    ### END SOLUTION


# %% test="test_packed_positions" points=1
check("03.2", packed_positions)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.2", packed_positions)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.2}}

# %% [markdown]
# ## Problem 6. Who sees whom
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 10 | this course, lesson 03 | one large triangle: later rows then read earlier ones |
#
# The same packed sequence. Return which token may see which: rows of the matrix are the tokens that look, columns the
# tokens that are looked at.
#
# **Expected:** a boolean tensor of shape `(T, T)`, T the sum of the lengths.


# %% answer="may_attend"
def may_attend(lengths):
    """(T, T): may the token of this row see the token of that column?"""
    ### BEGIN SOLUTION
    return torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]).bool()
    ### END SOLUTION


# %% test="test_may_attend" points=3
check("03.8", may_attend)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.8", may_attend)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.8}}

# %% [markdown]
# ## Problem 7. A split that can be repeated
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 3 of 5 | 15 | Raschka 2023, *LoRA & LLaMA*: 49,759 rows to train on, 2,000 to validate on | `random.seed(seed)`: it makes every other random number in the program follow from your seed |
#
# Split `rows` at random into a training part and a validation part of `validation` rows. The same seed gives the same
# split, and another seed gives another split. Leave the list that you were given as it is. Do not change any other random
# number of the program.
#
# **Expected:** a pair of lists, training rows first.


# %% answer="split"
def split(rows, validation, seed):
    """(training rows, validation rows), random and repeatable."""
    ### BEGIN SOLUTION
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in order[validation:]], [rows[i] for i in order[:validation]]
    ### END SOLUTION


# %% test="test_split" points=3
check("03.7", split)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.7", split)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.7}}

# %% [markdown]
# ## Problem 8. Predict, then look
#
# | difficulty | minutes | source | the common bug |
# |---|---|---|---|
# | 2 of 5 | 5 | this course, lesson 03 | forgetting the template, which stands in every prompt |
#
# The course ships a small set of rows in Alpaca's format, and a small tokenizer that was trained on them. What share of all
# their tokens belongs to the prompt and takes no loss?
#
# - **A** less than a quarter
# - **B** about half
# - **C** about two thirds
# - **D** more than four fifths
#
# Set `prompt_share` to a letter before you run anything, then run the cell below.
#
# **Expected:** one letter in quotes.

# %% answer="prompt_share"
prompt_share = None
### BEGIN SOLUTION
prompt_share = "B"
### END SOLUTION

# %%
from lorahub_edu.models import tiny

rows = [alpaca.encode(row, tiny.tokenizer(), block_size=1024) for row in alpaca.shipped_examples()]
total = sum(len(row.labels) for row in rows)
unlearnt = sum(row.labels.count(-100) for row in rows)
print(f"{len(rows)} rows, {total:,} tokens, {unlearnt:,} of them without loss: {unlearnt / total:.0%}")

# %% test="test_prompt_share" points=1
check("03.9", prompt_share)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("03.9", prompt_share)
### END HIDDEN TESTS

# %% [markdown]
# {{hints 03.9}}
