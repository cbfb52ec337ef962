"""`mdc compare`: what it refuses, and what it leaves."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import simulations.cli  # noqa: F401  # adds its commands to the app
from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.job_files import RESULT, claim, description, write_result
from simulations.compare.provenance import hardware, versions
from simulations.pages.drawing import CSV_TABLE, CURVES, EXCHANGES, TABLE
from simulations.results.outcome import Outcome
from simulations.results.result_files import COMPARISON, RESULTS, read_results
from tests.mdc_flower.commands import mdc, process_state
from tests.simulations import made_up

__all__ = ["process_state"]

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
def file(process_state: None) -> None:
    """Work in a folder of the test's own, with a comparison's file in it."""
    Path("two.toml").write_text(FILE)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.toml"], "missing.toml: the file cannot be read"),
        (["two.toml", "--split", "train"], "--split: no such split (got 'train', expected test or"),
        (["two.toml", "--set", "lr-mx=1"], "lr-mx: no such key. Did you mean 'lr-max'?"),
        (
            ["two.toml", "--set", "epochs=ile"],
            "--set, epochs: an arm sets this key itself, which takes precedence "
            "(got 'ile', expected 'fixed', the value of the arm centralized)",
        ),
        (["two.toml", "--set", "seed=7"], "--set, seed: the comparison sets this key for each job"),
        (["two.toml", "--set", "num-rounds=1"], "may end before it has used the budget"),
        (["two.toml", "--set", "local-steps=2"], "local-steps counts steps, but epoch-budget 6"),
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


def test_a_comparison_leaves_its_table_its_lines_and_its_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every result is there already: nothing is trained.
    output = Path("out").absolute()
    for seed, shift in ((1, 0.0), (2, 0.5)):
        stored(output, "centralized", seed, outcome(0.375 + shift, 0))
        stored(output, "co-learning", seed, outcome(0.25 + shift, 2 + seed))
        # It takes its rounds from co-learning, seed by seed, whatever order they stand in.
        stored(output, "fedavg", seed, outcome(0.25, 2 + seed), num_rounds=2 + seed)
    # One of them comes from another machine.
    one = output / "centralized" / "seed-1" / RESULT
    other = {"hardware": "another machine", "versions": {**versions(), "torch": "0.1"}}
    one.write_text(json.dumps(json.loads(one.read_text()) | other))

    # The options go before the file, which has seven seeds and a budget of 6.
    command = "mdc compare two.toml --output out --seeds 2 --set epoch-budget=4 --workers 1"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mdc", *command.split()[1:]])
    result = mdc(*command.split()[1:], "--title", "arms")
    assert result.exit_code == 0, result.output

    # Centralized: 0.375 and 0.875, mean 0.625, deviation 0.5 / sqrt(2), t(0.975, 1) = 12.70620;
    # half width 12.70620 * 0.5 / 2 = 3.17655. FedAvg: 0.25 twice, no width; differences -0.125
    # and -0.625, of the width of centralized. Co-learning: -0.125 twice.
    table = (output / "table.md").read_text()
    assert table.startswith("### arms\n")
    assert table.splitlines()[4:7] == [
        "| centralized | 62.50 ± 317.66 |  | 0 | 0.0 | 0 | 2.0 |",
        # The results are of a version that did not count steps.
        # 1,442 digits less 2 times 72 held out, in batches of 2 times 32: 21 steps a pass, 4
        # passes; 4,810 parameters of 4 bytes to and from 2 sites: 6.5 MB.
        "| FedAvg | 25.00 ± 0.00 | -37.50 ± 317.66 | 3.5 | 3.5 | 54.14 | 2.0 |",
        "| co-learning | **50.00 ± 317.66** | -12.50 ± 0.00 | 3.5 | 3.5 | 54.14 | 2.0 |",
    ]
    assert table in result.stdout
    written = read_results(output)
    assert written.outcomes["centralized"][1] == outcome(0.375, 0)
    facts = written.facts
    assert (facts.command, facts.split, facts.seeds, facts.tuning) == (
        command,
        "test",
        [1, 2],
        None,
    )
    assert facts.hardware == "; ".join(sorted([hardware(), "another machine"]))
    assert facts.versions == {**versions(), "torch": f"0.1; {versions()['torch']}"}
    assert {path.name for path in output.iterdir() if path.is_file()} == {
        COMPARISON, RESULTS, TABLE, CSV_TABLE, CURVES, EXCHANGES
    }  # fmt: skip

    lines = result.stdout.splitlines()
    assert lines[0] == "arms: 3 arms, 2 seeds"
    assert lines[4] == "reported seeds: 1, 2"
    assert lines[5] == "6 jobs, all of them finished"
    assert lines[6].startswith(
        "few seeds: with 2, the half-width of a 95% interval is 9.0 standard"
    )
    assert [line.split(":")[0] for line in lines[7:13]] == [f"{i} of 6" for i in range(1, 7)]
    assert {line.split(": ")[1].split(", seed")[0] for line in lines[11:13]} == {"FedAvg"}
    assert lines[-1] == f"picture: {output / CURVES}"


def test_without_a_file_it_names_those_that_are_shipped_and_trains_nothing() -> None:
    result = mdc("compare")
    assert result.exit_code == 2
    assert "COMPARISON: no comparison given" in result.stderr
    assert "digits, digits-arms" in result.stderr
    assert "mdc compare digits" in result.stderr
    assert not Path("runs").exists()


def test_a_shipped_comparison_is_found_by_its_name() -> None:
    result = mdc("compare", "digits", "--seeds", "1", "--arm", "nobody")
    assert result.exit_code == 2
    assert "one of: centralized, centralized-equal-steps" in result.stderr.replace("expected ", "")


TUNED = (
    FILE
    + """
[tuning]
num-seeds = 2

[tuning.grid]
lr-max = [0.05, 0.1]
"""
)


def test_a_check_tells_all_that_would_be_run_and_how_long_and_trains_nothing() -> None:
    Path("tuned.toml").write_text(TUNED)
    result = mdc("compare", "tuned.toml", "--check", "--seeds", "1", "--output", "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:6] == [
        "two arms: 3 arms, 1 seeds",
        "  centralized, 2 candidates",
        "  fedavg: FedAvg, 2 candidates",
        "  co-learning, 2 candidates",
        "reported seeds: 1",
        "seeds for choosing candidates: 101, 102",
    ]
    # Of three arms, two candidates with two seeds, and the seed that is reported.
    assert re.match(
        r"15 jobs: about .* with \d+ workers? \(measured here: .* ms for a step of 32", lines[6]
    )
    assert lines[7].startswith("few seeds: 1 gives no interval")
    assert len(lines) == 8
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('"co-learning"]', '"co-learning", "nope"]'),
        ("lr-max = [0.05, 0.1]", "lr-max = [0.05, -0.1]"),
        ('model = "mlp"', 'model = "mpl"'),
    ],
    ids=["arm", "candidate", "model"],
)
def test_a_check_finds_what_is_wrong(text: str, named: str) -> None:
    Path("tuned.toml").write_text(TUNED.replace(text, named))
    assert mdc("compare", "tuned.toml", "--check", "--output", "out").exit_code == 2
    assert not Path("out").exists()
