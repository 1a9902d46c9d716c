"""Right and wrong answers to the problems of lesson 04's assignment on what methods train: 04.8 to 04.11."""

import torch
from torch import nn


def trained(method, layers, hidden, kv, inner, size):
    return {
        "prompt": size * hidden,
        "prefix": layers * 2 * size * kv,
        "ia3": layers * (2 * kv + inner),
        "bitfit": layers * (3 * hidden + 2 * kv + 2 * inner),
        "lora": layers * size * (3 * hidden + kv),
    }[method]


def trained_by_shapes(method, layers, hidden, kv, inner, size):
    """The shapes of all tensors that a layer gets, or that stand in front once."""
    linear = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (inner, hidden), (inner, hidden)]
    linear.append((hidden, inner))
    each = {
        "prompt": [],
        "prefix": [(size, kv), (size, kv)],
        "ia3": [(kv,), (kv,), (inner,)],
        "bitfit": [(out,) for out, _ in linear],
        "lora": [(size, hidden), (hidden, size), (size, hidden), (kv, size)],
    }[method]
    total = layers * sum(torch.empty(shape).numel() for shape in each)
    return torch.tensor(total + (torch.empty(size, hidden).numel() if method == "prompt" else 0))


def trained_by_cases(method, layers, hidden, kv, inner, size):
    if method == "prompt":
        return hidden * size
    count = 0
    for _ in range(layers):
        if method == "prefix":
            count += size * kv + size * kv
        elif method == "ia3":
            count += kv + kv + inner
        elif method == "bitfit":
            count += hidden + kv + kv + hidden + inner + inner + hidden
        else:
            count += size * (hidden + hidden) + size * (hidden + kv)
    return count


def but(method, formula):
    """Right for every method but one."""

    def made(name, layers, hidden, kv, inner, size):
        if name == method:
            return formula(layers, hidden, kv, inner, size)
        return trained(name, layers, hidden, kv, inner, size)

    return made


def bitfit(model, layers=nn.Linear, start=torch.zeros, new=True, old=True, freeze=True, thaw="bias", reset=False):
    """Trained biases with one place for each mistake."""
    if freeze:
        model.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, layers):
            if layer.bias is None and new:
                layer.bias = nn.Parameter(start(layer.out_features))
            elif layer.bias is not None:
                layer.bias.requires_grad_(old)
                if reset:
                    nn.init.zeros_(layer.bias)
        if thaw == "norm" and isinstance(layer, nn.RMSNorm):
            layer.weight.requires_grad_(True)


def bitfit_as_written(model):
    model.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros(layer.out_features))
            layer.bias.requires_grad_(True)


def bitfit_by_replacing(model):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.bias is None:
            made = nn.Linear(layer.in_features, layer.out_features)
            made.load_state_dict({"weight": layer.weight, "bias": torch.zeros(layer.out_features)})
            model.set_submodule(name, made)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith("bias")


def bitfit_by_registering(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in filter(lambda m: type(m) is nn.Linear, model.modules()):
        old = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        layer.register_parameter("bias", nn.Parameter(old.clone()))


def bitfit_top_only(model):
    bitfit(model)
    for layer in model:
        if not isinstance(layer, nn.Linear):
            for part in layer.modules():
                if isinstance(part, nn.Linear):
                    part.bias = None


def bitfit_with_buffers(model):
    bitfit(model, new=False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.bias is None:
            del layer._parameters["bias"]
            layer.register_buffer("bias", torch.zeros(layer.out_features))


RIGHT = {
    "04.8": {"a table": trained, "by shapes": trained_by_shapes, "by cases": trained_by_cases},
    "04.9": {"by replacing": bitfit_by_replacing, "by registering": bitfit_by_registering, "as written": bitfit_as_written},
    "04.10": {"the root": 64**0.5, "both factors": (16 / 64**0.5) / (16 / 64), "as a tensor": torch.tensor(8)},
    "04.11": {"small": "c", "in brackets": "(c)"},
}

WRONG = {
    "04.8": {
        "a prompt in every layer": (but("prompt", lambda n, h, kv, f, s: n * s * h), "in front of the first one only"),
        "the prompt's length": (but("prompt", lambda n, h, kv, f, s: s), "its width is missing"),
        "keys only": (but("prefix", lambda n, h, kv, f, s: n * s * kv), "the prefix has both"),
        "a wide prefix": (but("prefix", lambda n, h, kv, f, s: n * 2 * s * h), "not as the hidden state"),
        "one layer's prefix": (but("prefix", lambda n, h, kv, f, s: 2 * s * kv), "every layer has a prefix"),
        "wide keys": (but("ia3", lambda n, h, kv, f, s: n * (2 * h + f)), "as wide as the hidden state"),
        "no feed-forward": (but("ia3", lambda n, h, kv, f, s: n * 2 * kv), "one factor for each inner"),
        "inputs": (but("bitfit", lambda n, h, kv, f, s: n * (6 * h + f)), "not its inputs"),
        "attention only": (but("bitfit", lambda n, h, kv, f, s: n * (2 * h + 2 * kv)), "three matrices are missing"),
        "wide v_proj": (but("lora", lambda n, h, kv, f, s: n * s * 4 * h), "v_proj puts out kv"),
        "A only": (but("lora", lambda n, h, kv, f, s: n * s * 2 * h), "only A was counted"),
        "v_proj only": (but("lora", lambda n, h, kv, f, s: n * s * (h + kv)), "q_proj's adapter is missing"),
    },
    "04.9": {
        "the norm too": (lambda m: bitfit(m, thaw="norm"), "weights are trained as well"),
        "not frozen": (lambda m: bitfit(m, freeze=False), "weights are trained as well"),
        "old ones only": (lambda m: bitfit(m, new=False), "some linear layers have no trained bias"),
        "new ones only": (lambda m: bitfit(m, old=False), "some linear layers have no trained bias"),
        "the top only": (bitfit_top_only, "some linear layers have no trained bias"),
        "random start": (lambda m: bitfit(m, start=torch.randn), "must start at zero"),
        "reset": (lambda m: bitfit(m, reset=True), "a bias that exists stays"),
        "buffers": (bitfit_with_buffers, "some linear layers have no trained bias"),
        "frozen": (lambda m: m.requires_grad_(False) and None, "nothing is trained"),
    },
    "04.10": {
        "the rank": (64, "this is the rank"),
        "rsLoRA's own": (16 / 8, "rsLoRA's factor itself"),
        "LoRA's own": (16 / 64, "LoRA's factor itself"),
        "upside down": (8 / 64, "upside down"),
        "with alpha": (128, "alpha cancels"),
        "alpha": (16, "this is alpha"),
    },
    "04.11": {
        "LoRA": ("A", "that is a matrix"),
        "IA3": ("B", "written into it"),
        "DoRA": ("D", "a new weight"),
        "a name": ("adapter", "write one letter"),
        "a number": (3, "write one letter"),
    },
}
