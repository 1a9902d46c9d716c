"""Talk to a base model and to its tuned self side by side, and mix modules while they talk.

Both answers come from one batch of two rows: the first row passes through the base alone, the second through a
composition of the modules. Every question stands alone; no earlier question is part of the prompt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lorahub_edu import scoring
from lorahub_edu.data import alpaca, tasks
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.data.rows import Example
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import ModuleStack, compose, stack
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.models import pretrained
from lorahub_edu.spectra.updates import base_of

MIX = "mix"  # the adapter that holds the composition


@dataclass(frozen=True)
class Answers:
    """What base and tuned model said, the new tokens of both together, and the seconds that they took."""

    texts: tuple[str, str]
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.tokens / max(self.seconds, 1e-9):.1f} tokens/s for both together"


def prompts(tokenizer: PreTrainedTokenizerFast, instruction: str = "") -> dict[str, Callable[[str], str]]:
    """What may stand around a typed line, by name: `train`'s prompt, the zoo's, the base's own for a chat, nothing."""
    return {
        "alpaca": lambda text: alpaca.format_prompt(Example(text, "", "")),
        "task": lambda text: tasks.prompt(instruction, text),
        "chat": lambda text: tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        ),
        "plain": str,
    }


class Chat:
    """A base model in evaluation mode, and modules, stacked for the composition, that may be mixed at any time.

    `prompt` makes a prompt of what was typed; None takes it as it is. Raises CourseError for modules of another base.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        modules: ModuleStack,
        prompt: Callable[[str], str] | None = None,
        *,
        composition: str = "exact",
    ) -> None:
        self.model, self.tokenizer, self.modules, self.composition = model, tokenizer, modules, composition
        self.prompt = prompt or str
        self.weights = tuple(1.0 / len(modules) for _ in modules.names)
        self._applied = self.weights
        adapters.remove(model, MIX)  # of an earlier chat with this model
        before = next((layer.active for _, layer in adapters.lora_layers(model)), None)
        known = pretrained.name_of(model)
        sha256 = pretrained.base_sha256(known) if known else None
        mixed = compose(modules, self.weights, composition)
        adapter_files.put_adapter(model, mixed, MIX, base_model_sha256=sha256)
        adapters.set_adapter(model, before)

    def use(self, weights: Mapping[str, float]) -> None:
        """Mix by these weights from the next token on; a module that is not named gets 0."""
        for name in weights:
            if name not in self.modules.names:
                raise CourseError(f"There is no module {name!r} here. {near_matches(name, self.modules.names)}")
        self.weights = tuple(float(weights.get(name, 0.0)) for name in self.modules.names)

    def _apply(self) -> None:
        """Bring the weights into the model; only the thread that generates may do so."""
        weights = self.weights
        if weights == self._applied:
            return
        mixed = compose(self.modules, weights, self.composition)
        for site, (A, B) in mixed.weights.items():
            layer = self.model.get_submodule(site)
            like = layer.lora_A[MIX]
            layer.configs[MIX] = mixed.configs[site]
            layer.lora_A[MIX], layer.lora_B[MIX] = (nn.Parameter(factor.to(like), False) for factor in (A, B))
        self._applied = weights

    def score(self, rows: Sequence[PromptedRow]) -> scoring.Scores:
        """Loss and exact match of the mix on some rows, as `scoring.score` gives them."""
        self._apply()
        with adapters.route(self.model, (MIX,)):
            return scoring.score(self.model, rows)

    @torch.no_grad()
    def answer(
        self,
        text: str,
        on_text: Callable[[tuple[str, str]], None] = lambda _texts: None,
        *,
        stop: threading.Event | None = None,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
    ) -> Answers:
        """What both say, greedily at temperature 0.

        `on_text` gets what both have said so far after every token. Once `stop` is set, the answers end with the next
        token.
        Raises CourseError: the text is empty or too long, or an adapter is merged into the model.
        """
        encoded = self.tokenizer([self.prompt(text)] * 2, return_tensors="pt").to(self.model.device)
        length, context = encoded["input_ids"].shape[1], getattr(self.model.config, "max_position_embeddings", 0)
        if not text.strip() or context and length + max_new_tokens > context:
            raise CourseError(
                f"The prompt has {length} tokens; with {max_new_tokens} new ones it must stay within {context}. "
                f"Type something, or something shorter."
            )

        def stopped(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return torch.full((len(ids),), stop is not None and stop.is_set(), device=ids.device)

        started = time.perf_counter()
        self._apply()
        sides = _Sides(self, on_text)
        with adapters.route(self.model, (None, MIX)):
            self.model.generate(
                **{key: encoded[key] for key in ("input_ids", "attention_mask")},
                streamer=sides,
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([stopped]),
            )
        return Answers(sides.texts(), sum(map(len, sides.ids)), time.perf_counter() - started)


class _Sides(BaseStreamer):
    """Collects the tokens of both rows while `generate` makes them; a row ends with its end token."""

    def __init__(self, chat: Chat, on_text: Callable[[tuple[str, str]], None]) -> None:
        self.chat, self.on_text = chat, on_text
        self.ids: tuple[list[int], list[int]] = ([], [])
        self.prompt_came = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt (2, T) comes first, then each new token (2,)."""
        if self.prompt_came:
            for ids, token in zip(self.ids, value.tolist(), strict=True):
                if not ids or ids[-1] != self.chat.tokenizer.eos_token_id:
                    ids.append(token)
            self.on_text(self.texts())
            self.chat._apply()
        self.prompt_came = True

    def end(self) -> None:
        """Nothing is left to do."""

    def texts(self) -> tuple[str, str]:
        """What was said, without special tokens and without half a character at the end."""
        decode = self.chat.tokenizer.decode
        base, tuned = (decode(ids, skip_special_tokens=True).rstrip("\ufffd").strip() for ids in self.ids)
        return base, tuned


def open_chat(
    sources: Sequence[str | Path],
    prompt: str = "auto",
    instruction: str = "",
    composition: str = "exact",
    *,
    base: str = "",
    folder: str | Path = zoo.SHIPPED,
    profile: str | None = None,
) -> Chat:
    """A chat with modules as `zoo.open_source` finds them, on their base.

    `prompt` is a key of `prompts`, or "auto": "task" where the first module has a card, else "alpaca". The
    `instruction` for "task" is the first module's by default.
    Raises CourseError: a module is not found or not LoRA, the modules don't fit together, or the prompt can't be had.
    """
    files = [zoo.open_source(source, folder) for source in sources]
    if any(isinstance(file, Path) for file in files):
        raise CourseError("Only LoRA modules can be mixed, and one of these is a whole model.")
    instruction = instruction or zoo.instruction_of(files[0])
    if prompt == "auto":
        prompt = "task" if instruction else "alpaca"
    if prompt == "task" and not instruction:
        raise CourseError(f"{files[0].path.name} has no card that says its instruction: give --instruction.")
    name = base or base_of(files[0], profile)
    model, tokenizer = pretrained.load(profile, base=name)
    if prompt == "chat" and not tokenizer.chat_template:
        raise CourseError(f"{name} has no prompt of its own for a chat. Take --prompt alpaca, task or plain.")
    modules = stack(files, composition=composition, dtype=torch.float32)
    return Chat(model, tokenizer, modules, prompts(tokenizer, instruction)[prompt], composition=composition)
