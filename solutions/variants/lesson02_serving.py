"""Right and wrong answers to the problems of lesson 02's assignment on using adapters: 02.8 to 02.11."""

import torch


def merge_with(scale=lambda alpha, A: alpha / len(A), keep=torch.clone, wide=torch.float32, early=False):
    """A merge with one place for each mistake."""

    def merge(model, updates, alpha):
        kept = {}
        with torch.no_grad():
            for name, (A, B) in updates.items():
                weight = model.get_submodule(name).weight
                kept[name] = keep(weight.detach())
                delta = scale(alpha, A) * (B.to(wide) @ A.to(wide))
                delta = delta.to(weight.dtype) if early else delta
                weight.copy_(weight.to(wide) + delta)
        return kept

    return merge


def merge_by_state(model, updates, alpha):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: state[f"{name}.weight"].clone() for name in updates}
    for name, (A, B) in updates.items():
        delta = torch.einsum("or,ri->oi", B, A).mul(alpha / B.shape[1])
        state[f"{name}.weight"] = (kept[name].float() + delta).to(kept[name].dtype)
    model.load_state_dict(state)
    return kept


def merge_first_rank(model, updates, alpha):
    rank = len(next(iter(updates.values()))[0])
    return merge_with(lambda alpha, A: alpha / rank)(model, updates, alpha)


def merge_twice(model, updates, alpha):
    return merge_with(lambda alpha, A: 2 * alpha / len(A))(model, updates, alpha)


def merge_a_copy(model, updates, alpha):
    kept = {}
    for name, (A, B) in updates.items():
        weight = model.get_submodule(name).weight.detach().clone()
        kept[name] = weight.clone()
        weight += (alpha / len(A) * (B @ A)).to(weight.dtype)
    return kept


def merge_to_float32(model, updates, alpha):
    kept = {}
    for name, (A, B) in updates.items():
        weight = model.get_submodule(name).weight
        kept[name] = weight.detach().clone()
        weight.data = (weight.detach().float() + alpha / len(A) * (B @ A)).to(weight.dtype).float()
    return kept


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load(model, state):
    own = trained(model)
    if own.keys() != state.keys() or any(own[n].shape != state[n].shape for n in own):
        raise ValueError("it doesn't fit")
    for name in own:
        own[name].data.copy_(state[name])


def load_strictly(model, state):
    """torch's own comparison on a copy of everything, then one call."""
    whole = dict(model.state_dict())
    own = trained(model)
    for name in set(own) | set(state):
        if name not in own or name not in state:
            raise ValueError(name)
        if list(whole[name].size()) != list(state[name].size()):
            raise ValueError(name)
    model.load_state_dict(whole | state, strict=True)


def load_own_error(model, state):
    class FileError(ValueError):
        pass

    try:
        load(model, state)
    except ValueError as error:
        raise ValueError(str(FileError(error))) from error


def load_not_strict(model, state):
    model.load_state_dict(state, strict=False)


def load_known(model, state):
    for name, parameter in trained(model).items():
        parameter.data.copy_(state[name])


def load_unknown_only(model, state):
    if set(state) - set(trained(model)):
        raise ValueError("unknown")
    for name in state:
        trained(model)[name].data.copy_(state[name])


def load_without_shapes(model, state):
    if set(state) != set(trained(model)):
        raise ValueError("names")
    load_known(model, state)


def load_halfway(model, state):
    own = trained(model)
    for name, tensor in state.items():
        if name not in own:
            raise ValueError(name)
        own[name].data.copy_(tensor)


def load_with_assert(model, state):
    own = trained(model)
    assert set(own) == set(state) and all(own[n].shape == state[n].shape for n in own)
    load(model, state)


def load_new_parameters(model, state):
    own = trained(model)
    if own.keys() != state.keys() or any(own[n].shape != state[n].shape for n in own):
        raise ValueError("it doesn't fit")
    for name, tensor in state.items():
        parent, _, last = name.rpartition(".")
        parent = model.get_submodule(parent)
        parent[last] = torch.nn.Parameter(tensor, requires_grad=False)


def load_nothing(model, state):
    own = trained(model)
    if own.keys() != state.keys() or any(own[n].shape != state[n].shape for n in own):
        raise ValueError("it doesn't fit")
    for name in own:
        own[name] = state[name]


def base(x, W):
    return x @ W.T


