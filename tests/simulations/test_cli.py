"""`mdc compare`: what it refuses, and what it leaves."""

import csv
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from simulations.arm import ARMS_DIR, load_arm
from simulations.cli import app
from simulations.job_files import RESULT, claim, description, write_result
from simulations.outcome import Outcome
from simulations.provenance import hardware, versions
from simulations.results_files import COMPARISON
from tests.simulations import made_up

SHARED: dict[str, Any] = {"model": "mlp", "num-sites": 2, "epoch-budget": 4}
FILE = """
name = "two arms"
arms = ["centralized", "fedavg", "co-learning"]
num-seeds = 7

[config]
model = "mlp"
num-sites = 2
epoch-budget = 6
"""


@pytest.fixture(autouse=True)
def process_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in a folder of the test's own, and give back what a command changes in its process."""
    (tmp_path / "two.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def mdc(*arguments: str) -> Result:
    """Run the command; whatever it raises beside an exit status is a failure of the test."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.toml"], "missing.toml: the file cannot be read"),
        (["two.toml", "--split", "train"], "--split: no such split (got 'train', expected test or"),
        (["two.toml", "--set", "lr-mx=1"], "lr-mx: no such key. Did you mean 'lr-max'?"),
        (
            ["two.toml", "--set", "epochs=ile"],
            "--set, epochs: an arm has a value of its own, which goes before "
            "(got 'ile', expected 'fixed', as centralized has it)",
        ),
        (["two.toml", "--set", "seed=7"], "--set, seed: every job has its own"),
        (["two.toml", "--set", "num-rounds=2"], "equal numbers of passes over the data"),
        (["two.toml", "--set", "seed"], "--set: not of the form key=value"),
        (["two.toml", "--set", "dataset=digit"], "no such data set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_with_status_2(arguments: list[str], named: str) -> None:
    result = mdc("compare", *arguments, "--output", "out")
    assert result.exit_code == 2
    assert named in result.stderr
    assert not list(Path("out").rglob("*.*"))


@pytest.mark.parametrize("option", ["--seeds", "--workers"])
def test_numbers_below_1_are_refused(option: str) -> None:
    assert mdc("compare", "two.toml", option, "0").exit_code == 2


def stored(output: Path, arm: str, seed: int, outcome: Outcome, **more: Any) -> None:
    """Leave a result as a finished job does."""
    folder = output / arm / f"seed-{seed}"
    one = load_arm(arm, ARMS_DIR, {})
    config = one.config(SHARED, seed=seed, output_dir=str(folder), **more)
    job = description(one.table.kind, config)
    claim(folder, job)
    write_result(folder, job, outcome)


def outcome(final: float, rounds: int) -> Outcome:
    sent = {"sent_bytes": rounds * 250_000, "received_bytes": rounds * 750_000, "seconds": 2.0}
    points = [
        made_up.point(2, 0.5),
        made_up.point(4, final, round=rounds, exchanges=rounds, **sent),
    ]
    return Outcome(points)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Compare arms of which every result is there already, once: nothing is trained."""
    folder = tmp_path_factory.mktemp("compared")
    output = folder / "out"
    for seed, shift in ((1, 0.0), (2, 0.5)):
        stored(output, "centralized", seed, outcome(0.375 + shift, 0))
        stored(output, "co-learning", seed, outcome(0.25 + shift, 2 + seed))
        # It takes its rounds from co-learning, seed by seed, whatever order they stand in.
        stored(output, "fedavg", seed, outcome(0.25, 2 + seed), num_rounds=2 + seed)
    # One of them comes from another machine.
    path_of_one = output / "centralized" / "seed-1" / RESULT
    one = json.loads(path_of_one.read_text())
    other = {"hardware": "another machine", "versions": {**one["versions"], "torch": "0.1"}}
    path_of_one.write_text(json.dumps({**one, **other}))
    handler, path = signal.getsignal(signal.SIGTERM), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDC_CACHE_DIR", str(folder / "cache"))
        patch.chdir(folder)
        (folder / "two.toml").write_text(FILE)
        # The options go before the file, which has seven seeds and a budget of 6.
        options = ["--seeds", "2", "--set", "epoch-budget=4", "--workers", "1", "--title", "arms"]
        arguments = ["compare", "two.toml", "--output", "out", *options]
        patch.setattr(sys, "argv", ["/usr/bin/mdc", *arguments])
        result = mdc(*arguments)
    signal.signal(signal.SIGTERM, handler)
    sys.path[:] = path
    return output, result


def test_a_comparison_leaves_its_table_its_lines_and_its_picture(
    compared: tuple[Path, Result],
) -> None:
    output, result = compared
    assert result.exit_code == 0, result.output
    # Centralized: 0.375 and 0.875, mean 0.625, deviation 0.5 / sqrt(2), t(0.975, 1) = 12.70620;
    # half width 12.70620 * 0.5 / 2 = 3.17655. FedAvg: 0.25 twice, no width; differences -0.125
    # and -0.625, of the width of centralized. Co-learning: -0.125 twice.
    table = (output / "table.md").read_text()
    assert table.splitlines()[:7] == [
        "### arms",
        "",
        "| arm | test accuracy, % | difference to centralized, points | exchanges "
        "| sent, MB | received, MB | of per-step bytes | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| centralized | 62.50 ± 317.66 |  | 0 | 0.0 | 0.0 | 0 | 2.0 |",
        # 1,442 digits less 2 times 72 held out, in batches of 2 times 32: 21 steps a pass, 4
        # passes; 4,810 parameters of 4 bytes to and from 2 sites: 6.5 MB.
        "| FedAvg | 25.00 ± 0.00 | -37.50 ± 317.66 | 3.5 | 0.9 | 2.6 | 1/2 | 2.0 |",
        "| co-learning | 50.00 ± 317.66 | -12.50 ± 0.00 | 3.5 | 0.9 | 2.6 | 1/2 | 2.0 |",
    ]
    assert "Mean over 2 seeds" in table
    assert table in result.stdout

    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["arm"] for row in rows] == ["centralized", "FedAvg", "co-learning"]
    assert [float(row["accuracy"]) for row in rows] == [0.625, 0.25, 0.5]
    assert float(rows[0]["accuracy_ci95"]) == pytest.approx(3.176551, rel=1e-6)
    assert [float(row["difference"]) for row in rows] == [0.0, -0.375, -0.125]
    assert [float(row["sent_megabytes"]) for row in rows] == [0.0, 0.875, 0.875]
    assert [float(row["received_megabytes"]) for row in rows] == [0.0, 2.625, 2.625]

    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 2 * 2
    assert lines[1] == {"arm": "centralized", "seed": 1, **asdict(outcome(0.375, 0).final)}

    facts = json.loads((output / COMPARISON).read_text())
    assert facts["command"] == (
        "mdc compare two.toml --output out --seeds 2 --set epoch-budget=4 --workers 1 --title arms"
    )
    assert (facts["split"], facts["seeds"], facts["tuning"]) == ("test", [1, 2], None)

    assert facts["hardware"] == "; ".join(sorted([hardware(), "another machine"]))
    assert facts["versions"] == {**versions(), "torch": f"0.1; {versions()['torch']}"}

    for name in ("curves.png", "frontier.png"):
        image = Image.open(output / name)
        image.load()
        # 8 by 4.8 inches at 130 dots an inch
        assert (image.format, image.size) == ("PNG", (1040, 624))


def test_progress_is_a_line_for_each_job(compared: tuple[Path, Result]) -> None:
    output, result = compared
    lines = result.stdout.splitlines()
    assert lines[0] == "arms: 3 arms, 2 seeds"
    assert [line.split(":")[0] for line in lines[1:7]] == [f"{i} of 6" for i in range(1, 7)]
    assert {line.split(": ")[1].split(", seed")[0] for line in lines[5:7]} == {"FedAvg"}
    assert lines[-1] == f"picture: {output / 'curves.png'}"
