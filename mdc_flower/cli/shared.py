"""The parts that all `mdc` commands share: the app, consoles, options and exit statuses."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mdc_flower.common.references import add_users_folder
from strategies.common.errors import MdcError

app = typer.Typer(
    help="Train one network across several data centers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)

INTERRUPTED = 130

Arm = Annotated[Path | None, typer.Argument(help="TOML file with run config keys.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One key=value pair of the run config; may be repeated."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Random seed.")]
Output = Annotated[Path | None, typer.Option(help="Run directory; it must be new or hold no run.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Resume the run in this directory from its newest checkpoint."),
]


def with_exit_status(work: Callable[[], None]) -> None:
    """Run a command's work; turn an error into a message and an exit status."""
    add_users_folder(str(Path.cwd()))
    _handle_signals()
    try:
        work()
    except MdcError as error:
        _print_error(f"error: {error}", error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as interrupt:
        _print_error("interrupted", interrupt)
        raise typer.Exit(INTERRUPTED) from None


def _print_error(text: str, error: BaseException) -> None:
    errors.print(text, markup=False, highlight=False, style="red")
    for note in getattr(error, "__notes__", ()):
        errors.print(note, markup=False, highlight=False)


def _handle_signals() -> None:
    """Let signals interrupt the work, except those that this process already ignored at its start.

    ``nohup`` ignores SIGHUP, and a shell without job control ignores SIGINT for its background
    processes. Those signals get a handler that does nothing. Child processes would inherit an
    ignored signal, but they do not inherit a handler; Flower's processes stop each other with
    SIGINT.
    """
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        is_ignored = signal.getsignal(kind) is signal.SIG_IGN
        signal.signal(kind, _do_nothing if is_ignored else _interrupt)


def _do_nothing(signum: int, frame: object) -> None:
    pass


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
