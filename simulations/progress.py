"""How far a comparison is: a bar with the time left on a terminal, a line for each job anywhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from simulations.comparison import OnDone
from simulations.jobs import Job


@contextmanager
def job_progress(console: Console) -> Iterator[OnDone]:
    """Show jobs as they are done, on a console; yield what is to be told of them."""
    started = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("jobs", total=None)

        def on_done(job: Job, done: int, total: int) -> None:
            spent = time.monotonic() - started
            left = f", about {spent / done * (total - done):.0f} s left" if done < total else ""
            bar.update(task, completed=done, total=total)
            bar.console.print(
                f"{done} of {total}: {job.label}{left}", highlight=False, markup=False
            )

        yield on_done
