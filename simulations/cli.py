"""The whole `mdc` command: the app's commands, and those for experiments."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import mdc_flower.federation.cli  # noqa: F401  # adds its commands to the app
from mdc_flower.cli import app, console, with_exit_status
from mdc_flower.config_files import parse_setting

COMPARISONS_DIR = Path(__file__).parent / "comparisons"

__all__ = ["app"]


@app.command()
def compare(
    comparison: Annotated[
        Path | None, typer.Argument(help="Comparison file; digits by default.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One key=value of the run config, for every arm."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Whose accuracy the table shows: test, or validation to tune.")
    ] = "test",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core by default.")
    ] = None,
) -> None:
    """Compare arms at equal budgets; write table.md, table.csv, results.jsonl, curves.png."""
    with_exit_status(
        lambda: _compare(
            comparison or COMPARISONS_DIR / "digits.toml", seeds, output, set_ or [], split, workers
        )
    )


def _compare(
    path: Path,
    seeds: int | None,
    output: Path | None,
    settings: list[str],
    split: str,
    workers: int | None,
) -> None:
    from simulations import results
    from simulations.comparison import Job, read_comparison, run_comparison
    from strategies.errors import ConfigError

    if split not in ("test", "validation"):
        raise ConfigError(
            "no such split", where="--split", got=split, expected="test or validation"
        )
    comparison, arms = read_comparison(path)
    shared = {**comparison.config, **dict(parse_setting(text) for text in settings)}
    comparison = comparison.model_copy(
        update={"config": shared, "num_seeds": seeds or comparison.num_seeds}
    )
    folder = (output or Path("runs", f"{path.stem}-{time.strftime('%Y-%m-%d-%H%M%S')}")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def on_done(job: Job, done: int, total: int) -> None:
        spent = time.monotonic() - started
        left = f", about {spent / done * (total - done):.0f} s left" if done < total else ""
        console.print(f"{done} of {total}: {job.arm.name}, seed {job.seed}{left}", highlight=False)

    console.print(f"{comparison.name}: {len(arms)} arms, {comparison.num_seeds} seeds")
    outcomes = run_comparison(comparison, arms, folder, workers, on_done)
    rows = results.table_rows(arms, outcomes, split)
    table = results.markdown_table(comparison.name, rows, split, comparison.num_seeds)
    (folder / "table.md").write_text(table)
    (folder / "table.csv").write_text(results.csv_table(rows))
    (folder / "results.jsonl").write_text(results.json_lines(arms, outcomes))
    curves = results.draw_curves(comparison.name, arms, outcomes, split)
    (folder / "curves.png").write_bytes(curves)
    sys.stdout.write(f"\n{table}\n")
    console.print(f"picture: {folder / 'curves.png'}", highlight=False)
