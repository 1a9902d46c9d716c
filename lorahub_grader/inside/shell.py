"""The shell in which answers run: Jupyter's own kernel and shell classes, with its sockets replaced by a list."""

from __future__ import annotations

import asyncio
import builtins
import getpass
import io
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from ipykernel.eventloops import enable_gui
from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell
from jupyter_client.session import Session
from traitlets import List
from traitlets.config import Config

TEXT_KEPT = 20_000  # characters of output of a cell
IMAGE_KEPT = 1_000_000  # characters of a picture in base64
PICTURES_KEPT = 5


class Bounded(io.TextIOBase):
    """A text stream that keeps the beginning of what is written and forgets the rest."""

    encoding = "UTF-8"

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.room = TEXT_KEPT

    def write(self, text: str) -> int:
        if self.room > 0:
            self.parts.append(str(text)[: self.room])
            self.room -= len(self.parts[-1])
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """The number of a stream that goes nowhere, for what only wants a number."""
        return 1

    def text(self) -> str:
        return "".join(self.parts) + ("" if self.room > 0 else "\n… the rest of the output was dropped")


class Messages(Session):
    """Keeps the messages that a kernel would send to the browser."""

    sent = List()

    def send(self, stream: Any, msg_or_type: dict | str, content: dict | None = None, *_: Any, **__: Any) -> dict:
        message = msg_or_type if isinstance(msg_or_type, dict) else {"msg_type": msg_or_type, "content": content}
        self.sent.append(message)
        return message


class AnswerShell(ZMQInteractiveShell):
    """Jupyter's shell without a browser: `quit()` does not end it, a window toolkit is noted and never run."""

    def ask_exit(self) -> None:
        self.exit_now = False

    def enable_gui(self, gui: str | None = None) -> None:
        enable_gui(gui, self.kernel)
        self.active_eventloop = gui


class Notebook:
    """The kernel and the event loop in which cells run; the loop is made here, since a fork can't share one."""

    def __init__(self) -> None:
        self.kernel, self.loop = kernel(), asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)

    @property
    def names(self) -> dict[str, Any]:
        """What the cells have defined."""
        return self.kernel.shell.user_ns

    def call(self, function: Callable, *arguments: object, **named: object) -> object:
        """Call a function as a cell would: with the event loop running."""

        async def run() -> object:
            return function(*arguments, **named)

        return self.loop.run_until_complete(run())

    def run_cell(self, source: str) -> tuple[list[dict], BaseException | None]:
        """Run one cell as Jupyter would: its outputs (text and PNG, in nbformat's form) and the error that ended it."""
        shell, text = self.kernel.shell, Bounded()
        self.kernel.session.sent = []
        streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = text
        try:
            result = self.loop.run_until_complete(_cell(shell, source))
        finally:
            sys.stdout, sys.stderr = streams
        for message in self.kernel.session.sent:
            if message.get("msg_type") == "error":
                text.write("\n".join(message["content"]["traceback"]) + "\n")
        outputs = [{"output_type": "stream", "name": "stdout", "text": text.text()}] if text.parts else []
        outputs += _displayed(self.kernel.session.sent)
        return outputs, result.error_before_exec or result.error_in_exec


@cache
def kernel() -> IPythonKernel:
    """This process's kernel, with nothing around it: no sockets, no history on disk."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.xmode = "Plain"  # what went wrong, without the costly context
    made = IPythonKernel(session=Messages(key=b""), iopub_socket=io.BytesIO(), shell_class=AnswerShell, config=config)
    builtins.input, getpass.getpass = made.raw_input, made.getpass  # nobody is there to be asked: both say so
    return made


async def _cell(shell: AnswerShell, source: str) -> Any:
    try:
        transformed, failure = shell.transform_cell(source), None
    except Exception:  # as the kernel does: the shell reports it when it runs the cell
        transformed, failure = source, sys.exc_info()
    return await shell.run_cell_async(
        source, store_history=True, transformed_cell=transformed, preprocessing_exc_tuple=failure
    )


def _displayed(messages: list[dict]) -> list[dict]:
    """The last expression's value and the pictures among a cell's messages, no larger than what is kept."""
    outputs = []
    for message in messages:
        content = message.get("content") or {}
        if message.get("msg_type") not in ("display_data", "execute_result") or len(outputs) > PICTURES_KEPT:
            continue
        data = content.get("data", {})
        kept = {}
        if isinstance(data.get("text/plain"), str):
            kept["text/plain"] = data["text/plain"][:TEXT_KEPT]
        if isinstance(data.get("image/png"), str) and len(data["image/png"]) <= IMAGE_KEPT:
            kept["image/png"] = data["image/png"]
        if kept:
            outputs.append({"output_type": "display_data", "metadata": {}, "data": kept})
    return outputs
