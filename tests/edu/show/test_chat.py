"""A chat says what transformers' own generate says of the base and of PEFT's model, and can be mixed while it talks."""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
from pathlib import Path

import hub_modules
import pytest
import torch
from peft import PeftModel

from lorahub_edu.cli import app
from lorahub_edu.cli import hub as cli_hub
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import stack
from lorahub_edu.lora import adapters
from lorahub_edu.models import tiny
from lorahub_edu.show import chat

TOKENS = 12


@pytest.fixture
def files():
    return [hub_modules.random_module(tiny.model(), seed, std=0.3) for seed in range(2)]


@pytest.fixture
def talk(files) -> chat.Chat:
    return chat.Chat(tiny.model(), tiny.tokenizer(), stack(files, composition="exact"))


def plain(model: torch.nn.Module, text: str) -> str:
    """What a model says by itself."""
    tokenizer = tiny.tokenizer()
    encoded = tokenizer(text, return_tensors="pt")
    out = model.generate(encoded["input_ids"], max_new_tokens=TOKENS, do_sample=False, pad_token_id=2)
    new = out[0, encoded["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd").strip()


def test_both_sides_say_what_transformers_and_peft_say(talk: chat.Chat, files, tmp_path: Path) -> None:
    grown: list[tuple[str, str]] = []
    talk.use({"m0": 1})
    said = talk.answer("Name a colour.", grown.append, max_new_tokens=TOKENS)
    folder = hub_modules.write(files[0], tmp_path)
    peft = PeftModel.from_pretrained(tiny.model(), str(folder)).eval()
    assert said.texts == (plain(tiny.model(), "Name a colour."), plain(peft, "Name a colour."))
    assert said.texts[0] != said.texts[1] and 2 <= said.tokens <= 2 * TOKENS and "tokens/s" in str(said)
    assert grown[-1] == said.texts and 2 <= len(grown) <= TOKENS and len(grown[0][0]) < len(said.texts[0])
    talk.use({})
    assert len(set(talk.answer("Name a colour.", max_new_tokens=TOKENS).texts)) == 1


@pytest.mark.parametrize("composition", ["exact", "paper"])
def test_a_mix_is_the_sum_of_its_modules(files, composition: str) -> None:
    talk = chat.Chat(tiny.model(), tiny.tokenizer(), stack(files, composition=composition), composition=composition)
    talk.use({"m0": 0.7, "m1": -0.4})
    said = talk.answer("Name a colour.", max_new_tokens=TOKENS)
    merged = hub_modules.merged(tiny.model(), hub_modules.deltas(files, [0.7, -0.4], composition))
    assert said.texts[1] == plain(merged.float(), "Name a colour.")


def test_weights_change_while_it_talks_and_an_answer_can_be_stopped(talk: chat.Chat) -> None:
    talk.use({"m0": 1.0})
    alone = talk.answer("Say more.", max_new_tokens=TOKENS).texts
    seen: list[tuple[str, str]] = []

    def turn_off(texts: tuple[str, str]) -> None:
        seen.append(texts)
        if len(seen) == 3:
            talk.use({})

    turned = talk.answer("Say more.", turn_off, max_new_tokens=TOKENS).texts
    assert turned[0] == alone[0] and turned[1] != alone[1] and turned[1].startswith(seen[2][1])
    stop = threading.Event()
    stopped = talk.answer("Say more.", lambda _texts: stop.set(), stop=stop, max_new_tokens=TOKENS)
    assert stopped.tokens == 4  # of both: the token that set it, and the next
    with pytest.raises(CourseError, match="Did you mean 'm1'"):
        talk.use({"m11": 1})
    with pytest.raises(CourseError, match="must stay within"):
        talk.answer("word " * 2000)


def test_a_chat_leaves_the_lessons_own_adapter_as_it_was(files) -> None:
    model = tiny.model()
    adapters.inject(model, files[0].configs[next(iter(files[0].configs))], seed=0)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # a lesson's cell may run twice
        chat.Chat(model, tiny.tokenizer(), stack(files[:1])).answer("Hello", max_new_tokens=2)
    assert {layer.active for _, layer in adapters.lora_layers(model)} == {"default"}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, files):
    """The command with what a user types into it."""
    for file in files:
        hub_modules.write(file, tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)

    def run(lines: list[str], *words: str) -> tuple[int, str]:
        waiting = iter(lines)

        def next_line(*_args: object) -> str:
            try:
                line = next(waiting)
            except StopIteration:
                raise EOFError from None
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr(cli_hub.console, "input", next_line)
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", "chat", "--profile", "tiny", "--folder", "zoo", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, "".join(capsys.readouterr())

    return run


def test_a_talk_in_the_terminal(typed) -> None:
    lines = ["", "^C", "hello", "/use m0 m1=-0.25", "/use m3", "/use m0=x", "/nosuch", "/modules", "/quit", "not typed"]
    code, said = typed(lines, "m0", "m1=0.5", "--max-new-tokens", "3")
    assert code == 0 and said.count("tokens/s") == 1 and "base" in said and "tuned" in said
    assert said.count("m0=1, m1=-0.25") == 2 and "no module 'm3'" in said and "'x' is no weight of m0" in said


@pytest.mark.parametrize(("presses", "speeds"), [(1, 1), (2, 0)])
def test_ctrl_c_ends_an_answer_and_not_the_program(
    typed, monkeypatch: pytest.MonkeyPatch, presses: int, speeds: int
) -> None:
    shown, waiting = cli_hub._side_by_side, list(range(presses))

    def pressed(texts: tuple[str, str]) -> object:
        while waiting:
            waiting.pop()
            os.kill(os.getpid(), signal.SIGINT)
        return shown(texts)

    monkeypatch.setattr(cli_hub, "_side_by_side", pressed)
    code, said = typed(["hello", "/modules"], "m0", "--max-new-tokens", "50")
    assert code == 0 and said.count("4 tokens") == speeds and said.rstrip().endswith("m0=1")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nosuch",), "no module 'nosuch'"),
        (("m0", "--prompt", "task"), "--instruction"),
        (("m0", "--prompt", "chat"), "no prompt of its own"),
        (("m0=x",), "no weight"),
    ],
)
def test_a_talk_that_cannot_begin_is_one_line(typed, words: tuple[str, ...], says: str) -> None:
    code, said = typed([], *words)
    assert code == 1 and says in said and "Traceback" not in said
