"""Progress of a comparison: one line per job, and on a terminal a progress bar."""

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
    """Show finished jobs on a console; yield the callback to call for each."""
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
    """Estimate the remaining time of a comparison in seconds; None if unknown.

    Parameters
    ----------
    spent
        Seconds since the comparison was started or continued.
    finished
        Finished jobs; reading a stored result is assumed to take no time.
    total
        Number of jobs.
    """
    computed = sum(not one.reused for one in finished)
    if not computed or len(finished) == total:
        return None
    return spent / computed * (total - len(finished))
