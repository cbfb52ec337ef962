import os
from pathlib import Path

import pytest
from rich.console import Console

from mdc_flower.cli.launching import read_config, resumed_config, run_supervised
from mdc_flower.config import RunConfig, read_run_config
from strategies.common.errors import ConfigError, EngineError, QuorumError, RunError
from strategies.common.files import DamagedError

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture
def consoles() -> tuple[Console, Console]:
    return Console(quiet=True), Console(quiet=True)


def test_later_homes_of_a_key_go_before_earlier_ones(tmp_path: Path) -> None:
    arm = tmp_path / "arm.toml"
    arm.write_text('seed = 2\nmodel = "mlp"\nlocal-epochs = 2\n[arm]\nsummary = "x"\n')
    config = read_config(
        arm,
        ["local-epochs=3", "seed=3"],
        {"seed": 4, "num-sites": None},
        {"seed": 1, "num-sites": 7},
    )
    assert (config.seed, config.local_epochs, config.model, config.num_sites) == (4, 3, "mlp", 7)


@pytest.mark.parametrize("text", ["runs/x", "./runs/x", "~/x"])
def test_a_path_of_a_run_means_here_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "runs"))
    arm = tmp_path / "arm.toml"
    arm.write_text(f'output-dir = "{text}"\n')
    for config in (
        read_config(arm, [], {}, {}),
        read_config(None, [f"output-dir={text}"], {}, {}),
        read_config(None, [], {}, {"output-dir": text}),
    ):
        assert config.output_dir == str(tmp_path / "runs" / "x")


def test_a_new_run_has_a_directory_of_its_own_below_runs() -> None:
    path = Path(read_config(None, [], {}, {}).output_dir)
    assert (path.is_absolute(), path.parent) == (True, Path("runs").absolute())


def test_what_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    for arm, settings, text in [
        (tmp_path / "none.toml", [], "the file cannot be read"),
        (None, ["seed"], "not of the form key=value"),
        (None, ["sed=1"], "Did you mean 'seed'"),
    ]:
        with pytest.raises(ConfigError, match=text) as caught:
            read_config(arm, settings, {}, {})
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("arm", "settings", "name"),
    [
        (Path("a.toml"), [], "ARM"),
        (None, ["output-dir=/o"], "output-dir"),
        (None, ["resume=true"], "resume"),
    ],
)
def test_what_does_not_go_with_resume(
    tmp_path: Path, arm: Path | None, settings: list[str], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: does not go with --resume"):
        resumed_config(tmp_path, arm, settings, {})


def test_there_must_be_a_run_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run to resume"):
        resumed_config(tmp_path / "none", None, [], {})


def test_a_run_may_die_again_after_every_round_that_it_has_finished(
    tmp_path: Path, consoles: tuple[Console, Console], no_pause: list[float]
) -> None:
    history = tmp_path / "run" / "history.jsonl"
    history.parent.mkdir()
    launches: list[RunConfig] = []

    def launch(config: RunConfig) -> None:
        launches.append(config)
        with history.open("a") as lines:
            lines.write('{"round": 1}\n')
        if len(launches) < 6:
            raise EngineError("the SuperLink died")

    config = read_run_config({"output-dir": str(history.parent), "max-restarts": 1})
    run_supervised(config, launch, "mdc run", *consoles)
    assert len(launches) == 6


def test_a_path_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for settings, options in (
        ([f"dataset=image-folder:{path}"], {}),
        ([], {"output-dir": path}),
    ):
        with pytest.raises(ConfigError, match=r"the value is not UTF-8 .*caf\\+xe9") as caught:
            read_config(None, settings, options, {})
        str(caught.value).encode()


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (QuorumError("too few"), True),
        (RunError("no"), True),
        (KeyboardInterrupt(), True),
        (ConfigError("bad"), False),
        (DamagedError("torn"), False),
    ],
)
def test_how_to_go_on_is_told_where_that_can_help(
    tmp_path: Path, consoles: tuple[Console, Console], error: BaseException, is_told: bool
) -> None:
    run_dir = tmp_path / "a run"
    (run_dir / "checkpoints").mkdir(parents=True)

    def launch(config: RunConfig) -> None:
        raise error

    config = read_run_config({"output-dir": str(run_dir)})
    with pytest.raises(type(error)) as caught:
        run_supervised(config, launch, "mdc coordinator run kit", *consoles)
    notes = [f"to resume: mdc coordinator run kit --resume '{run_dir}'"] if is_told else []
    assert getattr(caught.value, "__notes__", []) == notes
