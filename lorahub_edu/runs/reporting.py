"""Each step's figures to a program that draws them while a run goes on: TensorBoard or Trackio, where installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorahub_edu.errors import CourseError

REPORTERS = ("tensorboard", "trackio")
PROJECT = "lorahub-edu"


@contextmanager
def reporting(to: str, folder: Path, settings: dict[str, object]) -> Iterator[Callable[[dict], None] | None]:
    """What `train` calls with each step's record, by a name in `REPORTERS`; None where nothing is reported.

    TensorBoard's files go into the run's folder, and Trackio names the run after it and keeps its settings.
    Raises CourseError: the library is not installed.
    """
    if not to:
        yield None
        return
    try:
        if to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        else:
            import trackio
    except ImportError as error:
        raise CourseError(f"--report-to {to} needs a library that is not here: pip install {to}") from error
    if to == "tensorboard":
        with SummaryWriter(folder / "tensorboard") as writer:
            yield lambda record: [
                writer.add_scalar(name, value, record["step"]) for name, value in record.items() if name != "step"
            ]
        return
    trackio.init(project=PROJECT, name=folder.name, config=settings)
    try:
        yield lambda record: trackio.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])
    finally:
        trackio.finish()
