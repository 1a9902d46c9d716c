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
PLACES = (("o_proj", "down_proj"), ("o", "wo"))


class Bottleneck(nn.Module):
    """f(x) = x + up(relu(down(x))), computed in its own dtype.

    Args:
        size: width of what comes in and goes out, d.
        bottleneck: width in the middle, m.
        device: where the weights lie.
        dtype: of the weights.

    Source: Houlsby et al. 2019, section 2.1 and figure 2.
    """

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


def find_places(model: nn.Module, after_attention: bool) -> list[str]:
    """Names of the layers behind which an adapter stands: the feed-forward's last ones, and on request the attention's.

    Raises:
        CourseError: the model's layers are called otherwise than those of a LLaMA or a T5.
    """
    endings = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for attention, feed_forward in PLACES:
        if {attention, feed_forward} <= endings:
            wanted = {attention, feed_forward} if after_attention else {feed_forward}
            return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in wanted]
    raise CourseError(
        f"Bottleneck adapters stand behind layers called {' and '.join(PLACES[0])} (LLaMA) or "
        f"{' and '.join(PLACES[1])} (T5); a {type(model).__name__} has none of them. lora takes any linear layer."
    )


def insert(model: nn.Module, bottleneck: int, after_attention: bool) -> list[str]:
    """Put adapters into a model, in place; they draw from torch's global generator.

    Args:
        model: any model with the layers that `find_places` looks for.
        bottleneck: m, at least 1 and at most the model's width.
        after_attention: also behind the attention (Houlsby), not only behind the feed-forward (Pfeiffer).

    Returns:
        The names of the layers that were wrapped.

    Raises:
        CourseError: there is no place for them.
    """
    names = find_places(model, after_attention)
    for name in names:
        layer = model.get_submodule(name)
        weight = next(layer.parameters())
        model.set_submodule(name, WithBottleneck(layer, Bottleneck(layer.out_features, bottleneck, weight.device)))
    return names


def remove(model: nn.Module) -> None:
    """Take every bottleneck adapter out again; the layers they stood behind are the same objects as before."""
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


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' weights by name: <place>.down.weight and so on."""
    return {
        f"{name}.{which}": parameter
        for name, layer in model.named_modules()
        if isinstance(layer, WithBottleneck)
        for which, parameter in layer.adapter.named_parameters()
    }
