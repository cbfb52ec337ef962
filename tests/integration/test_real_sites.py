"""Two sites with TLS and node keys lose the coordinator and a site; the bits are the same.

The tests start the same processes as operators, from provisioned kits: `mdc coordinator start`,
`mdc site start` and `mdc coordinator run`.
"""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from mdc_flower.cli.shared import INTERRUPTED
from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import run_in_process
from strategies.storage.run_directory import GLOBAL_MODEL, read_events, read_history
from tests import tiny_jobs
from tests.faults.injector import Fault, plan
from tests.integration.conftest import other_weights, small_config, summary_of
from tests.integration.real_sites import RealSites, real_sites

pytestmark = pytest.mark.integration

SETTINGS = {"model": "mlp", "epochs": "fixed", "local-epochs": "1", "epoch-budget": "3"}
PATIENCE_S = 600.0


def sha256(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / GLOBAL_MODEL).read_bytes()).hexdigest()


def settings(**keys: str) -> list[str]:
    """Return options of `mdc coordinator run` for a short run."""
    pairs = {**SETTINGS, "round-deadline-s": "120.0", **keys}
    return [text for key, value in pairs.items() for text in ("--set", f"{key}={value}")]


def answered(run_dir: Path, round_number: int) -> set[str]:
    """Return the sites whose updates were accepted in a round."""
    events = read_events(run_dir, "site-answered")
    return {e["site"] for e in events if e["round"] == round_number and not e["dropped"]}


def test_a_run_that_loses_coordinator_and_site_gives_the_bits_of_a_simulation(
    tmp_path: Path,
) -> None:
    # One site is slow, so that the coordinator dies in the middle of a round.
    slow = Fault("training", "hang", {"round": 2, "site": "site-1"}, seconds=8.0)
    killed = Fault("training", "kill", {"round": 1, "site": "site-0"})  # its worker
    run_dir, simulated = tmp_path / "run", tmp_path / "simulated"
    with real_sites(
        tmp_path,
        num_sites=2,
        coordinator_data="digits",
        variables=plan(tmp_path / "faults", [slow, killed]),
    ) as sites:
        coordinator = sites.start_coordinator()
        leaving, _ = [sites.start_site(name) for name in sites.names]
        running = sites.start(
            "run", "coordinator", "run", str(sites.kit("coordinator")),
            *settings(), "--seed", "1", "--output", str(run_dir),
        )  # fmt: skip
        sites.wait(lambda: answered(run_dir, 2), PATIENCE_S, "run")
        sites.kill_coordinator(coordinator)
        sites.start_coordinator()
        # The run continues by itself. Meanwhile a site is stopped and started again.
        sites.wait(lambda: len(read_history(run_dir)) == 2, PATIENCE_S, "run")
        leaving.terminate()
        assert leaving.wait(30) == INTERRUPTED
        sites.start_site("site-0")
        assert running.wait(PATIENCE_S) == 0, sites.log("run")

        told = sites.mdc("coordinator", "status", str(sites.kit("coordinator"))).stdout
        for name in sites.names:
            assert re.search(rf"{name} .* online .* 0\.1\.0 .* 3 ", told), told
        _check_that_nothing_private_is_written(sites, run_dir)

    run_in_process(small_config(simulated, epoch_budget=3, num_sites=2), 2)
    assert sha256(run_dir) == sha256(simulated)
    history = read_history(run_dir)
    assert [sorted(line["participants"]) for line in history] == [sites.names] * 3
    assert history[0]["asked_again"] == ["site-0"]
    assert "the worker ended (SIGKILL); it is started again" in sites.log("site-0")
    assert [event["rounds_done"] for event in summary_of(run_dir)["resumes"]] == [1]
    assert "the run died: " in sites.log("run")
    assert re.search(r"round 1: epoch 1 of 1, step 21 of 21, learning rate", sites.log("site-0"))


def _check_that_nothing_private_is_written(sites: RealSites, run_dir: Path) -> None:
    """Search all written files for keys and for the location of a site's data."""
    secrets = {"the location of the data": b"/srv/secret-place"}
    for key in sites.kits.rglob("*.key"):
        lines = key.read_text().splitlines()[1:-1]
        secrets[str(key)] = lines[len(lines) // 2].encode()
        assert base64.b64decode("".join(lines)), "the key is base64 as expected"
    # What a site's own operators see about their data stays in the kit itself.
    places = [run_dir, sites.kit("coordinator"), *(sites.kit(n) / "state" for n in sites.names)]
    read = [
        path
        for path in [
            *(p for place in places for p in place.rglob("*")),
            *sites.folder.glob("*.log"),
        ]
        if path.is_file() and path.suffix != ".key" and path.name != "node-config.toml"
    ]
    logs = {path.name for path in read}
    assert logs >= {
        "history.jsonl", "events.jsonl", "summary.json", "report.png", "engine.log",
        "superlink.log", "supernode.log", "superlink.db", "site-0.log", "run.log",
    }  # fmt: skip
    for path in read:
        content = path.read_bytes()
        for what, secret in secrets.items():
            assert secret not in content, f"{path} contains {what}"


@pytest.mark.slow
@pytest.mark.parametrize("job", ["labels", "pixels", "texts"])
def test_each_other_shipped_job_gives_the_bits_and_metrics_of_a_simulation(
    job: str, tmp_path: Path
) -> None:
    """Regression runs between real sites in test_jobs_doc.py."""
    reference, run_dir, simulated = f"tests.tiny_jobs:{job}", tmp_path / "run", tmp_path / "here"
    keys = {**tiny_jobs.KEYS, "job": reference, "site-evaluation": True, "num-sites": 2}
    # The sites do not have this file: they get its weights as the first model.
    keys["initial-model"] = other_weights(tmp_path / "weights", read_run_config(keys))
    with real_sites(tmp_path, num_sites=2, job=reference) as sites:
        sites.start_coordinator()
        for name in sites.names:
            sites.start_site(name)
        weights = {"initial-model": keys["initial-model"]}
        kit, options = str(sites.kit("coordinator")), settings(**{"epoch-budget": "2", **weights})
        done = sites.mdc(
            "coordinator", "run", kit, *options, "--seed", "1", "--output", str(run_dir)
        )
        assert done.returncode == 0, done.stdout + done.stderr
    run_in_process(read_run_config({**keys, "output-dir": str(simulated)}), 2)
    assert sha256(run_dir) == sha256(simulated)
    real, here = (
        [line["site_evaluation"] for line in read_history(one)] for one in (run_dir, simulated)
    )
    assert real == here
    told = [summary_of(one)["initial-model"]["sha256"] for one in (run_dir, simulated)]
    assert told[0] == told[1]
