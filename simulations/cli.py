"""The ``mdc compare`` and ``mdc report`` commands, added to `mdc` as a plug-in."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from mdc_flower.cli.shared import app, console, with_exit_status
from mdc_flower.common.config_files import parse_setting
from mdc_flower.common.extras import DRAWING, require

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
        Path | None, typer.Argument(help="Comparison file; digits.toml by default.")
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
) -> None:
    """Compare arms at equal budgets; write results, tables and pictures.

    To continue an interrupted comparison, run the same command with the same --output.
    """

    def work() -> None:
        require(DRAWING, "simulation", "mdc compare")
        from simulations.compare.comparison_file import read_comparison, with_settings
        from simulations.compare.progress import job_progress
        from simulations.compare.runner import results_of, run_comparison
        from simulations.pages.drawing import CURVES, draw_comparison
        from simulations.results.result_files import write_results
        from strategies.common.errors import ConfigError

        if split not in ("test", "validation"):
            raise ConfigError(
                "no such split", where="--split", got=split, expected="test or validation"
            )
        path = comparison or COMPARISONS_DIR / "digits.toml"
        spec, selected = read_comparison(path, arms or [], seeds)
        spec = with_settings(spec, selected, dict(map(parse_setting, set_ or [])))
        spec = spec.model_copy(update={"name": title or spec.name})
        name = f"{path.stem}-{time.strftime('%Y-%m-%d-%H%M%S')}"
        folder = (output or Path("runs", name)).absolute()
        console.print(f"{spec.name}: {len(selected)} arms, {spec.num_seeds} seeds")
        with job_progress(console) as on_done:
            compared = run_comparison(spec, selected, folder, workers, on_done, split)
        write_results(folder, results_of(spec, selected, compared, split))
        table = draw_comparison(folder)
        sys.stdout.write(f"\n{table}\n")
        console.print(f"picture: {folder / CURVES}", highlight=False)

    with_exit_status(work)
