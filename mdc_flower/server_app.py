"""The ServerApp: config -> task -> strategy -> run, recorded in the run directory."""

import json
import time
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import nn

from mdc_flower import __version__
from mdc_flower.batches import Tensors
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.data import CoordinatorData
from mdc_flower.numerics import repeatable
from mdc_flower.report import draw_run
from mdc_flower.site_client import load_arrays, model_arrays
from mdc_flower.task import Task, load_task
from mdc_flower.training import evaluate
from strategies.colearning import CoLearning, EvaluateFn
from strategies.errors import RunError
from strategies.journal import CONFIG, SUMMARY, RunDirectory, read_history
from strategies.messages import arrays_to_record, record_to_arrays
from strategies.roster import Roster, wait_for_sites

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation's training from beginning to end."""
    config = read_run_config(context.run_config)
    run_dir = Path(config.output_dir.replace("{run-id}", str(context.run_id))).expanduser()
    task = load_task(config)
    record = RunDirectory(run_dir, task.model_metadata())
    record.write_text(CONFIG, tomli_w.dumps(config.to_flower()))
    started = time.time()
    summary: dict[str, Any] = {
        "status": "running",
        "version": __version__,
        "seed": config.seed,
        "started": started,
    }
    try:
        summary |= _run(grid, task, record)
        summary |= {"status": "finished", "seconds": round(time.time() - started, 3)}
        (run_dir / "report.png").write_bytes(draw_run(read_history(run_dir)))
    except BaseException as error:
        summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        record.write_text(SUMMARY, json.dumps(summary, indent=2) + "\n")
        record.event("run-ended", status=summary["status"], error=summary.get("error"))


def _run(grid: Grid, task: Task, record: RunDirectory) -> dict[str, Any]:
    """Train, and return what belongs into the summary."""
    config = task.config
    model = task.new_model()
    roster = wait_for_sites(
        grid,
        config.num_sites or None,
        config.wait_for_sites_s,
        lambda roster, expected: record.event(
            "waiting-for-sites", online=list(roster.nodes), expected=expected
        ),
    )
    _check_partitions(roster, config)
    data = task.coordinator_data(roster.num_partitions)
    facts = {"sites": list(roster.nodes), **_partition_facts(task, roster.num_partitions)}
    record.event(
        "run-started",
        recipe=repr(config.recipe()),
        epoch_budget=config.epoch_budget,
        num_rounds=config.num_rounds,
        **facts,
    )
    strategy = CoLearning(
        config.recipe(),
        roster,
        seed=config.seed,
        trainable=frozenset(n for n, p in model.named_parameters() if p.requires_grad),
        observers=[record],
        site_evaluation=config.site_evaluation,
    )
    strategy.start(
        grid,
        arrays_to_record(model_arrays(model)),
        timeout=config.round_deadline_s,
        evaluate_fn=_evaluate_fn(task, model, data),
    )
    rounds = read_history(record.path)
    succeeded = [line for line in rounds if not line["failed"]]
    if not succeeded:
        raise RunError(
            "no round had a reply that counts",
            where=f"all {len(rounds)} rounds",
            got=rounds[-1]["dropped"] if rounds else None,
        )
    return {
        **facts,
        "rounds": len(rounds),
        "rounds-failed": len(rounds) - len(succeeded),
        "epochs": sum(line["plan"]["local_epochs"] for line in rounds),
        "sent-bytes": sum(line["sent_bytes"] for line in rounds),
        "received-bytes": sum(line["received_bytes"] for line in rounds),
        "final": succeeded[-1]["evaluation"],
    }


def _check_partitions(roster: Roster, config: RunConfig) -> None:
    """Refuse a run whose simulated sites are fewer, or more, than the config says."""
    simulated = roster.num_partitions
    if simulated and config.num_sites and simulated != config.num_sites:
        raise RunError(
            "the simulation has another number of sites",
            where="num-sites",
            got=config.num_sites,
            expected=f"{simulated}, the num-supernodes of the federation",
        )


def _partition_facts(task: Task, num_partitions: int) -> dict[str, Any]:
    if not num_partitions:
        return {}
    cut = task.partition(num_partitions)
    return {
        "partition": {
            "sha256": cut.sha256,
            "label-histogram": cut.histogram(task.dataset.train.labels, task.dataset.num_classes),
        }
    }


def _evaluate_fn(task: Task, model: nn.Module, data: CoordinatorData) -> EvaluateFn:
    """Return the function that evaluates a global model on validation and test examples.

    ``model`` is overwritten with each global model.
    """
    splits = {
        name: Tensors.of(examples)
        for name, examples in (("validation", data.validation), ("test", data.test))
        if len(examples)
    }

    def evaluate_global(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        load_arrays(model, record_to_arrays(arrays))
        metrics: dict[str, float] = {}
        with repeatable(task.config.threads_per_site):
            for name, tensors in splits.items():
                result = evaluate(
                    model, tensors, task.pipeline, task.device, task.settings.autocast_dtype
                )
                metrics[f"{name}-loss"] = result.loss
                metrics[f"{name}-accuracy"] = result.accuracy
        return MetricRecord(dict(metrics))

    return evaluate_global
