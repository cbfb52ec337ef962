"""The tree in CONTRIBUTING.md lists exactly the tracked folders and top-level files."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("strategies", "mdc_flower", "simulations", "notebooks", "tests", "docs")
UNLISTED = ("__init__.py", "README.md")


def listed() -> dict[str, list[str]]:
    """Return the entries of the tree by package; names of folders end with a slash."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are\n")[1]
    tree = section.split("```\n")[1]
    entries: dict[str, list[str]] = {}
    package = ""
    for line in tree.splitlines():
        name, phrase = line.split(maxsplit=1)
        assert phrase, line
        if line.startswith(" "):
            entries[package].append(name)
        else:
            package = name.rstrip("/")
            entries[package] = []
    return entries


def tracked(package: str) -> set[str]:
    """Return the folders, modules and pages at the top of a package that git tracks."""
    done = subprocess.run(
        ["git", "ls-files", package], cwd=ROOT, capture_output=True, text=True, check=True
    )
    parts = [Path(line).parts for line in done.stdout.splitlines()]
    folders = {f"{path[1]}/" for path in parts if len(path) > 2}
    files = {path[1] for path in parts if len(path) == 2 and path[1].endswith((".py", ".md"))}
    return folders | files - set(UNLISTED)


def test_the_tree_lists_what_is_there() -> None:
    entries = listed()
    assert tuple(entries) == PACKAGES
    for package, names in entries.items():
        assert len(names) == len(set(names))
        assert set(names) == tracked(package), package
