"""Whole-population evaluation: one batched forward scores many weight vectors on the same few examples.

The original LoRAHub composes one candidate, loads it into the model and runs a forward, candidate after candidate. Here
P candidates share every product with the frozen base, the prompts' common prefix is computed once a candidate, and
logits are made only where an answer's token is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import ModuleStack, check_composition
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRALinear
from lorahub_edu.scoring import Scores, check_architecture, gather, judge, label_states, scoring_batches
from lorahub_edu.training.losses import output_logits


class PopulationLinear(nn.Module):
    """A frozen linear layer with one composed update for each group of rows: rows of candidate 0 first, then 1, …"""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.pair: tuple[Tensor, Tensor] | None = None  # the paper's composition: A (P, r, in), B (P, out, r), scaled
        self.weights: Tensor | None = None  # the exact composition: (P, N)
        self.A_all: Tensor | None = None  # (N·r, in) of all modules
        self.B_all: Tensor | None = None  # (out, N·r) of all modules, scaled

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight  # T5 asks its feed-forward's last layer for the dtype

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if self.weights is not None:
            w = self.weights.to(x.dtype)  # (P, N)
            h = F.linear(x, self.A_all)  # (P·b, T, N·r)
            h = h.view(len(w), -1, w.shape[1], h.shape[-1] // w.shape[1]) * w[:, None, :, None]  # (P, b·T, N, r)
            return out + F.linear(h.view(*x.shape[:-1], -1), self.B_all)
        if self.pair is not None:
            A, B = self.pair
            h = torch.bmm(x.reshape(len(A), -1, x.shape[-1]), A.mT)  # (P, b·T, in) -> (P, b·T, r)
            return out + torch.bmm(h, B.mT).view(out.shape)  # (P, b·T, out)
        return out


class Population:
    """A model that scores many compositions of the same modules at once; use it as a context manager.

    `model` is a causal language model or an encoder-decoder, without other adapters; it is whole again after the block.
    One forward has at most `max_tokens` positions over all candidates; the population is cut to fit.
    Raises CourseError: the modules don't fit the model, or its own scores are other ones.
    Source: claims H1, H4, H17.
    """

    def __init__(
        self, model: PreTrainedModel, modules: ModuleStack, composition: str = "paper", max_tokens: int = 2048
    ) -> None:
        check_composition(composition)
        check_architecture(model)
        self.model, self.modules, self.composition, self.max_tokens = model, modules, composition, max_tokens
        self._was_training: bool | None = None  # None outside the block
        for name, layer in model.named_modules():
            if name in modules.shapes and isinstance(layer, LoRALinear | PopulationLinear):
                raise CourseError(f"{name} has an adapter already: remove it before scoring compositions.")
        layers = adapters.fitting_layers(model, modules.shapes, "The modules adapt", modules.base_model)
        self.layers = {site: PopulationLinear(layer) for site, layer in layers.items()}

    def __enter__(self) -> Population:
        device, dtype = self.model.device, self.model.dtype
        self._was_training = self.model.training
        self.model.eval()
        stacked = self.modules.split(self.modules.flat)
        for site, layer in self.layers.items():
            if self.composition == "exact":
                A, B = stacked[site]  # (N, r, in), (N, out, r)
                layer.A_all = A.flatten(0, 1).to(device, dtype)  # (N·r, in)
                B = B.transpose(0, 1).flatten(1)  # (out, N·r)
                layer.B_all = (B * self.modules.config.scaling).to(device, dtype)
            self.model.set_submodule(site, layer)
        if self.composition == "paper":
            self._flat = self.modules.flat.to(device)  # (N, total)
        return self

    def __exit__(self, *_exception: object) -> None:
        for site, layer in self.layers.items():
            layer.A_all = layer.B_all = None
            self.model.set_submodule(site, layer.base_layer)
        self._flat = None
        self.use(None)
        self.model.train(self._was_training)
        self._was_training = None

    def use(self, weights: np.ndarray | Tensor | None) -> None:
        """Make these candidates, (P, N), the ones that the next forward computes; None is the base model alone.

        A tensor that requires a gradient keeps its graph. Raises CourseError for another shape, or outside the `with`
        block.
        """
        for layer in self.layers.values():
            layer.weights = layer.pair = None
        if weights is None:
            return
        if self._was_training is None:
            raise CourseError(
                "A population scores only inside its block: with Population(model, modules) as population."
            )
        W = torch.as_tensor(weights, dtype=self.modules.flat.dtype, device=self.model.device)  # (P, N)
        if W.dim() != 2 or W.shape[1] != len(self.modules):
            raise CourseError(f"Candidates are (P, {len(self.modules)}), one weight a module, not {tuple(W.shape)}.")
        dtype, scaling = self.model.dtype, self.modules.config.scaling
        if self.composition == "exact":
            for layer in self.layers.values():
                layer.weights = W
        else:
            for site, (A, B) in self.modules.split(W @ self._flat).items():  # (P, N) @ (N, total) -> (P, total)
                self.layers[site].pair = (A.to(dtype), (B * scaling).to(dtype))

    @torch.no_grad()
    def score(self, weights: np.ndarray | Tensor, rows: Sequence[PromptedRow] | list[ScoringBatch]) -> Scores:
        """Loss and exact match of every candidate (P, N) on every row; an infinite loss is NaN, and the row wrong."""
        batches = scoring_batches(self.model, rows)
        chunk = max(1, self.max_tokens // max(batch.num_tokens for batch in batches))
        parts = []
        for start in range(0, len(weights), chunk):
            part = weights[start : start + chunk]
            self.use(part)
            parts.append([judge(self.model, batch, len(part)) for batch in batches])
        self.use(None)
        return gather(parts, batches)

    def losses_and_strict(self, weights: np.ndarray, batches: list[ScoringBatch]) -> dict[str, list[float]]:
        """P losses in nats a token, and P shares of rows answered exactly, as json can hold them."""
        scores = self.score(weights, batches)
        return {"losses": scores.losses.tolist(), "strict": scores.strict.mean(1).tolist()}

    def losses_and_slopes(self, weights: np.ndarray, batches: list[ScoringBatch]) -> dict[str, list]:
        """P losses and their P gradients (N,), by one pass forward and one back through the composition."""
        W = torch.tensor(weights, dtype=torch.float32, requires_grad=True)  # (P, N)
        losses, slopes = torch.zeros(len(weights)), torch.zeros(weights.shape)
        labels = sum(len(batch.labels) for batch in batches)
        for batch in batches:
            part = self.loss(W, batch).cpu() * (len(batch.labels) / labels)  # (P,)
            slopes += torch.autograd.grad(part.sum(), W)[0]  # of w alone: the base model's weights collect none
            losses += part.detach()
        self.use(None)
        strict = [float("nan")] * len(weights)  # not computed: a gradient step needs the loss only
        return {"losses": losses.double().tolist(), "strict": strict, "gradients": slopes.double().tolist()}

    def loss(self, weights: Tensor, batch: ScoringBatch) -> Tensor:
        """(P,) mean label loss in nats of candidates (P, N), with its graph, for gradient descent; claim H18."""
        self.use(weights)
        hidden = label_states(self.model, batch, len(weights))  # (P, L, d)
        logits = output_logits(self.model, hidden.flatten(0, 1)).float()  # (P·L, V)
        labels = batch.labels.to(hidden.device).expand(len(weights), -1)  # (P, L)
        return F.cross_entropy(logits, labels.flatten(), reduction="none").view(labels.shape).mean(1)
