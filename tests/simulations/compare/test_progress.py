"""How long a comparison still takes, from what was computed, and what is printed of it."""

import io

import pytest
from rich.console import Console

from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.job_files import Finished
from simulations.compare.jobs import Job
from simulations.compare.progress import job_progress, seconds_left
from simulations.results.outcome import Outcome

READ = Finished(Outcome([]), "a machine", {}, reused=True)
COMPUTED = Finished(Outcome([]), "a machine", {})


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        ([COMPUTED], 90.0),  # 30 s for one, and three are left
        ([COMPUTED, COMPUTED], 30.0),
        ([READ, READ, COMPUTED], 30.0),  # one of four is left
        ([READ], None),  # nothing is known of the machine's pace
        ([READ, COMPUTED, COMPUTED, COMPUTED], None),
    ],
)
def test_time_left_goes_by_what_was_computed(
    finished: list[Finished], expected: float | None
) -> None:
    assert seconds_left(30.0, finished, total=4) == expected


def test_each_job_is_a_line_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.5, 130.5, 160.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    arm = load_arm("centralized", ARMS_DIR, {})
    jobs = [Job(arm, n, arm.config({}, seed=n, output_dir="/o"), ARMS_DIR) for n in (1, 2, 3)]
    text = io.StringIO()
    finished: list[Finished] = []
    with job_progress(Console(file=text, width=100)) as on_done:
        for job, one in zip(jobs, [READ, COMPUTED, COMPUTED], strict=True):
            finished.append(one)
            on_done(job, finished, 3)
    assert text.getvalue().splitlines() == [
        "1 of 3: centralized, seed 1",
        "2 of 3: centralized, seed 2, about 30 s left",
        "3 of 3: centralized, seed 3",
    ]
