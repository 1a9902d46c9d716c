"""One LoRA layer, forward and backward: ours against PEFT's, same base weight, A, B, input and gradient.

python benchmarks/lora_layer.py [--repeats 30] [--save]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import common
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from lorahub_edu.lora.layer import LoRAConfig, LoRALinear

# (rows of the input, in, out): q and v of SmolLM2 at a packed micro-batch, its MLP, and q of a 7B LLaMA.
SHAPES = {
    "smollm2_q": (1024, 576, 576),
    "smollm2_v": (1024, 576, 192),
    "smollm2_up": (1024, 576, 1536),
    "llama7b_q": (512, 4096, 4096),
}
RANK, ALPHA, TOLERANCE = 8, 16.0, 1e-4


def layers(n_in: int, n_out: int, dropout: float) -> tuple[LoRALinear, PeftLinear]:
    """Both kinds over one base weight with the same A and B."""
    torch.manual_seed(0)
    base = nn.Linear(n_in, n_out, bias=False).requires_grad_(False)
    ours = LoRALinear(base, LoRAConfig(rank=RANK, alpha=ALPHA, dropout=dropout))
    peer = PeftLinear(
        base, "default", LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout), r=RANK, lora_alpha=ALPHA
    )
    with torch.no_grad():
        ours.lora_B["default"].normal_(std=0.02)
        peer.lora_A["default"].weight.copy_(ours.lora_A["default"])
        peer.lora_B["default"].weight.copy_(ours.lora_B["default"])
    return ours.train(), peer.train()


def seconds(layer: nn.Module, x: Tensor, gradient: Tensor, count: int) -> float:
    """Time of one forward and backward, averaged over `count` in a row."""
    started = time.perf_counter()
    for _ in range(count):
        layer(x).backward(gradient)
    return (time.perf_counter() - started) / count


def compare(shape: tuple[int, int, int], dropout: float, repeats: int) -> tuple[float, float, float, float]:
    """Median seconds of ours and of PEFT's, the median of the rounds' ratios, and the largest relative difference.

    The two take turns, in turning order; a round's ratio compares neighbours in time, so a slow minute cancels out.
    """
    rows, n_in, n_out = shape
    ours, peer = layers(n_in, n_out, dropout)
    x = torch.randn(rows, n_in, requires_grad=True)  # as inside a model: the layers below need a gradient too
    gradient = torch.randn(rows, n_out)
    difference = 0.0
    if dropout == 0.0:
        results: list[list[Tensor]] = []
        for layer in (ours, peer):
            x.grad = None
            out = layer(x)
            out.backward(gradient)
            A = layer.lora_A["default"] if layer is ours else layer.lora_A["default"].weight
            B = layer.lora_B["default"] if layer is ours else layer.lora_B["default"].weight
            results.append([out.detach(), x.grad, A.grad, B.grad])
        difference = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    count = max(1, int(0.02 / seconds(ours, x, gradient, 2)))
    times: dict[int, list[float]] = {0: [], 1: []}
    pair: list[Callable] = [ours, peer]
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[which].append(seconds(pair[which], x, gradient, count))
    ratio = statistics.median(theirs / mine for mine, theirs in zip(times[0], times[1], strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), ratio, difference


def main() -> None:
    options = common.arguments(__doc__, repeats=30)
    torch.set_num_threads(2)
    ratios, ours, peer, worst = {}, {}, {}, 0.0
    for name, shape in SHAPES.items():
        for dropout in (0.0, 0.05):
            key = name + ("_dropout" if dropout else "")
            mine, theirs, ratios[key], difference = compare(shape, dropout, options.repeats)
            ours[key], peer[key] = round(mine * 1e3, 3), round(theirs * 1e3, 3)
            worst = max(worst, difference)
            print(f"{key}: ours {mine * 1e3:.2f} ms, PEFT {theirs * 1e3:.2f} ms", flush=True)
    common.report(
        "lora_layer",
        ratios=ratios,
        ours={"milliseconds": ours},
        peer={"milliseconds": peer},
        equal={"outputs_and_gradients": worst <= TOLERANCE, "largest_difference": worst, "tolerance": TOLERANCE},
        save=options.save,
        settings=f"float32, forward and backward, rank {RANK}, medians of {options.repeats} rounds; ratios are paired",
    )


if __name__ == "__main__":
    main()
