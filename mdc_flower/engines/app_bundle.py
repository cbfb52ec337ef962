"""Lay out the app's source as Flower expects it, from a checkout or from an installed wheel."""

import shutil
from pathlib import Path

import mdc_flower
import strategies
from strategies.common.errors import RunError

PACKAGES = (mdc_flower, strategies)
SIDE_FILES = ("pyproject.toml", "LICENSE")


def stage_app(target: Path) -> Path:
    """Copy the app's packages and project files into ``target`` and return it.

    ``flwr run`` bundles a project folder. A copy of the code that is imported right now is
    submitted, rather than a checkout, so that there need not be a checkout and nothing else
    that lies in one can get into the bundle.

    Raises
    ------
    RunError
        If the project files are not beside the packages.
    """
    target.mkdir(parents=True)
    for package in PACKAGES:
        source = Path(package.__path__[0])
        shutil.copytree(
            source,
            target / source.name,
            ignore=lambda folder, names: [
                n
                for n in names
                if not (n.endswith(".py") or (Path(folder) / n).is_dir()) or n == "__pycache__"
            ],
        )
    for name in SIDE_FILES:
        shutil.copy(side_file(name), target / name)
    return target


def side_file(name: str) -> Path:
    """Return one of the project files of the installed app.

    Raises
    ------
    RunError
        If it is not beside the packages.
    """
    package = Path(mdc_flower.__path__[0])
    # A wheel carries the project files inside the package; a checkout has them beside it.
    for path in (package / "_app" / name, package.parent / name):
        if path.is_file():
            return path
    raise RunError(
        "a project file is missing from the installation",
        where=name,
        expected=f"{package.parent / name} or {package / '_app' / name}",
        hint="Install mdc-flower again",
    )
