"""What every notebook begins with: its budget, where results are, and a folder of its own."""

import atexit
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mdc_flower.common.config_model import Scalar
from mdc_flower.engines.flower_processes import script
from simulations.pages.published import ROOT
from strategies.common.errors import ConfigError, RunError

BUDGET, RESULTS = "MDC_NOTEBOOK_BUDGET", "MDC_NOTEBOOK_RESULTS"
"""Environment variables that a notebook is executed under: ``full`` or ``small``, and a folder."""

FORCE_COLOR = ("FORCE_COLOR", "CLICOLOR_FORCE")
"""Environment variables by which programs take any output for a terminal."""

BUDGETS = ("full", "small")

T = TypeVar("T")


@dataclass(frozen=True)
class Notebook:
    """How a notebook is executed.

    Attributes
    ----------
    budget : str
        ``full``: as it is published; ``small``: as little as shows that it works.
    results : Path
        Folder with the results of comparisons; those of the repository by default.
    """

    budget: str
    results: Path

    def choose(self, full: T, small: T) -> T:
        """Return the value that goes with the budget."""
        return full if self.budget == "full" else small


def begin() -> Notebook:
    """Move into a new temporary folder, and return how the notebook is to be executed.

    What the notebook writes by relative paths lies there, and is gone when its process ends.

    Raises
    ------
    ConfigError
        If there is no such budget.
    """
    budget = os.environ.get(BUDGET, "full")
    if budget not in BUDGETS:
        raise ConfigError(
            "no such budget", where=BUDGET, got=budget, expected=f"one of: {', '.join(BUDGETS)}"
        )
    results = Path(os.environ.get(RESULTS) or ROOT / "docs" / "results").absolute()
    # Progress bars are text as well as widgets, which need another package.
    warnings.filterwarnings("ignore", message="IProgress not found")
    folder = Path(tempfile.mkdtemp(prefix="mdc-notebook-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chdir(folder)
    return Notebook(budget, results)


def flags(settings: Mapping[str, Scalar]) -> str:
    """Return keys of the run config as they are given to `mdc`."""
    return " ".join(f"--set {key}={shlex.quote(str(value))}" for key, value in settings.items())


def mdc(arguments: str) -> None:
    """Run the `mdc` command here, and print what it prints as it comes.

    Parameters
    ----------
    arguments
        As in a shell, without ``mdc``. The folder in which it runs is shown as a dot.

    Raises
    ------
    RunError
        If it fails; what it printed says why.
    """
    print(f"$ mdc {arguments}".rstrip())
    command = [script("mdc"), *shlex.split(arguments)]
    # Kernels say that their output is a terminal's; it is a file, where each round is a line.
    env = {key: value for key, value in os.environ.items() if key not in FORCE_COLOR}
    with subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            print(line.replace(str(Path.cwd()), "."), end="", flush=True)
    if process.returncode:
        raise RunError(
            f"ended with exit status {process.returncode}", where=f"mdc {arguments}", got=None
        )
