"""The bottleneck adapter: two small layers with a nonlinearity between, beside an identity, behind a sub-layer.

Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751, section 2.1; Pfeiffer
et al. 2020, "AdapterFusion", arXiv 2005.00247 (one adapter a layer, after the feed-forward). PEFT has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorahub_edu.errors import CourseError

STARTING_STD = 1e-2  # of all weights, cut off at two of them: the adapter starts near the identity
# The last linear layer of a sub-layer by the model's family: (after attention, after the feed-forward).
LAST_LAYERS = (("o_proj", "down_proj"), ("o", "wo"))
MARK = ".adapter."  # in the names of the adapters' parameters


class Bottleneck(nn.Module):
    """f(x) = x + up(relu(down(x))) in its own dtype, widths d (`size`) and m; Houlsby et al. 2019, section 2.1."""

    def __init__(self, size: int, bottleneck: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.down = nn.Linear(size, bottleneck, device=device, dtype=dtype)
        self.up = nn.Linear(bottleneck, size, device=device, dtype=dtype)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=STARTING_STD, a=-2 * STARTING_STD, b=2 * STARTING_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus a small change. x: (..., d) -> (..., d), in x's dtype."""
        h = x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.weight.dtype)
        return x + self.up(F.relu(self.down(h))).to(x.dtype)  # (..., d) -> (..., m) -> (..., d)


class WithBottleneck(nn.Module):
    """A sub-layer's last linear layer, frozen, with an adapter on what it puts out."""

    def __init__(self, base_layer: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter = adapter

    @property
    def weight(self) -> Tensor:
        """The base layer's, which some models look at."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(self.base_layer(x))


def insert(model: nn.Module, bottleneck: int, after_attention: bool) -> None:
    """Put adapters into a model, in place: behind the feed-forward, and on request behind attention too.

    They draw from torch's global generator.
    Raises CourseError: the model has no layers with the names of a LLaMA's or a T5's.
    """
    layers = dict(model.named_modules())
    endings = {name.rpartition(".")[2] for name in layers}
    names = next((pair for pair in LAST_LAYERS if set(pair) <= endings), None)
    if names is None:
        raise CourseError(
            f"Bottleneck adapters stand behind layers called {' and '.join(LAST_LAYERS[0])} (LLaMA) or "
            f"{' and '.join(LAST_LAYERS[1])} (T5); a {type(model).__name__} has none of them. lora takes any linear "
            f"layer."
        )
    for name, layer in layers.items():
        if name.rpartition(".")[2] in (names if after_attention else names[1:]):
            adapter = Bottleneck(layer.out_features, bottleneck, next(layer.parameters()).device)
            model.set_submodule(name, WithBottleneck(layer, adapter))


def remove(model: nn.Module) -> None:
    """Remove every bottleneck adapter; the layers that they stood behind are the same objects as before."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, WithBottleneck):
            model.set_submodule(name, layer.base_layer)


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """The model without its bottleneck adapters while the block runs; then they stand where they stood."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, WithBottleneck)}
    remove(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
