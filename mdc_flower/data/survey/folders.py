"""The files of class folders: what is there, what is left out, and which are the same."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdc_flower.data.readers.same_files import same_content
from mdc_flower.data.survey.findings import Counts, Findings

SPLITS = ("train", "validation", "test")

LEFT_BEHIND = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})
"""Names that systems leave behind, beside those that begin with a dot."""


@dataclass(frozen=True)
class Found:
    """A readable file, with its split and class."""

    path: Path
    split: str
    name: str


def survey_folders(
    findings: Findings,
    root: Path,
    suffixes: Collection[str],
    agreed: Sequence[str],
    look: Callable[[Findings, Sequence[Path]], list[Path]],
) -> list[Found]:
    """Survey ``root/SPLIT/CLASS``, and return the files that can be read.

    Parameters
    ----------
    findings
        Gets what is found.
    root
        The folder of the splits.
    suffixes
        Suffixes that are read, in lower case.
    agreed
        The agreed classes; empty for those in the folders.
    look
        Looks into all files; returns those that can be read.
    """
    found: list[Found] = []
    hidden: list[str] = []
    left_out: Counter[str] = Counter()
    dangling: list[str] = []
    for split in SPLITS:
        for folder in sorted(_entries(root / split)):
            if _is_hidden(folder.name) or not folder.is_dir():
                hidden.append(_shown(folder, root))
                continue
            for file in _files_below(folder):
                name = _shown(file, root)
                if any(_is_hidden(part) for part in file.relative_to(folder).parts):
                    hidden.append(name)
                elif not file.exists():
                    dangling.append(name)
                elif file.suffix.lower() not in suffixes:
                    left_out[file.suffix or "(none)"] += 1
                else:
                    found.append(Found(file, split, folder.name))
    findings.note("names that systems leave behind, or that are no class", hidden)
    findings.problem("links lead nowhere", dangling)
    if left_out:
        said = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        findings.notes.append(f"{left_out.total()} files are left out by their suffix: {said}")
    readable = set(look(findings, [one.path for one in found]))
    kept = [one for one in found if one.path in readable]
    _classes(findings, root, kept, agreed)
    _same(findings, root, kept)
    return kept


def _classes(findings: Findings, root: Path, found: Sequence[Found], agreed: Sequence[str]) -> None:
    """Survey the classes: counts of all, and names that do not fit."""
    folders = {split: set(_class_names(root / split)) for split in SPLITS}
    names = list(agreed) or sorted(set.union(*folders.values()))
    counts = Counter((one.split, one.name) for one in found)
    splits = [split for split in SPLITS if (root / split).is_dir()]
    rows = [
        [name if name == name.strip() else repr(name), *(str(counts[s, name]) for s in splits)]
        for name in names
    ]
    findings.tables.append(Counts("Files by class", ["class", *splits], rows))
    if "train" not in splits:
        findings.problems.append(f"the folder train/ is missing in {root}")
    if "test" not in splits:
        findings.notes.append("there is no folder test/: fine at a site with a contract only")
    if agreed:
        unknown = sorted(set.union(*folders.values()) - set(agreed))
        findings.problem("folders are none of the agreed classes", unknown)
    else:
        only_there = sorted((folders["test"] | folders["validation"]) - folders["train"])
        findings.problem("classes have no folder in train/", only_there)
    spaced = [repr(name) for name in names if name != name.strip()]
    findings.problem("names of classes begin or end with white space", spaced)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[name.strip().lower()].append(name)
    findings.note(
        "pairs of classes differ in case or white space only",
        [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1],
    )
    add = findings.note if agreed else findings.problem
    empty = [n for n in agreed or sorted(folders["train"]) if not counts["train", n]]
    add("classes have no file to train on", empty)
    single = [name for name in names if counts["train", name] == 1]
    findings.note("classes have a single file to train on", single)


def _same(findings: Findings, root: Path, found: Sequence[Found]) -> None:
    """Survey files with the same content: in both splits, under two classes, or twice."""
    train = [one.path for one in found if one.split == "train"]
    others = [one.path for one in found if one.split != "train"]
    pairs = [f"{_shown(a, root)} = {_shown(b, root)}" for a, b in same_content(train, others)]
    findings.problem("files are in train and in another split", pairs)
    twice = [(a, b) for a, b in same_content(train, train) if a != b]
    name_of = {one.path: one.name for one in found}
    two_labels = [
        f"{_shown(a, root)} = {_shown(b, root)}" for a, b in twice if name_of[a] != name_of[b]
    ]
    findings.problem("files are in two classes", two_labels)
    same = [f"{_shown(a, root)} = {_shown(b, root)}" for a, b in twice if name_of[a] == name_of[b]]
    findings.note("files are there twice", same)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _class_names(folder: Path) -> list[str]:
    return [one.name for one in _entries(folder) if one.is_dir() and not _is_hidden(one.name)]


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted, also those in linked folders."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, name) for name in sorted(files))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND


def _shown(path: Path, root: Path) -> str:
    """Return a path below the root as text that can be printed, whatever its bytes."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")
