"""Live bytes of every tensor while code runs, their peak, and what the peak is made of."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS = "weights", "gradients", "optimizer", "activations", "logits"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS)


@dataclass(frozen=True)
class Moment:
    """What was live at one moment, in bytes by part."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class StorageTracker(TorchDispatchMode):
    """Counts the storage of every tensor that an operation makes, for as long as something holds it.

    It works on real and on fake tensors. Tensors from before the block are counted with `add`. A tensor whose last
    dimension is the vocabulary counts as logits, a gradient of a watched parameter as a gradient once it is whole.
    Everything else belongs to the part that `making` names. A kernel's workspace is not seen. Every storage counts as a
    multiple of `rounding` bytes, as the allocator hands them out.
    """

    def __init__(self, rounding: int = 1, vocabulary: int = 0) -> None:
        super().__init__()
        self.peaks: dict[str, Moment] = {}  # by stage
        self.stage = ""
        self._rounding, self._vocabulary, self._part = rounding, vocabulary, ACTIVATIONS
        self._live: dict[int, list] = {}  # id of a storage -> [weak reference, bytes, part]
        self._bytes = dict.fromkeys(PARTS, 0)

    @property
    def live(self) -> Moment:
        return Moment(dict(self._bytes))

    @property
    def peak(self) -> Moment:
        """The moment of any stage at which most was live."""
        return max(self.peaks.values(), key=lambda moment: moment.total)

    def enter(self, stage: str) -> None:
        """From here on peaks are those of `stage`; a stage may be entered again."""
        self.stage = stage
        self._note_peak()

    def add(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._count(tensor, part)
        self._note_peak()

    def watch_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Count the parameters' gradients as such from the moment when they are whole."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._is_whole)

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """What is made in the block belongs to `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's signature
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                is_logits = self._part == ACTIVATIONS and leaf.dim() >= 2 and leaf.shape[-1] == self._vocabulary
                self._count(leaf, LOGITS if is_logits else self._part)
        self._note_peak()
        return out

    def _count(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live:
            return
        size = -(-storage.nbytes() // self._rounding) * self._rounding

        def freed(_reference: object) -> None:
            _, bytes_, held_as = self._live.pop(key)
            self._bytes[held_as] -= bytes_

        self._live[key] = [weakref.ref(storage, freed), size, part]
        self._bytes[part] += size

    def _is_whole(self, parameter: Tensor) -> None:
        entry = self._live.get(id(parameter.grad.untyped_storage()))
        if entry is not None:
            _, size, before = entry
            self._bytes[before] -= size
            self._bytes[GRADIENTS] += size
            entry[2] = GRADIENTS

    def _note_peak(self) -> None:
        live = self.live
        if self.stage not in self.peaks or live.total > self.peaks[self.stage].total:
            self.peaks[self.stage] = live
