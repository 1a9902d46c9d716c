"""Modules and their compositions on the command line: zoo, adapt, chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorahub_edu.cli.terminal import (
    COUNT,
    NATURAL,
    OutOption,
    ProfileOption,
    check_task,
    console,
    errors,
    finite,
    known_base,
    known_prefilter,
    listed,
    quiet_work,
)
from lorahub_edu.data import tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.files.save import one_writer
from lorahub_edu.hub import zoo

CHAT_HELP = """/use NAME NAME=0.5  mixes modules by these weights; all others get 0
/modules            the modules and their weights
/quit               leaves, as Ctrl-D does; Ctrl-C ends an answer"""

Prompt = Literal["auto", "alpaca", "task", "chat", "plain"]  # what stands around a line


zoo_app = typer.Typer(no_args_is_help=True, help="LoRA modules: list, show, verify.")

AdapterArgument = Annotated[
    str, typer.Argument(help="A module of the zoo, an adapter's folder, or owner/name on the hub.")
]
ZooOption = Annotated[
    Path, typer.Option("--folder", show_default=False, help="Another folder of modules than the shipped zoo.")
]
BaseOption = Annotated[
    str, typer.Option("--base", callback=known_base, help="A base model's name, here or on the hub, or its folder.")
]


@zoo_app.command("list")
def zoo_list(folder: ZooOption = zoo.SHIPPED) -> None:
    """Every module with its task and its scores before and after training."""
    console.print(str(zoo.overview(folder)))


@zoo_app.command("show")
def zoo_show(name: str, folder: ZooOption = zoo.SHIPPED) -> None:
    """One module's card."""
    console.print(str(zoo.card_table(name, folder)))


@zoo_app.command("verify")
def zoo_verify(folder: ZooOption = zoo.SHIPPED) -> None:
    """Check every module's weights, shapes and base. Exit code 1 if a module is not sound."""
    with quiet_work("reading every module"):
        modules = zoo.verify(folder)
    if not modules:
        raise CourseError(f"There is no module in {folder}.")
    for name, problems in modules.items():
        console.print(f"{name:14s} {'; '.join(problems) or 'sound'}")
    raise typer.Exit(1 if any(modules.values()) else 0)


adapt_app = typer.Typer(invoke_without_command=True, help="Compose modules for a new task from a few examples.")


@adapt_app.callback()
def adapt(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="A task's name, bbh/<name>, or a JSONL file of your own examples.")] = "",
    modules: Annotated[str, typer.Option(help="Names, folders or hub names, by commas; default the zoo.")] = "",
    folder: ZooOption = zoo.SHIPPED,
    prefilter: Annotated[str, typer.Option(callback=known_prefilter, help="draw:20, instruction:20 or loss:20.")] = "",
    optimizer: Annotated[str, typer.Option(help="auto, cma, ngopt, shiwa, random, greedy, gradient, …")] = "auto",
    composition: Annotated[Literal["paper", "exact"] | None, typer.Option(help="How modules are added.")] = None,
    budget: Annotated[int | None, typer.Option(**COUNT, help="Candidates; default 40, or 120 for auto.")] = None,
    draw: Annotated[int, typer.Option(**NATURAL, help="Which five of a named task's examples, from 0.")] = 0,
    seed: Annotated[int, typer.Option(**NATURAL, help="Seed of the search.")] = 0,
    rank: Annotated[int | None, typer.Option(**COUNT, help="Reduce the adapter to this rank; default exact.")] = None,
    original_scale: Annotated[bool, typer.Option(help="Weight the L1 term as the released LoRAHub does.")] = False,
    test_items: Annotated[int, typer.Option(**NATURAL, help="Test items to score.")] = 100,
    profile: ProfileOption = None,
    base: BaseOption = "",
    out: OutOption = Path("runs/adapt"),
) -> None:
    """Find the weights of a composition on a few examples and save it; the same command continues a stopped search."""
    if context.invoked_subcommand is not None:
        return
    if not task:
        known = ", ".join(tasks.names("settling") + tasks.names("target"))
        raise CourseError(f"Adapt to what? Give --task with one of {known}, or a JSONL file of your own examples.")
    if prefilter and modules:
        raise CourseError("--prefilter chooses from a folder: leave out --modules.")
    check_task(task)
    zoo.find(listed(modules) or None, folder)
    from lorahub_edu.hub import task_adapter
    from lorahub_edu.hub.adapt import SearchConfig

    config = SearchConfig(optimizer, budget, seed, composition, original_scale=original_scale)
    with one_writer(out), quiet_work("loading the modules and the model"):
        done = task_adapter.adapt_to(
            task, config, modules=listed(modules), folder=folder, prefilter=prefilter, draw=draw, rank=rank,
            test_items=test_items, profile=profile, base=base, out=out,
        )  # fmt: skip
    console.print(str(done))


def chat(
    modules: Annotated[list[str], typer.Argument(help="Names, folders or hub names; NAME=0.5 sets a weight.")],
    prompt: Annotated[Prompt, typer.Option(help="auto: task where the first module has a card, else alpaca.")] = "auto",
    instruction: Annotated[str, typer.Option(help="For --prompt task; default the first module's.")] = "",
    composition: Annotated[Literal["exact", "paper"], typer.Option(help="How modules are added.")] = "exact",
    max_new_tokens: Annotated[int, typer.Option(**COUNT, help="Tokens of an answer, at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="0 is greedy.")] = 0.0,
    base: BaseOption = "",
    folder: ZooOption = zoo.SHIPPED,
    profile: ProfileOption = None,
) -> None:
    """Talk to the base model and to the tuned model side by side; mix modules while you talk."""
    weights = weighed(modules)
    for name in weights:
        zoo.find_source(name, folder)
    with quiet_work("loading the modules and the model"):
        from lorahub_edu.show.chat import open_chat
        from lorahub_edu.training.descent import interrupts

        talk = open_chat(list(weights), prompt, instruction, composition, base=base, folder=folder, profile=profile)
    talk.use(dict(zip(talk.modules.names, weights.values(), strict=True)))
    console.print(CHAT_HELP)
    while (line := _typed()) != "/quit":
        try:
            word, *rest = line.split() or [""]
            if word == "/use":
                talk.use(weighed(rest))
            if word in ("/use", "/modules"):
                mixed = zip(talk.modules.names, talk.weights, strict=True)
                console.print(", ".join(f"{name}={weight:g}" for name, weight in mixed))
            elif word.startswith("/"):
                console.print(CHAT_HELP)
            elif word:
                with interrupts() as stop, Live(console=Console(), auto_refresh=False) as live:
                    said = talk.answer(
                        line, lambda texts: live.update(_side_by_side(texts), refresh=True),  # noqa: B023
                        stop=stop, max_new_tokens=max_new_tokens, temperature=temperature,
                    )  # fmt: skip
                console.print(f"{said}" if console.is_terminal else f"\n{said}", style="dim")
        except CourseError as error:
            errors.print(str(error))
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
