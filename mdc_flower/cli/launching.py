"""The parts that all run commands share: config, live view and restarts."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from mdc_flower.common.config_files import parse_setting, read_arm
from mdc_flower.common.config_model import Scalar
from mdc_flower.common.local_work import of_this_version
from mdc_flower.config import RunConfig, read_run_config
from strategies.common.errors import ConfigError


def read_config(
    arm: Path | None,
    settings: list[str],
    options: Mapping[str, Scalar | None],
    defaults: Mapping[str, Scalar],
) -> RunConfig:
    """Return the run config from defaults, arm file, ``--set`` and other options; the last wins.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is not allowed.
    """
    values: dict[str, Any] = {"output-dir": _default_output(), **defaults}
    if arm is not None:
        values |= read_arm(arm)[0]
    values |= dict(parse_setting(text) for text in settings)
    values |= {key: value for key, value in options.items() if value is not None}
    _check_text(values)
    config = read_run_config(values)
    # Flower's processes run in other folders, so a relative path must be resolved here.
    paths = {
        key: str(Path(path).expanduser().absolute())
        for key in ("output_dir", "initial_model")
        if (path := getattr(config, key))
    }
    return config.model_copy(update=paths)


def _default_output() -> str:
    return str(Path("runs", time.strftime("%Y-%m-%d-%H%M%S")).absolute())


def resumed_config(
    run_dir: Path, arm: Path | None, settings: list[str], options: Mapping[str, Scalar | None]
) -> RunConfig:
    """Return the config of the run in a directory, with the changed keys.

    Raises
    ------
    ConfigError
        If the directory holds no run, an arm or another directory is given, or a changed key may
        not change.
    """
    from mdc_flower.coordinator.resume import changed_keys
    from strategies.storage.run_directory import CONFIG, holds_run

    path = run_dir.expanduser().absolute()
    changes = dict(parse_setting(text) for text in settings)
    changes |= {key: value for key, value in options.items() if value is not None}
    for name, value in (
        ("ARM", arm),
        ("output-dir", changes.get("output-dir")),
        ("resume", changes.get("resume")),
    ):
        if value is not None:
            raise ConfigError("does not go with --resume", where=name, got=str(value))
    if not (holds_run(path) or (path / CONFIG).is_file()):
        raise ConfigError("there is no run to resume", where="--resume", got=str(path))
    values = of_this_version(read_arm(path / CONFIG)[0])
    _check_text({**changes, "output-dir": str(path)})
    config = read_run_config({**values, **changes, "output-dir": str(path), "resume": True})
    changed_keys(values, config)
    return config


def _check_text(values: Mapping[str, Any]) -> None:
    """Refuse a value, such as a path, that is not UTF-8: the run's files cannot store it."""
    for key, value in values.items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            shown = os.fsencode(str(value)).decode("utf-8", "backslashreplace")
            raise ConfigError("the value is not UTF-8", where=key, got=shown) from None


def run_supervised(
    config: RunConfig,
    launch: Callable[[RunConfig], None],
    resume_command: str,
    console: Console,
    errors: Console,
) -> None:
    """Run a config with a live view, and restart the run from its checkpoint when it dies.

    Parameters
    ----------
    config
        The run config; ``output-dir`` must be absolute.
    launch
        Runs a config to its end; raises if the run does not finish.
    resume_command
        Command that resumes the run, without ``--resume`` and the directory.
    console, errors
        Consoles for progress and for errors.

    Raises
    ------
    MdcError
        If the run ended for a reason that a restart cannot fix, or died too often; with a note on
        how to resume it.
    """
    from mdc_flower.console.live_view import LiveView
    from mdc_flower.engines.supervisor import supervise
    from strategies.storage.run_directory import count_rounds

    def on_restart(error: Exception, number: int, pause_s: float) -> None:
        text = f"the run died: {error}\nrestart {number} of {config.max_restarts} in {pause_s:g} s"
        errors.print(text, markup=False, highlight=False, style="yellow")

    run_dir = Path(config.output_dir)
    console.print(f"run directory: {run_dir}", highlight=False)
    try:
        with LiveView(run_dir, console):
            supervise(config, launch, on_restart, lambda: count_rounds(run_dir))
    except BaseException as error:
        _close(run_dir, error, resume_command)
        raise
    picture = run_dir / "report.png"
    drawn = (
        f"the plots are in {picture}"
        if picture.is_file()
        else "no plots were drawn; the log tells why"
    )
    console.print(f"finished; {drawn}", highlight=False)


def _close(run_dir: Path, error: BaseException, resume_command: str) -> None:
    """Add a note to the error on how to resume the run; mark an interrupted run."""
    from strategies.common.files import DamagedError
    from strategies.storage.lock import LockedError
    from strategies.storage.run_directory import CHECKPOINTS, mark_interrupted

    if isinstance(error, KeyboardInterrupt):
        mark_interrupted(run_dir)
    is_final = isinstance(error, ConfigError | DamagedError | LockedError)
    if (run_dir / CHECKPOINTS).is_dir() and not is_final:
        error.add_note(f"to resume: {resume_command} --resume {quote(str(run_dir))}")
