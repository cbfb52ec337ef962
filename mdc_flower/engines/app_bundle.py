"""Copy the app's source into the layout that Flower expects, from a checkout or a wheel."""

import shutil
from pathlib import Path

import mdc_flower
import strategies
from strategies.common.errors import RunError

PACKAGES = (mdc_flower, strategies)
SIDE_FILES = ("pyproject.toml", "LICENSE")


def stage_app(target: Path) -> Path:
    """Copy the app's packages and project files into ``target`` and return it.

    ``flwr run`` bundles a project folder. This folder is a copy of the imported code rather than
    the checkout: a checkout need not exist, and none of its other files get into the bundle.

    Raises
    ------
    RunError
        If a project file is missing from the installation.
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
    """Return the path of one of the installed app's project files.

    Raises
    ------
    RunError
        If the file is missing from the installation.
    """
    package = Path(mdc_flower.__path__[0])
    # A wheel holds the project files inside the package; a checkout holds them beside it.
    for path in (package / "_app" / name, package.parent / name):
        if path.is_file():
            return path
    raise RunError(
        "a project file is missing from the installation",
        where=name,
        expected=f"{package.parent / name} or {package / '_app' / name}",
        hint="Reinstall mdc-flower",
    )
