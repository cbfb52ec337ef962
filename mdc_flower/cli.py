"""The `mdc` command, as far as it needs no experiments: run, evaluate, doctor."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from mdc_flower.config import RunConfig, Scalar, read_run_config
from mdc_flower.config_files import parse_setting, read_arm
from strategies.errors import ConfigError, MdcError

app = typer.Typer(
    help="Train one network across several data centers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)

DEFAULT_SITES = 5
INTERRUPTED = 130


class Engine(StrEnum):
    """Where the sites are simulated."""

    RAY = "ray"
    IN_PROCESS = "in-process"


@app.command()
def run(
    arm: Annotated[
        Path | None, typer.Argument(help="TOML file with keys of the run config.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One key=value of the run config; may be repeated."),
    ] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Sites to simulate.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all that is random.")] = None,
    engine: Annotated[Engine, typer.Option(help="Where the sites are simulated.")] = Engine.RAY,
    output: Annotated[
        Path | None, typer.Option(help="Run directory; new, or without a run in it.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores to use; all by default.")] = None,
    gpus_per_site: Annotated[
        float | None,
        typer.Option(
            min=0, help="Share of a GPU for each site; by default GPUs are shared evenly."
        ),
    ] = None,
) -> None:
    """Train across simulated sites; exit 0 finished, 1 failed, 2 bad input, 130 interrupted."""
    options: dict[str, Scalar | None] = {
        "num-sites": sites,
        "seed": seed,
        "output-dir": str(output.expanduser().absolute()) if output else None,
    }
    with_exit_status(
        lambda: _run(read_config(arm, set_ or [], options), engine, cpus, gpus_per_site)
    )


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a run, or a model file.")],
    data: Annotated[
        str, typer.Option(help="Data set to evaluate on; the run's own by default.")
    ] = "",
    data_root: Annotated[str, typer.Option(help="Where built-in data sets are.")] = "",
    best: Annotated[
        bool, typer.Option(help="Evaluate the best model instead of the final one.")
    ] = False,
) -> None:
    """Evaluate the model of a run on a test set."""

    def work() -> None:
        from mdc_flower.evaluation import evaluate_run

        result = evaluate_run(run_dir.expanduser().absolute(), data, data_root, best)
        console.print_json(data=result)

    with_exit_status(work)


@app.command()
def doctor(
    data: Annotated[str, typer.Option(help="A data set that must load.")] = "",
    data_root: Annotated[str, typer.Option(help="Where built-in data sets are.")] = "",
) -> None:
    """Check versions, commands, ports, disk, device and data of this machine."""

    def work() -> None:
        from mdc_flower.doctor import run_checks

        failed = 0
        for check in run_checks(data, data_root):
            mark = "      " if check.ok is None else "ok    " if check.ok else "FAILED"
            console.print(f"{mark}  {check.name}: {check.detail}", markup=False, highlight=False)
            failed += check.ok is False
        if failed:
            raise MdcError(f"{failed} check{'s' if failed > 1 else ''} failed", where="mdc doctor")

    with_exit_status(work)


def with_exit_status(work: Callable[[], None]) -> None:
    """Do the work of a command; turn what it raises into a message and an exit status."""
    # So that a user's own module:function is found, as with other tools that import by name.
    sys.path.append(str(Path.cwd()))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        work()
    except MdcError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, style="red")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        errors.print("interrupted", style="red")
        raise typer.Exit(INTERRUPTED) from None


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def read_config(
    arm: Path | None, settings: list[str], options: Mapping[str, Scalar | None]
) -> RunConfig:
    """Return the run config from an arm file, then ``--set``, then other options.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is not allowed.
    """
    values: dict[str, Any] = {"num-sites": DEFAULT_SITES, "output-dir": _default_output()}
    if arm is not None:
        values |= read_arm(arm)[0]
    values |= dict(parse_setting(text) for text in settings)
    values |= {key: value for key, value in options.items() if value is not None}
    return read_run_config(values)


def _default_output() -> str:
    return str(Path("runs", time.strftime("%Y-%m-%d-%H%M%S")).absolute())


def _run(config: RunConfig, engine: Engine, cpus: int | None, gpus: float | None) -> None:
    # torch and Flower take seconds to import; a wrong key is reported before that.
    from mdc_flower.engines import run_in_process, run_on_ray
    from mdc_flower.live_view import LiveView
    from mdc_flower.task import load_task

    task = load_task(config)
    task.new_model()
    num_sites = config.num_sites or DEFAULT_SITES
    task.partition(num_sites)
    run_dir = Path(config.output_dir)
    _refuse_used(run_dir)
    console.print(f"run directory: {run_dir}", highlight=False)
    with LiveView(run_dir, console):
        if engine is Engine.IN_PROCESS:
            run_in_process(config, num_sites)
        else:
            cores = cpus or len(os.sched_getaffinity(0))
            share = gpus if gpus is not None else _gpu_share(num_sites, cores)
            run_on_ray(config, num_sites, cores, share)
    console.print(f"finished; the picture is {run_dir / 'report.png'}", highlight=False)


def _refuse_used(run_dir: Path) -> None:
    """Refuse a directory with a run in it before an engine is started for it."""
    from strategies.journal import HISTORY

    if (run_dir / HISTORY).exists():
        raise ConfigError(
            "the directory holds a run already",
            where="--output",
            got=str(run_dir),
            hint="Name another directory, or move the old run away",
        )


def _gpu_share(num_sites: int, cores: int) -> float:
    """Return an even share of the GPUs for as many sites as train at a time."""
    import torch

    at_a_time = min(num_sites, cores)
    return min(1.0, torch.cuda.device_count() / at_a_time)
