"""The ``mdc compare`` and ``mdc report`` commands, added to `mdc` as a plug-in."""

import sys
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated

import typer

from mdc_flower.cli.shared import app, console, with_exit_status
from mdc_flower.common.config_files import parse_setting
from mdc_flower.common.extras import DRAWING, require
from strategies.common.errors import ConfigError

COMPARISONS_DIR = Path(__file__).parent / "comparisons"


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Run directory, or folder of a comparison.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write; report.html in DIR by default.")
    ] = None,
) -> None:
    """Write a report: one HTML file that works offline, without scripts, and can be printed."""

    def work() -> None:
        require(DRAWING, "simulation", "mdc report")
        from simulations.pages.report import write_report

        path = write_report(
            folder.expanduser().absolute(), output.expanduser().absolute() if output else None
        )
        console.print(f"report written to {path}", highlight=False)

    with_exit_status(work)


@app.command()
def compare(
    comparison: Annotated[
        Path | None,
        typer.Argument(help="Comparison file, or the name of a shipped one, such as digits."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds per arm.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the run config, for every arm; may be repeated."),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Arm to run, by its file name; may be repeated."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split whose metrics the tables show: test or validation.")
    ] = "test",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per core by default.")
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(help="Title of tables and pictures; that of the file by default."),
    ] = None,
    check_only: Annotated[
        bool,
        typer.Option(
            "--check", help="Check all arms and their candidates, estimate the time, and end."
        ),
    ] = False,
) -> None:
    """Compare arms at equal budgets; write results, tables and pictures.

    Say first how long it takes: the times of a step and of an evaluation are measured.

    To continue an interrupted comparison, run the same command with the same --output.
    """

    def work() -> None:
        if split not in ("test", "validation"):
            raise ConfigError(
                "no such split", where="--split", got=split, expected="test or validation"
            )
        path = _comparison_file(comparison)
        require(DRAWING, "simulation", "mdc compare")
        from mdc_flower.common.cores import usable_cores
        from simulations.compare.announcement import announced
        from simulations.compare.checks import check
        from simulations.compare.comparison_file import read_comparison, with_settings
        from simulations.compare.equal_budgets import configs_of
        from simulations.compare.estimate import estimated
        from simulations.compare.progress import job_progress
        from simulations.compare.runner import results_of, run_comparison, shared_gpus
        from simulations.compare.workers import worker_pool
        from simulations.pages.drawing import CURVES, draw_comparison
        from simulations.results.result_files import write_results

        spec, selected = read_comparison(path, arms or [], seeds)
        spec = with_settings(spec, selected, dict(map(parse_setting, set_ or [])))
        spec = spec.model_copy(update={"name": title or spec.name})
        name = f"{path.stem}-{time.strftime('%Y-%m-%d-%H%M%S')}"
        folder = (output or Path("runs", name)).absolute()
        count = workers or usable_cores()

        def announce(pool: Executor) -> None:
            configs = configs_of(spec, selected)
            time_left = estimated(spec, selected, configs, folder, count, pool)
            for line in announced(spec, selected, time_left, count):
                console.print(line, highlight=False, markup=False)

        console.print(f"{spec.name}: {len(selected)} arms, {spec.num_seeds} seeds")
        if check_only:
            check(spec, selected, split)
            with worker_pool(1, shared_gpus(configs_of(spec, selected))) as pool:
                announce(pool)
            return
        with job_progress(console) as on_done:
            compared = run_comparison(spec, selected, folder, count, on_done, split, announce)
        write_results(folder, results_of(spec, selected, compared, split))
        table = draw_comparison(folder)
        sys.stdout.write(f"\n{table}\n")
        console.print(f"picture: {folder / CURVES}", highlight=False)

    with_exit_status(work)


def _comparison_file(given: Path | None) -> Path:
    """Return the path of a comparison, which may be the name of a shipped one."""
    shipped = {path.stem: path for path in COMPARISONS_DIR.glob("*.toml")}
    if given is None:
        raise ConfigError(
            "no comparison given",
            where="COMPARISON",
            expected="the path of a comparison file, or one of those that are shipped: "
            + ", ".join(sorted(shipped)),
            hint="The quickest is: mdc compare digits",
        )
    return given if given.is_file() else shipped.get(str(given), given)
