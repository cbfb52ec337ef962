"""Helpers for whole runs: a small config, weights, and functions to read and clean up a run."""

import json
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_model
from torch import nn

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.jobs.run_task import load_run_task


def small_config(output_dir: Path, **keys: Any) -> RunConfig:
    """Return a config for digits that trains in seconds."""
    values: dict[str, Any] = {
        "dataset": "digits",
        "model": "mlp",
        "num-sites": 3,
        "epochs": "fixed",
        "local-epochs": 1,
        "epoch-budget": 2,
        "output-dir": str(output_dir),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def summary_of(run_dir: Path) -> dict[str, Any]:
    """Return the contents of a run's ``summary.json``."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def other_weights(file: Path, config: RunConfig) -> str:
    """Write weights for `initial-model` that no seed gives; return the path."""
    model = load_run_task(config).new_model()
    save_model(model.apply(_halve), str(file))
    return str(file)


def _halve(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            parameter.mul_(0.5)


def stop_local_superlink(port: int) -> None:
    """Stop the SuperLink that `flwr run` started on this port and left behind."""
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(port) in line and "--simulation" in line:
            process.terminate()
            process.wait(30)
