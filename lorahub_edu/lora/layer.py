"""LoRA from scratch: a linear layer with a low-rank update beside it.

Notation is PEFT's: W is (out, in), A is (rank, in), B is (out, rank), and the update is ΔW = scaling · B @ A with
scaling = alpha / rank, or alpha / sqrt(rank) when it is rank-stabilised.
Source: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4; Kalajdzievski 2023, "rsLoRA", arXiv 2312.03732.
`adapters.py` puts such layers into a model, merges and routes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorahub_edu.errors import CourseError, near_matches


@dataclass(frozen=True)
class LoRAConfig:
    """What fixes the shape of an adapter; the same fields as in PEFT's adapter_config.json.

    `target_modules` is a regular expression that a module's whole name must match, a sequence of name endings
    ("q_proj", "mlp.up_proj"), or "all-linear" for every linear layer but the output head.
    `dtype` is that of A and B; None follows each base layer.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    rank_stabilised: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CourseError(f"The rank of a LoRA adapter must be at least 1, but it is {self.rank}. Try 8.")
        if not 0.0 <= self.dropout < 1.0:
            raise CourseError(f"Dropout is a probability below 1, but it is {self.dropout}. Try 0.05.")

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class LoRALinear(nn.Module):
    """A frozen linear layer plus the low-rank updates of any number of named adapters, which start with one.

    At most one adapter is active for a whole batch (`active`); `route` gives every row of a batch its own. `generator`
    draws A on the CPU; None takes torch's global one.
    Source: Hu et al. 2021, section 4.1, equation 3.
    """

    def __init__(
        self,
        base_layer: nn.Linear,
        config: LoRAConfig,
        adapter: str = "default",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.base_layer.requires_grad_(False)
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.configs: dict[str, LoRAConfig] = {}
        self.active: str | None = None
        self.merged: str | None = None
        self._routing: tuple[tuple[str, ...], Tensor] | None = None  # adapters in use, and each row's place among them
        self._before_merge: tuple[nn.Parameter, ...] = ()  # the base weight, hidden from torch's lists of parameters
        self.register_state_dict_post_hook(_write_unmerged_weight)
        self.register_load_state_dict_pre_hook(_unmerge_before_load)
        self.add_adapter(adapter, config, generator)
        self.train(base_layer.training)  # a model in evaluation mode must not drop anything because it was adapted

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def add_adapter(self, adapter: str, config: LoRAConfig, generator: torch.Generator | None = None) -> None:
        """Add an adapter that changes nothing yet (B = 0), and make it the active one."""
        if adapter in self.configs:
            raise CourseError(f"The layer has an adapter {adapter!r} already: choose another name or remove it.")
        if "." in adapter or not adapter:
            raise CourseError(f"{adapter!r} can't name an adapter: the name must not be empty or hold a dot.")
        weight = self.base_layer.weight
        A = torch.empty(config.rank, self.in_features)  # drawn on the CPU: the same seed gives the same A anywhere
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        dtype = config.dtype or (weight.dtype if weight.is_floating_point() else torch.get_default_dtype())
        self.lora_A[adapter] = nn.Parameter(A.to(weight.device, dtype))
        self.lora_B[adapter] = nn.Parameter(
            torch.zeros(self.out_features, config.rank, device=weight.device, dtype=dtype)
        )
        self.configs[adapter] = config
        self.active = adapter

    def delta_weight(self, adapter: str) -> Tensor:
        """The adapter's update of the weight, scaling · B @ A, (out, in), in at least float32."""
        A, B = self.lora_A[adapter], self.lora_B[adapter]
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.configs[adapter].scaling * (B.to(wide) @ A.to(wide))  # (out, r) @ (r, in) -> (out, in)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + scaling · B A dropout(x): (..., in) -> (..., out), in the base layer's output dtype."""
        if self._routing is not None:
            return self._forward_routed(x)
        if self.active is None or self.merged is not None:
            return self.base_layer(x)
        A, B = self.lora_A[self.active], self.lora_B[self.active]
        config = self.configs[self.active]
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        out = self.base_layer(rows)  # (N, out)
        h = F.linear(_cast(F.dropout(rows, config.dropout, self.training), A), A)  # (N, r): the narrow way round
        if h.dtype == B.dtype == out.dtype:
            # One fused product added in place: nothing else holds `out`, and a linear layer's backward doesn't need it.
            out = out.addmm_(h, B.t(), alpha=config.scaling)
        else:
            out = (out + F.linear(h, B) * config.scaling).to(out.dtype)  # rounded once, as PEFT does
        return out.view(*x.shape[:-1], -1)

    def _forward_routed(self, x: Tensor) -> Tensor:
        """Every row through its own adapter, without dropout: routing is for serving. x: (rows, ..., in)."""
        names, row_adapter = self._routing  # row_adapter: (rows,), len(names) stands for "no adapter"
        if x.shape[0] != row_adapter.shape[0]:
            raise CourseError(
                f"The batch has {x.shape[0]} rows but {row_adapter.shape[0]} adapters were routed: give one name a row."
            )
        out = self.base_layer(x)
        if not names:
            return out
        rank = max(self.configs[name].rank for name in names)
        # Smaller ranks are padded with zeros, which add nothing; the last entry is the empty adapter.
        A = torch.stack([F.pad(self.lora_A[n], (0, 0, 0, rank - self.configs[n].rank)) for n in names])  # (n, r, in)
        B = torch.stack(
            [self.configs[n].scaling * F.pad(self.lora_B[n], (0, rank - self.configs[n].rank)) for n in names]
        )  # (n, out, r)
        A = torch.cat([A, A.new_zeros(1, *A.shape[1:])])[row_adapter]  # (rows, r, in)
        B = torch.cat([B, B.new_zeros(1, *B.shape[1:])])[row_adapter]  # (rows, out, r)
        h = _cast(x, A).reshape(x.shape[0], -1, x.shape[-1])  # (rows, T, in)
        update = torch.bmm(torch.bmm(h, A.mT), B.mT)  # (rows, T, in) -> (rows, T, r) -> (rows, T, out)
        return (out + update.view(out.shape)).to(out.dtype)

    def merge(self, adapter: str | None = None) -> None:
        """Add an adapter's update to the base weight, keeping the old weight; a second call changes nothing.

        Raises CourseError: another adapter is merged, none is active, or the update is not finite.
        """
        adapter = adapter or self.active
        if self.merged is not None and self.merged == adapter:
            return
        if self.merged is not None:
            raise CourseError(f"Adapter {self.merged!r} is merged already: unmerge it before merging {adapter!r}.")
        if adapter not in self.configs:
            raise CourseError(f"There is no adapter {adapter!r} to merge. {near_matches(str(adapter), self.configs)}")
        weight = self.base_layer.weight
        delta = self.delta_weight(adapter).detach()
        if not torch.isfinite(delta).all():
            raise CourseError(f"Adapter {adapter!r} holds NaN or infinite values and was not merged: train it again.")
        # A new parameter: the old one stays as it is, also where another module shares it (a tied head's embeddings).
        merged = nn.Parameter((weight.data.to(delta.dtype) + delta).to(weight.dtype), requires_grad=False)
        self._before_merge, self.base_layer.weight = (weight,), merged
        self.merged = adapter

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit (no W + ΔW - ΔW); does nothing when nothing is merged."""
        if self.merged is not None:
            (self.base_layer.weight,) = self._before_merge
            self._before_merge, self.merged = (), None

    def _apply(self, fn, recurse=True):  # noqa: ANN001 - torch's signature: .to(), .half(), .cuda() pass through here
        super()._apply(fn, recurse)
        for weight in self._before_merge:
            weight.data = fn(weight.data)
        return self

    def extra_repr(self) -> str:
        adapters = ", ".join(f"{name}: rank {config.rank}" for name, config in self.configs.items())
        return f"active={self.active!r}, merged={self.merged!r}, adapters={{{adapters}}}"


def _cast(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the adapter's dtype, unless autocast is about to choose one for both."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(like.dtype)


def _write_unmerged_weight(layer: LoRALinear, state: dict, prefix: str, _metadata: dict) -> None:
    """A state dict of a merged layer holds the base weight as it was, so that loading it can't add ΔW twice."""
    if layer.merged is not None:
        state[prefix + "base_layer.weight"] = layer._before_merge[0].detach()


def _unmerge_before_load(layer: LoRALinear, *_args) -> None:
    layer.unmerge()
