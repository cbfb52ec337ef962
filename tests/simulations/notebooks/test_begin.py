"""What a notebook begins with: a budget, a folder of its own, and the `mdc` command."""

from pathlib import Path

import pytest

from simulations.notebooks.begin import BUDGET, RESULTS, begin, flags, mdc
from simulations.pages.published import ROOT
from simulations.results.result_files import write_results
from strategies.common.errors import ConfigError, RunError
from tests.simulations.made_up import outcome, results


@pytest.fixture(autouse=True)
def back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Come back from wherever a notebook has gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(BUDGET, raising=False)
    monkeypatch.delenv(RESULTS, raising=False)


def test_a_notebook_has_the_full_budget_and_the_repositorys_results(tmp_path: Path) -> None:
    notebook = begin()
    assert notebook.choose(full=40, small=2) == 40
    assert notebook.results == ROOT / "docs" / "results"
    assert Path.cwd() != tmp_path
    assert list(Path.cwd().iterdir()) == []


def test_the_environment_makes_it_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(BUDGET, "small")
    monkeypatch.setenv(RESULTS, "mine")
    notebook = begin()
    assert notebook.choose(full=40, small=2) == 2
    assert notebook.results == tmp_path / "mine"


def test_a_notebook_shows_the_named_results_or_all_of_another_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (named,) = begin().comparisons(["digits"])
    assert named.facts.name == "digits, 5 sites of 100 images"
    write_results(tmp_path / "mine", results({"a": {1: outcome((2, 0.5))}}, name="mine"))
    monkeypatch.setenv(RESULTS, str(tmp_path))
    (own,) = begin().comparisons(["digits"])
    assert own.facts.name == "mine"


def test_another_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUDGET, "tiny")
    with pytest.raises(ConfigError, match="full, small"):
        begin()


def test_settings_are_flags() -> None:
    assert flags({"seed": 1, "dataset": "a b"}) == "--set seed=1 --set dataset='a b'"


def test_a_command_prints_what_it_does_and_no_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("federation.toml").write_text(
        'name = "x"\nhost = "h.example.org"\nport = 8443\n[contract]\nname = "x"\n'
        'type = "float32"\nshape = [1]\nclasses = ["a", "b"]\n[[site]]\nname = "s"\n'
    )
    mdc("provision federation.toml --output kits")
    printed = capsys.readouterr().out
    assert printed.startswith("$ mdc provision federation.toml --output kits\n")
    assert "s: new kit" in printed
    assert str(Path.cwd()) not in printed


def test_a_command_that_fails_raises(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="exit status 2"):
        mdc("run --set no-such-key=1")
    assert "no-such-key" in capsys.readouterr().out
