"""Rules about imports that import-linter cannot check. `make lint` checks the layers."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("strategies", "mdc_flower", "simulations")


def test_numpy_client_is_imported_in_one_file_only() -> None:
    users = [
        file.name
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if "flwr.client " in file.read_text()
    ]
    assert users == ["client.py"]


PRIVATE_FLOWER = {
    "mdc_flower/engines/in_process.py",  # a grid and messages without a SuperLink
    "mdc_flower/deployment/coordinator/superlink.py",  # a middleware in front of the SuperLink
    "mdc_flower/deployment/site/supernode.py",  # a check of the app instead of Flower's
    "mdc_flower/deployment/site/superexec.py",  # forks in place of new processes
}
"""Files that need something for which Flower has no public module."""

PRIVATE = re.compile(r"^\s*(?:from|import) flwr\.(?!(?:app|clientapp|serverapp|client)\b)", re.M)


def test_private_modules_of_flower_are_imported_only_where_there_is_no_other_way() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if PRIVATE.search(path.read_text(encoding="utf-8"))
    }
    assert found == PRIVATE_FLOWER


PROCESS_THAT_TRAINS = """
import sys
from mdc_flower import server_app  # a process with simulated sites imports it
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.site.resources import site_client
from strategies.method.round_plan import RoundPlan

config = read_run_config({"max-train-examples": 20, "model": "mlp"})
client = site_client(config, read_site_config({"partition-id": 0, "num-partitions": 2}))
plan = RoundPlan(round=1, local_steps=2, lr_max=0.1, lr_min=0.1, seed=1)
client.fit(client.get_parameters({}), dict(plan.to_config_record()))
print([name for name in SLOW if name in sys.modules])
"""


def test_a_process_that_trains_imports_nothing_slow_that_it_does_not_need() -> None:
    """Each worker of a simulation starts like this, and a real site's process for each message."""
    slow = ("torch._dynamo", "sympy", "sklearn", "scipy", "pandas", "matplotlib", "datasets")
    code = f"SLOW = {slow}{PROCESS_THAT_TRAINS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
