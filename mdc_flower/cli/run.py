"""The commands for one machine: ``mdc run``, ``evaluate``, ``predict``, ``export``, ``doctor``."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdc_flower.cli.launching import read_config, resumed_config, run_supervised
from mdc_flower.cli.shared import (
    Arm,
    Output,
    Resume,
    Seed,
    Settings,
    app,
    console,
    errors,
    with_exit_status,
)
from mdc_flower.common.config_model import Scalar
from mdc_flower.common.cores import usable_cores
from mdc_flower.common.extras import require
from mdc_flower.config import RunConfig
from strategies.common.errors import ConfigError

if TYPE_CHECKING:
    from mdc_flower.jobs.run_task import RunTask

DEFAULT_SITES = 5


class Engine(StrEnum):
    """Engine that simulates the sites."""

    RAY = "ray"
    IN_PROCESS = "in-process"


@app.command()
def run(
    arm: Arm = None,
    set_: Settings = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Number of simulated sites.")] = None,
    seed: Seed = None,
    engine: Annotated[Engine, typer.Option(help="Engine that simulates the sites.")] = Engine.RAY,
    output: Output = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores to use; all by default.")] = None,
    gpus_per_site: Annotated[
        float | None,
        typer.Option(
            min=0, help="Share of a GPU for each site; by default, GPUs are shared evenly."
        ),
    ] = None,
    resume: Resume = None,
) -> None:
    """Train across simulated sites.

    Exit status: 0 finished, 1 failed, 2 bad input, 3 too few sites, 130 interrupted.
    """
    options: dict[str, Scalar | None] = {
        "num-sites": sites,
        "seed": seed,
        "output-dir": str(output.expanduser().absolute()) if output else None,
    }

    def work() -> None:
        if resume is None:
            config = read_config(arm, set_ or [], options, {"num-sites": DEFAULT_SITES})
        else:
            config = resumed_config(resume, arm, set_ or [], options)
        _run(config, engine, cpus, gpus_per_site)

    with_exit_status(work)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Run directory or model file.")],
    data: Annotated[
        str, typer.Option(help="Data set to evaluate on; by default, the run's data set.")
    ] = "",
    data_root: Annotated[str, typer.Option(help="Folder of the built-in data sets.")] = "",
    best: Annotated[
        bool, typer.Option(help="Evaluate the best model instead of the final one.")
    ] = False,
    recalibrate: Annotated[
        str,
        typer.Option(help="Data set to compute the BatchNorm statistics from first, as sites do."),
    ] = "",
) -> None:
    """Evaluate a run's model on a test set.

    The test set may be alone, without training examples, and may lack some of the classes.
    """

    def work() -> None:
        from mdc_flower.jobs.model_files import evaluate_run

        result = evaluate_run(run_dir.expanduser().absolute(), data, data_root, best, recalibrate)
        console.print_json(data=result)

    with_exit_status(work)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Run directory or model file.")],
    inputs: Annotated[
        Path,
        typer.Argument(
            help="Folder or file of images or recordings; table or lines of texts; .npy or .csv."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write; by default, the table is printed.")
    ] = None,
    best: Annotated[
        bool, typer.Option(help="Use the best model instead of the final one.")
    ] = False,
    column: Annotated[str, typer.Option(help="Column of texts in a table.")] = "text",
) -> None:
    """Predict the class of each input: a table with label and probabilities."""

    def work() -> None:
        from mdc_flower.jobs.prediction import trained_model

        found = trained_model(model, best).predict(inputs, column)
        if found.left_out:
            listed = ", ".join(f"{n} {suffix or '(none)'}" for suffix, n in found.left_out.items())
            errors.print(f"files left out, by suffix: {listed}", markup=False, style="yellow")
        if output is None:
            sys.stdout.write(found.to_csv())
            return
        write_table(output, found.to_csv())
        console.print(f"{len(found.names)} predictions: {output}", highlight=False, markup=False)

    with_exit_status(work)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Run directory or model file.")],
    output: Annotated[Path, typer.Option(help="File to write: NAME.pt2, for torch.export.load.")],
    best: Annotated[bool, typer.Option(help="Use the best model, not the final one.")] = False,
) -> None:
    """Export a model that runs without mdc-flower: raw inputs to probabilities."""

    def work() -> None:
        from mdc_flower.jobs.export import export_model
        from mdc_flower.jobs.prediction import trained_model

        export_model(trained_model(model, best), output.expanduser().absolute())
        console.print(f"exported: {output}", highlight=False, markup=False)

    with_exit_status(work)


@app.command()
def doctor(
    data: Annotated[str, typer.Option(help="Data set to load as a check.")] = "",
    data_root: Annotated[str, typer.Option(help="Folder of the built-in data sets.")] = "",
) -> None:
    """Check this machine: versions, commands, ports, disk, device and data."""

    def work() -> None:
        from mdc_flower.cli.doctor import run_checks
        from mdc_flower.console.checks import show

        show(run_checks(data, data_root), console, "mdc doctor")

    with_exit_status(work)


def write_table(path: Path, text: str) -> None:
    """Write a table; raise `ConfigError` if that is not possible."""
    try:
        path.expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the file cannot be written: {error.strerror}", where="--output", got=str(path)
        ) from None


def _run(config: RunConfig, engine: Engine, cpus: int | None, gpus: float | None) -> None:
    if engine is Engine.RAY:
        require(("ray",), "simulation", "--engine ray")
    # torch and Flower take seconds to import. Importing them here reports a wrong key first.
    from mdc_flower.engines.in_process import run_in_process
    from mdc_flower.engines.ray_superlink import run_on_ray
    from mdc_flower.engines.submission import end_orphaned_coordinator
    from mdc_flower.jobs.run_task import load_run_task
    from strategies.storage.run_directory import refuse_used

    task = load_run_task(config)
    task.check_model()
    num_sites = config.num_sites or DEFAULT_SITES
    task.partition_sha256(num_sites)
    run_dir = Path(config.output_dir)
    if not config.resume:
        # Check this before an engine starts.
        refuse_used(run_dir, ConfigError, "--output")

    cores = cpus or usable_cores()
    share = _gpu_share(num_sites, cores) if gpus is None else _checked_gpus(gpus)

    def launch(config: RunConfig) -> None:
        if config.resume:
            end_orphaned_coordinator(run_dir)
            _check_resumable(task, config, num_sites)
        if engine is Engine.IN_PROCESS:
            run_in_process(config, num_sites)
        else:
            run_on_ray(config, num_sites, cores, share)

    run_supervised(config, launch, "mdc run", console, errors)


def _check_resumable(task: "RunTask", config: RunConfig, num_sites: int) -> None:
    """Refuse a run that the ServerApp would refuse, before an engine starts."""
    from mdc_flower.coordinator.resume import check_resumable
    from strategies.storage.run_directory import run_directory

    with run_directory(Path(config.output_dir), {}, resume=True) as record:
        if record.checkpoint is not None:
            partition = task.partition_sha256(num_sites)
            check_resumable(record.checkpoint.run, config, partition, data=task.data_sha256)


def _gpu_share(num_sites: int, cores: int) -> float:
    """Return an even share of the GPUs for the sites that train at the same time."""
    import torch

    at_a_time = min(num_sites, cores)
    return min(1.0, torch.cuda.device_count() / at_a_time)


def _checked_gpus(share: float) -> float:
    """Return the share of a GPU for each site after checking that Ray can provide it.

    Raises
    ------
    ConfigError
        If the share exceeds the number of GPUs, or is above 1 and not a whole number.
    """
    import torch

    count = torch.cuda.device_count()
    if share > count:
        raise ConfigError(
            "this machine does not have enough GPUs",
            where="--gpus-per-site",
            got=share,
            expected=f"{count} or less",
            hint="`mdc doctor` shows the device that PyTorch finds",
        )
    if share > 1 and share != int(share):
        raise ConfigError(
            "a share above 1 must be a whole number of GPUs", where="--gpus-per-site", got=share
        )
    return share
