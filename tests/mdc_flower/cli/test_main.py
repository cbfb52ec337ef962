"""The command line: exit statuses, messages, precedence, and a small run from end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from mdc_flower.cli.launching import read_config
from mdc_flower.cli.main import app
from mdc_flower.cli.shared import with_exit_status
from mdc_flower.config import RunConfig
from mdc_flower.coordinator.trackers.tensorboard_sink import FOLDER
from strategies.common.errors import ConfigError, DataError, EngineError, QuorumError, RunError
from strategies.round_loop import RoundLoop
from strategies.storage.lock import LOCK, coordinator_lock
from strategies.storage.run_directory import (
    BEST_MODEL,
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    GLOBAL_MODEL,
    HISTORY,
    OPEN_ROUND,
    SUMMARY,
    read_events,
    read_history,
)
from tests.mdc_flower.commands import files_below, mdc, run_small

LAB = """
import numpy as np
from mdc_flower.data import DataSet, Examples

def letters():
    images = Examples(np.zeros((20, 1, 8, 8), np.uint8), np.arange(20) % 10)
    return DataSet("letters", images, images, list("abcdefghij"))
"""


@pytest.fixture(autouse=True)
def cli_lab(process_state: None, tmp_path: Path) -> None:
    """Put a user's own module into the folder that a command works in."""
    (tmp_path / "cli_lab.py").write_text(LAB)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Bad input


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "lr-mx=0.1"], "run config, lr-mx: no such key. Did you mean 'lr-max'?"),
        (["--set", "lr-max=-1"], "run config, lr-max: Input should be greater than 0 (got -1)"),
        (["--set", "batch-size=many"], "run config, batch-size"),
        (["--set", "seed"], "--set: not of the form key=value (got 'seed')"),
        (["--set", "epochs=spread"], "needs both num-rounds and epoch-budget"),
        (["missing.toml"], "missing.toml: the file cannot be read: No such file or directory"),
        (["broken.toml"], "broken.toml: the file is not TOML"),
        (["unknown.toml"], "run config, learning-rate: no such key"),
        (["--set", "dataset=digit"], "dataset: no such data set"),
        (["--set", "dataset=image-folder:photos"], "the path is not absolute"),
        (["--set", "model=small-cn"], "Did you mean 'small-cnn'?"),
        (["--set", "model=torchvision:resnet18"], "the model does not fit the data"),
        (["--set", "device=abacus"], "device: this machine has no such device"),
        (["--set", "partition=natural-id"], "the data set has no natural groups"),
        (["--set", "max-train-examples=4"], "there are more sites than training examples"),
        (["--set", "dataset=cli_lab:no_such"], "has no function 'no_such'"),
        (["--output", "used"], "--output: the directory holds a run already"),
        (["--gpus-per-site", "1000"], "--gpus-per-site: this machine does not have enough GPUs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_with_status_2_before_anything_runs(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    written(tmp_path / "broken.toml", "lr-max 0.1")
    written(tmp_path / "unknown.toml", "learning-rate = 0.1")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / HISTORY).touch()
    before = files_below(tmp_path)
    result = mdc("run", "--engine", "in-process", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stderr.startswith("error: ")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--sites", "0"],
        ["run", "--seed", "-1"],
        ["run", "--engine", "abacus"],
        ["run", "--cpus", "0"],
        ["run", "--no-such-option"],
        ["evaluate"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_options_that_typer_refuses_have_status_2(arguments: list[str]) -> None:
    assert mdc(*arguments).exit_code == 2


def test_without_a_command_the_commands_are_listed() -> None:
    output = mdc("--help").output
    assert all(command in output for command in ("run", "evaluate", "doctor"))


# Exit status


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (ConfigError("no", where="key"), 2, "error: key: no"),
        (DataError("no [red]markup[/red]"), 2, "error: no [red]markup[/red]"),
        (RunError("no"), 1, "error: no"),
        (QuorumError("no"), 3, "error: no"),
        (EngineError("no"), 1, "error: no"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_command_raises_becomes_a_message_and_a_status(
    capsys: pytest.CaptureFixture[str], raised: BaseException, status: int, message: str
) -> None:
    def work() -> None:
        raise raised

    raised.add_note("to resume: [do] this")
    with pytest.raises(typer.Exit) as caught:
        with_exit_status(work)
    assert caught.value.exit_code == status
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{message}\nto resume: [do] this\n")


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_command_that_is_terminated_ends_as_interrupted(kind: signal.Signals) -> None:
    signal.signal(kind, signal.SIG_DFL)
    with pytest.raises(typer.Exit) as caught:
        with_exit_status(lambda: signal.raise_signal(kind))
    assert caught.value.exit_code == 130


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_that_was_ignored_stays_so_but_not_for_what_is_started(
    kind: signal.Signals,
) -> None:
    """As under nohup, and in the background of a shell without job control."""
    signal.signal(kind, signal.SIG_IGN)
    heard = f"import signal; print(signal.getsignal({int(kind)}) is signal.SIG_IGN)"
    told: list[str] = []

    def work() -> None:
        signal.raise_signal(kind)
        told.append(subprocess.check_output([sys.executable, "-c", heard], text=True).strip())

    with_exit_status(work)
    assert told == ["False"]


def test_an_error_of_the_program_itself_is_not_hidden() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with_exit_status(work)


def test_work_that_ends_well_raises_nothing() -> None:
    done: list[int] = []
    with_exit_status(lambda: done.append(1))
    assert done == [1]


# Precedence


def test_an_arm_goes_before_the_defaults_settings_before_the_arm_and_options_before_both(
    tmp_path: Path,
) -> None:
    arm = written(
        tmp_path / "arm.toml",
        'lr-max = 0.5\nbatch-size = 8\nseed = 2\nnum-sites = 2\n[arm]\nname = "x"\n',
    )
    config = read_config(
        arm,
        ["batch-size=16", "seed=3"],
        {"seed": 4, "num-sites": None, "output-dir": "/o"},
        {"num-sites": 5, "lr-max": 0.25},
    )
    expected = {
        "lr-max": 0.5,  # the arm's
        "num-sites": 2,  # the arm's, as the option was not given
        "batch-size": 16,  # --set's
        "seed": 4,  # the option's
        "output-dir": "/o",
    }
    assert config.to_flower() == RunConfig().to_flower() | expected


def test_a_later_setting_of_a_key_replaces_an_earlier_one() -> None:
    assert read_config(None, ["seed=3", "seed=5"], {}, {}).seed == 5


def test_without_anything_there_are_the_commands_defaults_and_a_new_absolute_directory() -> None:
    config = read_config(None, [], {}, {"num-sites": 5})
    assert config.num_sites == 5
    assert Path(config.output_dir).is_absolute()
    assert Path(config.output_dir).parent == Path("runs").absolute()


def test_a_setting_keeps_the_type_of_its_value() -> None:
    settings = ["nesterov=false", "lr-max=1", "model=mlp", "seed=7", "data-root="]
    config = read_config(None, settings, {}, {})
    assert config.nesterov is False
    assert (config.lr_max, config.model, config.seed, config.data_root) == (1.0, "mlp", 7, "")


# A run


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Run two sites in this process, once for all tests that look at what a run leaves."""
    folder = tmp_path_factory.mktemp("cli")
    arm = written(
        folder / "arm.toml", 'model = "mlp"\nseed = 2\nlocal-epochs = 1\nbatch-size = 8\n'
    )
    handler, path, here = signal.getsignal(signal.SIGTERM), list(sys.path), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDC_CACHE_DIR", str(folder / "cache"))
        patch.chdir(folder)
        result = CliRunner().invoke(
            app,
            [
                "run", str(arm), "--set", "max-train-examples=120", "--set", "epoch-budget=2",
                "--set", "ile-epsilon=0.0", "--set", "seed=5", "--seed", "3", "--sites", "2",
                "--engine", "in-process", "--output", "out",
            ],
        )  # fmt: skip
    signal.signal(signal.SIGTERM, handler)
    sys.path[:] = path
    assert Path.cwd() == here
    return folder / "out", result


def test_a_run_ends_with_status_0_and_says_where_everything_is(
    finished_run: tuple[Path, Result],
) -> None:
    run_dir, result = finished_run
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"run directory: {run_dir}"
    assert lines[1] == "2 sites: site-0, site-1"
    assert [line.split(":")[0] for line in lines[2:4]] == ["round 1", "round 2"]
    assert lines[-1] == f"finished; the plots are in {run_dir / 'report.png'}"
    assert len(lines) == 5


def test_a_run_leaves_its_files_and_no_others(finished_run: tuple[Path, Result]) -> None:
    run_dir, _ = finished_run
    files = {CONFIG, HISTORY, EVENTS, SUMMARY, GLOBAL_MODEL, BEST_MODEL, "report.png", LOCK}
    folders = {CHECKPOINTS, OPEN_ROUND} | ({FOLDER} if find_spec("tensorboard") else set())
    assert {path.name for path in run_dir.iterdir()} == files | folders
    # Of the rounds 0, 1 and 2 the two newest, each a model and its description.
    numbers = [path.name.split(".")[0] for path in (run_dir / CHECKPOINTS).iterdir()]
    assert sorted(numbers) == ["000001", "000001", "000002", "000002"]
    assert list((run_dir / OPEN_ROUND).iterdir()) == []


def test_a_runs_config_is_complete_and_effective_and_can_be_run_again(
    finished_run: tuple[Path, Result],
) -> None:
    run_dir, _ = finished_run
    values = tomllib.loads((run_dir / CONFIG).read_text())
    assert list(values) == RunConfig.keys()
    chosen = {key: values[key] for key in ("model", "batch-size", "seed", "num-sites")}
    assert chosen == {"model": "mlp", "batch-size": 8, "seed": 3, "num-sites": 2}
    assert (values["output-dir"], values["resume"]) == (str(run_dir), False)
    assert read_config(run_dir / CONFIG, [], {}, {}).to_flower() == values


def test_a_runs_history_and_summary_agree(finished_run: tuple[Path, Result]) -> None:
    run_dir, _ = finished_run
    history = read_history(run_dir)
    summary = json.loads((run_dir / SUMMARY).read_text())
    # A budget of 2 epochs at 1 a round, which no change of 0 doubles.
    assert [line["plan"]["local_epochs"] for line in history] == [1, 1]
    assert [sorted(line["participants"]) for line in history] == [["site-0", "site-1"]] * 2
    assert (summary["status"], summary["exit-status"]) == ("finished", 0)
    assert (summary["rounds"], summary["epochs"], summary["resumes"]) == (2, 2, [])
    assert summary["final"] == history[-1]["evaluation"]
    # 120 examples at two sites: of each 60, 6 are held out.
    counts = {p["num-examples"] for line in history for p in line["participants"].values()}
    assert counts == {54}


def as_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_evaluate_gives_the_accuracy_of_the_last_round(finished_run: tuple[Path, Result]) -> None:
    run_dir, _ = finished_run
    result = as_json(mdc("evaluate", run_dir))
    last = read_history(run_dir)[-1]["evaluation"]
    assert result["accuracy"] == last["test-accuracy"]
    assert result["loss"] == last["test-loss"]
    assert (result["dataset"], result["num-examples"]) == ("digits", 355)


def test_evaluate_of_the_best_gives_the_accuracy_of_the_round_with_the_best_validation(
    finished_run: tuple[Path, Result],
) -> None:
    run_dir, _ = finished_run
    evaluations = [line["evaluation"] for line in read_history(run_dir)]
    best = max(evaluations, key=lambda e: e["validation-accuracy"])
    result = as_json(mdc("evaluate", run_dir, "--best"))
    assert (result["model"], result["accuracy"]) == (BEST_MODEL, best["test-accuracy"])


def test_evaluate_takes_a_model_file(finished_run: tuple[Path, Result], tmp_path: Path) -> None:
    run_dir, _ = finished_run
    shutil.copy(run_dir / GLOBAL_MODEL, tmp_path / "a.safetensors")
    result = as_json(mdc("evaluate", "a.safetensors", "--data", "digits"))
    assert result["accuracy"] == as_json(mdc("evaluate", run_dir))["accuracy"]


def test_evaluate_on_data_of_other_classes_is_refused(finished_run: tuple[Path, Result]) -> None:
    result = mdc("evaluate", finished_run[0], "--data", "cli_lab:letters")
    assert result.exit_code == 2
    assert "the data set's classes differ from the model's" in result.stderr


def test_evaluate_without_a_run_has_status_1(tmp_path: Path) -> None:
    result = mdc("evaluate", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path / GLOBAL_MODEL) in result.stderr


def test_a_used_directory_is_refused_and_left_as_it_was(finished_run: tuple[Path, Result]) -> None:
    run_dir, _ = finished_run
    before = files_below(run_dir)
    result = mdc("run", run_dir / CONFIG, "--engine", "in-process")
    assert result.exit_code == 2
    assert f"mdc run --resume {run_dir}" in result.stderr
    assert files_below(run_dir) == before


def test_a_run_with_too_few_updates_has_status_3_and_says_why_and_how_to_go_on(
    tmp_path: Path,
) -> None:
    # A learning rate that no weights survive: every reply has values that are not finite.
    options = ["--set", "lr-max=1e30", "--set", "num-rounds=1", "--set", "max-round-retries=1"]
    result = run_small("--output", "out", *options)
    assert result.exit_code == 3
    reason, advice = result.stderr.splitlines()
    assert advice == f"to resume: mdc run --resume {tmp_path / 'out'}"
    assert reason.startswith("error: min-sites: round 1 has too few updates, after 2 attempts ")
    assert "got 0, expected 2 or more" in reason
    assert "site-0: " in reason
    assert "site-1: " in reason
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert (summary["status"], summary["exit-status"]) == ("stopped", 3)
    assert f"error: {summary['error']}" == reason
    assert len(read_events(tmp_path / "out", "round-retried")) == 1
    assert "round 1: 0 updates, 2 needed; retrying" in result.stdout
    (line,) = read_history(tmp_path / "out")
    assert (line["failed"], line["attempts"]) == (True, 2)
    assert line["asked_again"] == ["site-0", "site-1"]


def test_a_run_in_use_is_refused_with_status_1_and_not_tried_again(
    tmp_path: Path, no_pause: list[float]
) -> None:
    assert run_small("--output", "out", "--set", "num-rounds=1").exit_code == 0
    before = files_below(tmp_path / "out")
    with coordinator_lock(tmp_path / "out"):
        held = files_below(tmp_path / "out")
        result = mdc("run", "--resume", "out", "--engine", "in-process")
        assert files_below(tmp_path / "out") == held
    assert result.exit_code == 1
    assert "another coordinator uses this run directory" in result.stderr
    assert "to resume" not in result.stderr
    assert no_pause == []
    assert files_below(tmp_path / "out") == before


def test_a_run_without_an_intact_checkpoint_has_status_1_and_no_advice_to_go_on(
    tmp_path: Path, no_pause: list[float]
) -> None:
    assert run_small("--output", "out", "--set", "num-rounds=1").exit_code == 0
    for description in (tmp_path / "out" / CHECKPOINTS).glob("*.json"):
        written(description, "")
    result = mdc("run", "--resume", "out", "--engine", "in-process")
    assert result.exit_code == 1
    assert "no checkpoint is intact" in result.stderr
    assert "to resume" not in result.stderr
    assert no_pause == []


def test_a_run_that_is_interrupted_has_status_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: object, **kwargs: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(RoundLoop, "start", start)
    result = run_small("--output", "out", "--set", "num-rounds=1")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        "interrupted",
        f"to resume: mdc run --resume {tmp_path / 'out'}",
    ]
    assert json.loads((tmp_path / "out" / SUMMARY).read_text())["status"] == "interrupted"


# An engine that dies, without an engine


def ray_does(monkeypatch: pytest.MonkeyPatch, *outcomes: BaseException | None) -> list[RunConfig]:
    """Let each start on Ray end so; return the list of the configs it was started with."""
    started: list[RunConfig] = []

    def run_on_ray(config: RunConfig, num_sites: int, num_cpus: int, share: float) -> None:
        started.append(config)
        outcome = outcomes[len(started) - 1]
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("mdc_flower.engines.ray_superlink.run_on_ray", run_on_ray)
    return started


def test_an_engine_that_dies_is_started_again_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_pause: list[float]
) -> None:
    started = ray_does(monkeypatch, EngineError("the SuperLink died"), None)
    result = mdc("run", "--set", "model=mlp", "--output", "out")
    assert result.exit_code == 0, result.output
    assert [config.resume for config in started] == [False, True]
    assert result.stderr.splitlines() == [
        "the run died: the SuperLink died",
        "restart 1 of 3 in 1 s",
    ]
    assert no_pause == [1.0]
    assert result.stdout.splitlines()[-1].startswith("finished")


def test_an_engine_that_dies_too_often_has_status_1(
    monkeypatch: pytest.MonkeyPatch, no_pause: list[float]
) -> None:
    started = ray_does(monkeypatch, *[EngineError("no")] * 2)
    result = mdc("run", "--set", "model=mlp", "--set", "max-restarts=1")
    assert result.exit_code == 1
    assert "the run died 2 times without finishing a round: no (got 1)" in result.stderr
    assert "to resume" not in result.stderr  # it never began
    assert len(started) == 2


def test_a_run_interrupted_before_its_coordinator_could_say_so_is_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    written(tmp_path / "out" / SUMMARY, '{"status": "running", "seed": 1}')
    ray_does(monkeypatch, KeyboardInterrupt())
    assert mdc("run", "--set", "model=mlp", "--output", "out").exit_code == 130
    assert json.loads((tmp_path / "out" / SUMMARY).read_text()) == {
        "status": "interrupted", "seed": 1, "exit-status": 130, "restart": False
    }  # fmt: skip


def test_a_users_own_module_is_found_in_the_current_folder() -> None:
    result = mdc(
        "run", "--engine", "in-process", "--sites", "2", "--output", "out", "--set", "model=mlp",
        "--set", "epoch-budget=1", "--set", "dataset=cli_lab:letters",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


# The doctor


def test_the_doctor_is_content_where_the_tests_run(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = shutil.disk_usage(os.sep)._replace(free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: roomy)
    result = mdc("doctor")
    assert result.exit_code == 0, result.output
    assert "ok      data set digits: 1442 training and 355 test examples" in result.stdout
    assert "FAILED" not in result.stdout


def test_the_doctor_fails_for_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    result = mdc("doctor", "--data", "cifar10", "--data-root", tmp_path)
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "data set cifar10" in line]
    assert line.startswith("FAILED  data set cifar10: ")
    assert str(tmp_path) in line
    assert "mdc doctor: 1 check failed" in result.stderr
