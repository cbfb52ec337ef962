"""Setup of every notebook: its budget, the folder of results and a temporary working folder."""

import atexit
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mdc_flower.common.config_model import Scalar
from mdc_flower.engines.flower_processes import script
from simulations.pages.published import RESULTS as COMMITTED
from simulations.results.committed import read_all, read_comparisons
from simulations.results.result_files import Results
from strategies.common.errors import ConfigError, RunError

BUDGET, RESULTS = "MDC_NOTEBOOK_BUDGET", "MDC_NOTEBOOK_RESULTS"
"""Environment variables: the budget (``full`` or ``small``), and the folder of results."""

FORCE_COLOR = ("FORCE_COLOR", "CLICOLOR_FORCE")
"""Environment variables that make programs treat any output as a terminal."""

BUDGETS = ("full", "small")

T = TypeVar("T")


@dataclass(frozen=True)
class Notebook:
    """Settings of a notebook execution.

    Attributes
    ----------
    budget : str
        ``full``: as published; ``small``: the minimum that shows that the notebook works.
    results : Path
        Folder with results of comparisons; ``docs/results`` by default.
    """

    budget: str
    results: Path

    def choose(self, full: T, small: T) -> T:
        """Return the value for the current budget."""
        return full if self.budget == "full" else small

    def comparisons(self, names: Sequence[str]) -> list[Results]:
        """Read the committed results with these names, or all those in another folder.

        Raises
        ------
        DataError
            If there are no results, or a file is invalid.
        """
        if self.results == COMMITTED:
            return read_comparisons(self.results, names)
        return read_all(self.results)


def begin() -> Notebook:
    """Change to a new temporary folder, and return the settings of the execution.

    The folder is removed when the process ends.

    Raises
    ------
    ConfigError
        If the budget is unknown.
    """
    budget = os.environ.get(BUDGET, "full")
    if budget not in BUDGETS:
        raise ConfigError(
            "no such budget", where=BUDGET, got=budget, expected=f"one of: {', '.join(BUDGETS)}"
        )
    results = Path(os.environ.get(RESULTS) or COMMITTED).absolute()
    # Progress bars fall back to text without the package for widgets.
    warnings.filterwarnings("ignore", message="IProgress not found")
    folder = Path(tempfile.mkdtemp(prefix="mdc-notebook-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chdir(folder)
    return Notebook(budget, results)


def flags(settings: Mapping[str, Scalar]) -> str:
    """Return run-config keys as command-line options of `mdc`."""
    return " ".join(f"--set {key}={shlex.quote(str(value))}" for key, value in settings.items())


def mdc(arguments: str) -> None:
    """Run the `mdc` command in the current folder, and print its output as it arrives.

    In the output, the path of the current folder is replaced by a dot.

    Parameters
    ----------
    arguments
        Command line without ``mdc``.

    Raises
    ------
    RunError
        If the command fails; its output gives the reason.
    """
    print(f"$ mdc {arguments}".rstrip())
    command = [script("mdc"), *shlex.split(arguments)]
    # Kernels claim that their output is a terminal; without that, mdc prints a line per round.
    env = {key: value for key, value in os.environ.items() if key not in FORCE_COLOR}
    with subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line.replace(str(Path.cwd()), "."), end="", flush=True)
    if process.returncode:
        raise RunError(
            f"the command ended with exit status {process.returncode}",
            where=f"mdc {arguments}",
            got=None,
        )
