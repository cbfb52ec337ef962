"""The staged app: the code that is imported right now, the project files, and nothing else."""

import tomllib
from pathlib import Path

import pytest

import mdc_flower
import strategies
from mdc_flower.engines.app_bundle import stage_app
from strategies.common.errors import RunError

ROOT = Path(__file__).parents[3]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_app_has_exactly_the_packages_sources_and_the_project_files(tmp_path: Path) -> None:
    target = stage_app(tmp_path / "new" / "app")
    assert target == tmp_path / "new" / "app"
    sources = {
        str(path.relative_to(ROOT))
        for package in ("mdc_flower", "strategies")
        for path in (ROOT / package).rglob("*.py")
    }
    assert "mdc_flower/data/registry.py" in sources
    assert files_below(target) == sources | {"pyproject.toml", "LICENSE"}


def test_the_files_are_copies_to_the_byte(tmp_path: Path) -> None:
    target = stage_app(tmp_path / "app")
    for name in files_below(target):
        assert (target / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_staged_project_names_its_components(tmp_path: Path) -> None:
    project = tomllib.loads((stage_app(tmp_path / "app") / "pyproject.toml").read_text())
    for component in project["tool"]["flwr"]["app"]["components"].values():
        module = component.split(":")[0].replace(".", "/")
        assert (tmp_path / "app" / f"{module}.py").is_file()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the packages where a wheel would put them, with what may lie there beside sources."""
    site = tmp_path / "site-packages"
    for name in ("mdc_flower", "strategies"):
        (site / name / "inner").mkdir(parents=True)
        (site / name / "__init__.py").write_text(f'"""{name}"""\n')
        (site / name / "inner" / "code.py").write_text("x = 1\n")
        (site / name / "__pycache__").mkdir()
        (site / name / "__pycache__" / "code.cpython-311.pyc").write_bytes(b"\0")
        (site / name / "inner" / "notes.txt").write_text("secret")
        (site / name / ".env").write_text("PASSWORD=secret")
    monkeypatch.setattr(mdc_flower, "__path__", [str(site / "mdc_flower")])
    monkeypatch.setattr(strategies, "__path__", [str(site / "strategies")])
    return site


EXPECTED = {
    *("mdc_flower/__init__.py", "mdc_flower/inner/code.py"),
    *("strategies/__init__.py", "strategies/inner/code.py"),
    *("pyproject.toml", "LICENSE"),
}


def test_from_a_wheel_the_project_files_come_out_of_the_package(
    installed: Path, tmp_path: Path
) -> None:
    inside = installed / "mdc_flower" / "_app"
    inside.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        (inside / name).write_text(f"the wheel's {name}")
        (installed / name).write_text("of another project")
    target = stage_app(tmp_path / "app")
    assert files_below(target) == EXPECTED
    assert (target / "LICENSE").read_text() == "the wheel's LICENSE"


def test_nothing_but_sources_is_taken_from_the_packages(installed: Path, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "LICENSE"):
        (installed / name).write_text("beside the packages")
    target = stage_app(tmp_path / "app")
    assert files_below(target) == EXPECTED
    assert not list(target.rglob("__pycache__"))


@pytest.mark.parametrize("missing", ["pyproject.toml", "LICENSE"])
def test_a_project_file_that_is_missing_is_named(
    installed: Path, tmp_path: Path, missing: str
) -> None:
    for name in {"pyproject.toml", "LICENSE"} - {missing}:
        (installed / name).write_text("beside the packages")
    with pytest.raises(RunError, match="missing from the installation") as caught:
        stage_app(tmp_path / "app")
    assert caught.value.where == missing
    assert str(installed / missing) in caught.value.expected


def test_an_existing_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    with pytest.raises(FileExistsError):
        stage_app(tmp_path / "app")
    assert files_below(tmp_path) == set()
