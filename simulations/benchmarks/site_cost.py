"""Benchmark of a round of real sites that train almost nothing: with and without their workers.

A federation with TLS and keys runs on this machine, each site with its own SuperNode. Rounds with
the workers of `mdc site start` alternate with rounds in which Flower's process for each message
trains by itself. Run it with ``python -m simulations.benchmarks.site_cost``.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w
import typer

from mdc_flower.data import load_dataset
from mdc_flower.deployment.kits.kits import SiteKit, read_site_kit
from mdc_flower.deployment.kits.provision import provision
from mdc_flower.deployment.kits.spec import read_federation
from mdc_flower.deployment.site import state_folder
from mdc_flower.deployment.site.node_config import node_config
from mdc_flower.engines.flower_processes import environment, free_port, running, script
from mdc_flower.engines.guardian import guarded
from strategies.common.errors import EngineError
from strategies.storage.run_directory import read_history

NUM_SITES = 3
KINDS = ("with workers", "without workers")


def provision_kits(folder: Path) -> Path:
    """Provision a federation of `NUM_SITES` sites with parts of the digits; return its kits."""
    data = load_dataset("digits")
    federation = {
        "name": "bench",
        "host": "localhost",
        "port": free_port(),
        "listen": "127.0.0.1",
        "contract": {
            "name": data.name,
            "type": str(data.train.inputs.dtype),
            "shape": list(data.input_shape),
            "classes": list(data.class_names),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "coordinator": {"data": ""},
        "site": [
            {
                "name": f"site-{number}",
                "data": "digits",
                "threads": 1,
                "partition-id": number,
                "num-partitions": NUM_SITES,
            }
            for number in range(NUM_SITES)
        ],
    }
    spec = folder / "federation.toml"
    spec.write_text(tomli_w.dumps(federation))
    provision(read_federation(spec), spec, folder / "kits", (), ())
    return folder / "kits"


@contextmanager
def sites(kits: Path, kind: str, env: dict[str, str]) -> Iterator[None]:
    """Run all sites during the block."""
    with ExitStack() as stack:
        for number in range(NUM_SITES):
            kit = read_site_kit(kits / f"site-{number}")
            log = kits.parent / f"{kind}-{number}.log"
            if kind == KINDS[0]:
                command: Sequence[str] = [script("mdc"), "site", "start", str(kit.folder)]
            else:
                command = _supernode(kit)
                stack.enter_context(guarded(kit.state / "flwr"))
            home = {**env, "FLWR_HOME": str(kit.state / "flwr")}
            stack.enter_context(running(command, home, kits.parent, log))
        yield


def _supernode(kit: SiteKit) -> list[str]:
    """Return the command of a site's SuperNode alone."""
    state_folder.open_state(kit)
    config = kit.state / "bench-config.toml"
    config.write_text(tomli_w.dumps(node_config(kit)))
    return [
        sys.executable, "-m", "mdc_flower.deployment.site.supernode",
        "--superlink", kit.address, "--root-certificates", str(kit.ca),
        "--auth-supernode-private-key", str(kit.key),
        "--node-config", str(config), "--port", str(free_port()),
    ]  # fmt: skip


def round_seconds(kits: Path, run_dir: Path, rounds: int, env: dict[str, str]) -> list[float]:
    """Run rounds; return the seconds of each but the first and the last."""
    keys = {
        "model": "mlp", "epochs": "fixed", "local-epochs": 1, "epoch-budget": rounds + 2,
        "min-sites": NUM_SITES,
    }  # fmt: skip
    options = [text for key, value in keys.items() for text in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [script("mdc"), "coordinator", "run", str(kits / "coordinator"), *options,
         "--output", str(run_dir)],
        env=env, cwd=kits.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise EngineError("the run failed", hint=(done.stdout + done.stderr)[-2000:])
    return [line["seconds"] for line in read_history(run_dir)][1:-1]


def bench_sites(rounds: int, repeats: int) -> str:
    """Return a sentence with the seconds per round, with and without workers."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        kits, env = provision_kits(folder), environment(home)
        start = [script("mdc"), "coordinator", "start", str(kits / "coordinator")]
        with running(start, env, folder, folder / "coordinator.log"):
            for number in range(repeats):
                for kind in KINDS:
                    with sites(kits, kind, env):
                        run_dir = folder / f"{kind}-run-{number}"
                        seconds[kind] += round_seconds(kits, run_dir, rounds, env)
    parts = [
        f"{kind} {statistics.median(times):.1f} s (from {min(times):.1f} to {max(times):.1f})"
        for kind, times in seconds.items()
    ]
    return (
        f"rounds of {NUM_SITES} real sites on one machine, a perceptron on a third of the digits "
        f"each, {repeats} interleaved runs of {rounds} counted rounds, per round: "
        f"{', '.join(parts)}"
    )


def main(rounds: int = 5, repeats: int = 2) -> None:
    """Print the seconds of a round of real sites."""
    typer.echo(bench_sites(rounds, repeats))


if __name__ == "__main__":
    typer.run(main)
