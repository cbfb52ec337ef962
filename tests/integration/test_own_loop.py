"""Real sites that train with a command of their own: `mdc site start`, kits, worker, TLS."""

import sys
from pathlib import Path

import pytest

from strategies.storage.run_directory import read_history
from tests.integration.conftest import summary_of
from tests.integration.real_sites import RealSites, real_sites
from tests.own_loop import EXAMPLES, write_digits

pytestmark = pytest.mark.integration

SETTINGS = {
    "model": "tests.own_loop:softmax",
    "epochs": "fixed",
    "local-epochs": "4",
    "epoch-budget": "8",
    "round-deadline-s": "120.0",
}


def give_commands(sites: RealSites) -> None:
    """Replace the data of each site by a command."""
    for number, site in enumerate(sites.federation["site"]):
        path = sites.folder / f"digits-{number}.npz"
        count = write_digits(path, number, len(sites.names))
        site.clear()
        site |= {
            "name": sites.names[number],
            "command": f"{EXAMPLES / 'job.sh'} {path}",
            "min-examples": count,
            "max-examples": count,
        }
    sites.provision()


def test_two_real_sites_train_with_a_job_in_bash_and_numpy(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with real_sites(
        tmp_path, num_sites=2, coordinator_data="digits", variables={"PYTHON": sys.executable}
    ) as sites:
        give_commands(sites)
        sites.start_coordinator()
        for name in sites.names:
            sites.start_site(name)
        sites.run(run_dir, SETTINGS)
        for name in sites.names:
            assert "it trains with its own data" in sites.log(name)
            assert "round 2: the site's command trains, 4 epochs" in sites.log(name)
            assert "round 2: the command trained in" in sites.log(name)
    history = read_history(run_dir)
    assert [sorted(line["participants"]) for line in history] == [sites.names] * 2
    assert history[-1]["evaluation"]["test-accuracy"] > 0.85
    assert summary_of(run_dir)["status"] == "finished"
