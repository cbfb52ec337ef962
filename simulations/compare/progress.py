"""How far a comparison is: a bar with the time left on a terminal, a line for each job anywhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from simulations.compare.job_files import Finished
from simulations.compare.jobs import Job
from simulations.compare.runner import OnDone


@contextmanager
def job_progress(console: Console) -> Iterator[OnDone]:
    """Show jobs as they are done, on a console; yield what is to be told of them."""
    started = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("jobs", total=None)

        def on_done(job: Job, finished: Sequence[Finished], total: int) -> None:
            done, left = len(finished), seconds_left(time.monotonic() - started, finished, total)
            bar.update(task, completed=done, total=total)
            bar.console.print(
                f"{done} of {total}: {job.label}"
                + ("" if left is None else f", about {left:.0f} s left"),
                highlight=False,
                markup=False,
            )

        yield on_done


def seconds_left(spent: float, finished: Sequence[Finished], total: int) -> float | None:
    """Return about how long a comparison still takes, in seconds; None if that is not known.

    Parameters
    ----------
    spent
        Seconds since it was started, or went on.
    finished
        Its jobs that are done; reading what was there before takes no time to speak of.
    total
        All of its jobs.
    """
    computed = sum(not one.was_there for one in finished)
    if not computed or len(finished) == total:
        return None
    return spent / computed * (total - len(finished))
