"""Jobs done one by one here, or by an executor's workers; each ends with its result, or a reason why it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

from lorahub_edu.errors import CourseError

TRIES = 3
AHEAD = 1000  # jobs that an executor is given at one time
REFUSED = Event()  # set on a worker that lacks something, until it is gone
_ALONE = Lock()  # jobs of one process share its model


def finished(
    jobs: Iterable[Any], work: Callable[[Any], Any], executor: Executor | None = None
) -> Iterator[tuple[Any, Any, str]]:
    """Each job as it finishes with its result, or with None and the reason if it failed three times.

    Raises CourseError: the workers were lost, or what `work` raises before any job was done: the input is wrong then.
    """
    submit, ahead = (executor.submit, AHEAD) if executor else (_here, 1)
    todo, again, suspects, waiting, good = iter(jobs), [], [], {}, False
    done: SimpleQueue[Future] = SimpleQueue()
    try:
        while True:
            while len(waiting) < ahead and (handed := again.pop() if again else (next(todo, None), 1))[0] is not None:
                future = submit(alone, work, handed[0])
                waiting[future] = handed
                future.add_done_callback(done.put)
            if not waiting:
                if not suspects:
                    return
                again, suspects, ahead = suspects, [], 1  # each by itself: whose worker dies now has done it
                continue
            future = done.get()
            job, tries = waiting.pop(future)
            try:
                result = future.result()
            except (BrokenExecutor, CancelledError):
                words = "The workers were lost, mostly for want of memory. What is finished is kept: do the same again."
                raise CourseError(words) from None
            except Exception as error:
                final = isinstance(error, CourseError)
                if final and not good:
                    raise
                # Each of several workers that Dask gave this job died, perhaps of another job that waited there, too.
                killed = type(error).__name__ == "KilledWorker"
                if killed and ahead > 1:
                    suspects.append((job, tries))
                elif final or killed or tries == TRIES:
                    yield job, None, f"{type(error).__name__}: {error}"[:300]
                else:
                    again.append((job, tries + 1))
            else:
                good = True
                yield job, result, ""
    finally:
        for future in waiting:
            future.cancel()


def _here(function: Callable, *arguments: Any) -> Future:
    """Call a function in this process at once."""
    future = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def alone(work: Callable[[Any], Any], job: Any) -> Any:
    """On a worker: one job at a time in a process, whatever its threads."""
    if REFUSED.is_set():
        from distributed import Reschedule

        raise Reschedule  # another worker gets the job
    with _ALONE:
        return work(job)
