"""Whole runs for fault tests: in this process, or in a child process that a test can kill."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.in_process import run_in_process
from strategies.common.errors import RunError
from strategies.storage.run_directory import GLOBAL_MODEL
from tests.faults import injector
from tests.tiny import KEYS

JOB = "tests.tiny_jobs:classification"
"""A job of the user's own: what happens after a fault must not depend on the kind of job."""

NUM_SITES = 3
NUM_ROUNDS = 3

# Children are forked from a server that has already imported the slow modules. It has no threads
# that a fork could lose.
_children = get_context("forkserver")
_children.set_forkserver_preload(
    ["mdc_flower.server_app", "mdc_flower.site.answers", "tests.tiny_jobs", "tests.faults.injector"]
)


def config_in(run_dir: Path, **keys: Any) -> RunConfig:
    """Return a config for three tiny rounds with three sites."""
    values = {
        **KEYS,
        "job": JOB,
        "epoch-budget": NUM_ROUNDS,
        "num-sites": NUM_SITES,
        "output-dir": str(run_dir),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def sha256(run_dir: Path) -> str:
    """Return the SHA-256 of a run's global model file."""
    return hashlib.sha256((run_dir / GLOBAL_MODEL).read_bytes()).hexdigest()


def resumed(config: RunConfig, **keys: Any) -> RunConfig:
    """Return the config that resumes the run."""
    return config.model_copy(update={"resume": True, **keys})


def run_child(
    config: RunConfig, faults: Sequence[injector.Fault] = (), num_sites: int = NUM_SITES
) -> int:
    """Run in a child process; return its exit status, which is negative after a signal."""
    with child(config, faults, num_sites) as process:
        process.join(600)
        assert process.exitcode is not None, "the child hangs"
        return process.exitcode


@contextmanager
def child(
    config: RunConfig, faults: Sequence[injector.Fault] = (), num_sites: int = NUM_SITES
) -> Iterator[BaseProcess]:
    """Run in a child process during the block; kill it at the end of the block."""
    folder = Path(config.output_dir).parent / "faults"
    variables = injector.plan(folder, faults) if faults else {}
    variables["MDC_CACHE_DIR"] = os.environ["MDC_CACHE_DIR"]
    process = _children.Process(target=_run, args=(config.to_flower(), num_sites, variables))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_until(condition: Callable[[], object], patience_s: float = 300.0) -> None:
    """Wait until the condition holds. It may raise while files do not exist yet."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (OSError, RunError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"the condition did not hold within {patience_s:g} s")


def _run(values: Mapping[str, Any], num_sites: int, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    run_in_process(read_run_config(values), num_sites)