def routed_by_loop(x, W, A, B, which, alpha):
    rows = []
    for row, i in zip(x, which.tolist(), strict=True):
        out = row @ W.T
        rows.append(out if i < 0 else out + alpha / A.shape[1] * (row @ A[i].T @ B[i].T))
    return torch.stack(rows)


def routed_by_padding(x, W, A, B, which, alpha):
    A, B = (torch.cat([t, torch.zeros_like(t[:1])]) for t in (A, B))  # -1 picks the empty one
    return base(x, W) + alpha / A.shape[1] * torch.einsum("bti,bri,bor->bto", x, A[which], B[which])


def routed_by_adapter(x, W, A, B, which, alpha):
    out = base(x, W)
    for i in range(len(A)):
        mine = which == i
        out[mine] += alpha / A.shape[1] * (x[mine] @ (B[i] @ A[i]).T)
    return out


def updates(x, A, B, which):
    return x @ A[which].mT @ B[which].mT


RIGHT = {
    "02.8": {
        "in place": merge_with(),
        "by the state": merge_by_state,
        "in float64": merge_with(wide=torch.float64),
    },
    "02.9": {"by data": load, "by load_state_dict": load_strictly, "with an error of its own": load_own_error},
    "02.10": {"by loop": routed_by_loop, "with an empty adapter": routed_by_padding, "by adapter": routed_by_adapter},
    "02.11": {"small": "c", "in brackets": "(C)"},
}

WRONG = {
    "02.8": {
        "alias": (merge_with(keep=lambda weight: weight), "keep a clone"),
        "unscaled": (merge_with(lambda alpha, A: 1.0), "alpha / r is left out"),
        "alpha only": (merge_with(lambda alpha, A: alpha), "not by alpha / r"),
        "subtracted": (merge_with(lambda alpha, A: -alpha / len(A)), "is subtracted"),
        "the first rank": (merge_first_rank, "ranks differ"),
        "twice": (merge_twice, "merged twice"),
        "a copy": (merge_a_copy, "nothing was merged"),
        "rounded early": (merge_with(early=True), "rounded to bfloat16 before"),
        "left in float32": (merge_to_float32, "in the weight's own dtype"),
        "nothing back": (lambda m, u, a: merge_with()(m, u, a) and None, "return a dictionary"),
    },
    "02.9": {
        "not strict": (load_not_strict, "an unknown name is ignored"),
        "known ones": (load_known, "an unknown name is ignored"),
        "unknown only": (load_unknown_only, "a missing one is overlooked"),
        "no shapes": (load_without_shapes, "the shape isn't compared"),
        "half way": (load_halfway, "compare everything first"),
        "assert": (load_with_assert, "raise ValueError yourself"),
        "not into the model": (load_nothing, "nothing was written"),
        "new parameters": (load_new_parameters, "copy the values into them"),
    },
    "02.10": {
        "the last": (
            lambda x, W, A, B, i, a: base(x, W) + a / A.shape[1] * updates(x, A, B, i),
            "-1 counts from the end",
        ),
        "the first": (
            lambda x, W, A, B, i, a: base(x, W) + a / A.shape[1] * updates(x, A, B, i.clamp(min=0)),
            "got the first one",
        ),
        "one for all": (
            lambda x, W, A, B, i, a: base(x, W) + a / A.shape[1] * (x @ A[i[0]].T @ B[i[0]].T),
            "first row's adapter",
        ),
        "sum": (
            lambda x, W, A, B, i, a: base(x, W) + a / A.shape[1] * (x @ (B @ A).sum(0).T),
            "sum of all adapters",
        ),
        "by row": (
            lambda x, W, A, B, i, a: base(x, W) + a / A.shape[1] * updates(x, A, B, torch.arange(len(x)) % len(A)),
            "rows' numbers",
        ),
        "unscaled": (lambda x, W, A, B, i, a: routed_by_loop(x, W, A, B, i, A.shape[1]), "alpha / r is left out"),
        "alpha only": (lambda x, W, A, B, i, a: routed_by_loop(x, W, A, B, i, a * A.shape[1]), "not by alpha / r"),
        "no base": (lambda x, W, A, B, i, a: routed_by_loop(x, 0 * W, A, B, i, a), "the base is missing"),
        "only the base": (lambda x, W, A, B, i, a: base(x, W), "only the base acts"),
    },
    "02.11": {
        "all": ("A", "in real numbers only"),
        "rare": ("B", "the loss isn't rare"),
        "none": ("D", "rounded back"),
        "another letter": ("E", "write one letter"),
        "a number": (0.2, "write one letter"),
    },
}
