"""A talk with a model on the command line: chat."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorahub_edu.cli.hub import ZooOption
from lorahub_edu.cli.spectra import BaseOption
from lorahub_edu.cli.terminal import ProfileOption, console, errors, quiet_work
from lorahub_edu.cli.typed import COUNT, finite
from lorahub_edu.errors import CourseError

HELP = """/use NAME NAME=0.5  mixes modules by these weights; all others get 0
/modules            the modules and their weights
/quit               leaves, as Ctrl-D does; Ctrl-C ends an answer"""


def chat(
    modules: Annotated[list[str], typer.Argument(help="What to mix: names, folders or hub names; NAME=0.5 weighs.")],
    prompt: Annotated[
        Literal["auto", "alpaca", "task", "chat", "plain"],
        typer.Option(help="What stands around a line. auto: task where the first module has a card, else alpaca."),
    ] = "auto",
    instruction: Annotated[str, typer.Option(help="For --prompt task; default the first module's.")] = "",
    composition: Annotated[Literal["exact", "paper"], typer.Option(help="How modules are added.")] = "exact",
    max_new_tokens: Annotated[int, typer.Option(**COUNT, help="Tokens of an answer, at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="0 is greedy.")] = 0.0,
    base: BaseOption = "",
    folder: ZooOption = None,
    profile: ProfileOption = None,
) -> None:
    """Talk to the base model and to the tuned model side by side; mix modules while you talk."""
    from lorahub_edu.hub import zoo

    weights = weighed(modules)
    for name in weights:
        zoo.find_source(name, folder or zoo.SHIPPED)
    with quiet_work("loading the modules and the model"):
        from lorahub_edu.show.chat import open_chat
        from lorahub_edu.training.descent import interrupts

        talk = open_chat(
            list(weights), prompt, instruction, composition,
            base=base, folder=folder or zoo.SHIPPED, profile=profile,
        )  # fmt: skip
    talk.use(dict(zip(talk.modules.names, weights.values(), strict=True)))
    console.print(HELP, markup=False)
    while (line := _typed()) != "/quit":
        try:
            word, *rest = line.split() or [""]
            if word == "/use":
                talk.use(weighed(rest))
            if word in ("/use", "/modules"):
                mixed = zip(talk.modules.names, talk.weights, strict=True)
                console.print(", ".join(f"{name}={weight:g}" for name, weight in mixed), markup=False)
            elif word.startswith("/"):
                console.print(HELP, markup=False)
            elif word:
                with interrupts() as stop, Live(console=Console(), auto_refresh=False) as live:
                    said = talk.answer(
                        line, lambda texts: live.update(_side_by_side(texts), refresh=True),  # noqa: B023
                        stop=stop, max_new_tokens=max_new_tokens, temperature=temperature,
                    )  # fmt: skip
                console.print(f"{said}" if console.is_terminal else f"\n{said}", style="dim")
        except CourseError as error:
            errors.print(str(error), markup=False)
        except KeyboardInterrupt:  # a second Ctrl-C, before the next token came
            console.print()


def _typed() -> str:
    """The next line; the end of the input is /quit."""
    try:
        return console.input("\n> ").strip()
    except KeyboardInterrupt:
        return ""
    except EOFError:
        return "/quit"


def _side_by_side(texts: tuple[str, str]) -> Table:
    table = Table("base", "tuned", expand=True, box=None, padding=(0, 2, 0, 0))
    table.columns[0].ratio = table.columns[1].ratio = 1
    table.add_row(*map(Text, texts))
    return table


def weighed(words: list[str]) -> dict[str, float]:
    """Weights by module, of words such as "past" (1) and "upper=0.5". Raises CourseError for a weight that is none."""
    weights = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            weights[name] = float(number or 1)
            finite(weights[name])
        except ValueError:
            raise CourseError(f"{number!r} is no weight of {name}: write {name}=0.5, for example.") from None
    return weights
