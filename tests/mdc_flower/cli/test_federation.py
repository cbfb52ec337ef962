"""Arguments, messages and exit statuses of the commands for real sites."""

from pathlib import Path

import pytest
from click.testing import Result

import mdc_flower.cli.federation  # noqa: F401  # adds its commands to `mdc`
from mdc_flower.deployment.coordinator import coordinator
from strategies.common.errors import QuorumError
from tests.mdc_flower.commands import mdc
from tests.mdc_flower.deployment.federations import Federation

pytestmark = pytest.mark.usefixtures("process_state")


def told(result: Result, status: int) -> str:
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["provision"],
        ["provision", "federation.toml"],
        ["coordinator", "start"],
        ["coordinator", "run"],
        ["coordinator", "run", "kit", "--seed", "-1"],
        ["coordinator", "stop", "kit"],
        ["site", "start"],
        ["site", "check", "kit", "--gpu"],
    ],
)
def test_wrong_arguments_are_bad_input(arguments: list[str]) -> None:
    told(mdc(*arguments), 2)


@pytest.mark.parametrize(
    "command",
    [
        ["coordinator", "start"],
        ["coordinator", "status"],
        ["coordinator", "run"],
        ["site", "check"],
        ["site", "start"],
    ],
)
def test_a_folder_that_is_no_kit_of_this_kind(command: list[str], federation: Federation) -> None:
    text = told(mdc(*command, federation.kits / "none"), 2)
    assert "there is no such folder" in text
    other = "berlin" if command[0] == "coordinator" else "coordinator"
    text = told(mdc(*command, federation.kits / other), 2)
    assert "this is another kind of kit" in text
    assert "Commands for this kit begin with 'mdc " in text
    key = {"coordinator": "coordinator/coordinator.key", "site": "berlin/site.key"}[command[0]]
    (federation.kits / key).chmod(0o640)
    assert "chmod 600" in told(mdc(*command, (federation.kits / key).parent), 2)


def test_a_federation_that_cannot_be_read(tmp_path: Path) -> None:
    text = told(mdc("provision", "none.toml", "--output", "kits"), 2)
    assert "none.toml: the file cannot be read" in text
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--set", "sed=1"], "Did you mean 'seed'?"),
        (["--set", "seed"], "not of the form key=value"),
        (["none.toml"], "none.toml: the file cannot be read"),
        (["--set", "model=none"], "none"),
        (["--resume", "none"], "there is no run to resume"),
        (["--resume", "none", "--output", "x"], "does not go with --resume"),
    ],
)
def test_a_run_config_that_is_not_usable(
    federation: Federation, arguments: list[str], text: str
) -> None:
    kit = federation.kits / "coordinator"
    assert text in told(mdc("coordinator", "run", kit, *arguments), 2)
    assert not (kit / "state" / "last-run").exists(), "no run was begun"


def test_a_coordinator_that_does_not_run(federation: Federation) -> None:
    kit = federation.kits / "coordinator"
    text = told(mdc("coordinator", "status", kit), 1)
    assert f"Start it: mdc coordinator start {kit}" in text
    wait = ["--set", "wait-for-sites-s=0.001"]
    text = told(mdc("coordinator", "run", kit, *wait, "--output", "runs/a"), 1)
    assert "the coordinator did not run within 0.001 s" in text


@pytest.mark.parametrize(
    ("error", "status"),
    [(QuorumError("too few sites"), 3), (KeyboardInterrupt(), 130), (None, 0)],
)
def test_how_a_run_ends_is_its_exit_status(
    federation: Federation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | None,
    status: int,
) -> None:
    seen: list[str] = []

    def run_on_sites(kit: object, config: object, tell: object) -> None:
        seen.append(config.output_dir)  # type: ignore[attr-defined]
        if error is not None:
            raise error

    monkeypatch.setattr(coordinator, "run_on_sites", run_on_sites)
    kit = federation.kits / "coordinator"
    told(mdc("coordinator", "run", kit, "--output", "runs/a"), status)
    told(mdc("coordinator", "run", kit, "--set", "output-dir=runs/b"), status)
    told(mdc("coordinator", "run", kit), status)
    assert seen[:2] == [str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b")]
    assert Path(seen[2]).parent == kit / "state" / "runs"


def test_a_check_that_fails_is_exit_status_1(federation: Federation) -> None:
    # There is no data set in lisbon's kit, and its coordinator is on no machine.
    text = told(mdc("site", "check", federation.kits / "lisbon"), 1)
    assert "FAILED data: data: no data set is named" in text
    assert f"mdc site check {federation.kits / 'lisbon'}: " in text
    assert "checks failed" in text
