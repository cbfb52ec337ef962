"""The ServerApp: builds task and strategy from the config, and runs the training.

The run directory records the run.
"""

import os
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from logging import ERROR, WARNING
from typing import Any

import tomli_w
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from mdc_flower import __version__
from mdc_flower.common.extras import DRAWING, require
from mdc_flower.common.references import users_folder
from mdc_flower.common.shown_metrics import shown_metrics
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.coordinator.admission import REGISTER, admission, registered_sites
from mdc_flower.coordinator.card_claims import coordinator_kit, with_card_checks
from mdc_flower.coordinator.final_models import finish
from mdc_flower.coordinator.global_evaluation import evaluate_fn
from mdc_flower.coordinator.resume import changed_keys, changed_machines, check_resumable
from mdc_flower.coordinator.same_data import check_same_data
from mdc_flower.coordinator.trackers import check_trackers, trackers
from mdc_flower.jobs.initial_model import differences, file_digest, initialized
from mdc_flower.jobs.run_task import RunTask, load_run_task
from mdc_flower.models.exchange import ALL, base_digests, base_of, exchanged_names, kept_names
from mdc_flower.models.tensors import trainable_names
from mdc_flower.site.card import code_digests
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batch_norm import statistics_of
from strategies.aggregation.averaging import Arrays
from strategies.common.errors import ConfigError, EngineError, MdcError, QuorumError, RunError
from strategies.common.files import StorageError, finite, write_atomically
from strategies.common.log import log
from strategies.exchange.attendance import Awaited
from strategies.exchange.membership import Membership
from strategies.exchange.messages import arrays_to_record
from strategies.exchange.metrics import SiteMetrics, described
from strategies.exchange.waiting import wait_for_sites
from strategies.pending_evaluation import EvaluateFn, one_thread
from strategies.round_loop import RoundLoop
from strategies.storage.position import Position
from strategies.storage.run_directory import (
    CONFIG,
    INTERRUPTED,
    REFUSED,
    RunDirectory,
    read_events,
    read_history,
    read_summary,
    run_directory,
    write_summary,
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead a run whose sites are other processes; models are evaluated while the sites train."""
    with one_thread() as executor:
        lead(grid, context, executor)


def lead(grid: Grid, context: Context, executor: Executor, with_picture: bool = True) -> None:
    """Train one federation from the beginning, or from its newest checkpoint.

    Parameters
    ----------
    grid
        Flower's message transport.
    context
        Contains the run config.
    executor
        Evaluates the global models.
    with_picture
        Whether to draw the report once the run has finished.
    """
    config = read_run_config(context.run_config)
    task = load_run_task(config)
    with run_directory(
        config.run_dir(context.run_id),
        task.model_metadata(),
        resume=config.resume,
        keep_checkpoints=config.keep_checkpoints,
        keep_updates=config.keep_updates,
        average_last=config.average_last,
    ) as record:
        summary = _lead(grid, task, record, executor, context.run_id)
        if with_picture:
            _draw(record, summary, described(task.metrics))


def _lead(
    grid: Grid, task: RunTask, record: RunDirectory, executor: Executor, run_id: int
) -> dict[str, Any]:
    """Run the training; always write a summary that says how it ended, and return it."""
    started = time.time()
    before = read_summary(record.path) if record.checkpoint else {}
    summary: dict[str, Any] = {
        "status": "running",
        "version": __version__,
        "seed": task.config.seed,
        "folder": users_folder(),
        # A resumed run keeps its first start time; each resume has a time of its own.
        "started": before.get("started", started),
    }
    if record.checkpoint is None:
        _write_beginning(record, task.config, summary)
    try:
        summary |= _run(grid, task, record, executor, summary, run_id)
        summary |= {"status": "finished", "exit-status": 0}
    except BaseException as error:
        summary |= _ending(error)
        raise
    finally:
        summary["seconds"] = round(record.seconds_before + time.time() - started, 3)
        unbegun = record.checkpoint is not None and not record.begun
        if unbegun and summary["exit-status"] == ConfigError.exit_code:
            # The resume changed nothing, so the earlier summary stays.
            record.event(REFUSED, error=summary["error"])
        else:
            _write_ending(record, summary)
    return summary


def _draw(
    record: RunDirectory, summary: Mapping[str, Any], metrics: list[dict[str, str | bool]]
) -> None:
    """Draw the report; a failure here must not fail a finished run."""
    try:
        require(DRAWING, "simulation", "report.png")
        # The import takes seconds, and only a process that leads a run needs it.
        from mdc_flower.reports.run_figures import draw_run

        history, recalibration = read_history(record.path), summary.get("recalibration")
        picture = draw_run(history, recalibration, shown_metrics(metrics))
        write_atomically(record.path / "report.png", picture)
    except Exception as error:
        log(ERROR, "the report could not be drawn: %s", error)


def _write_beginning(record: RunDirectory, config: RunConfig, summary: Mapping[str, Any]) -> None:
    # A run that is started from this file must be a new one.
    values = config.model_copy(update={"resume": False}).to_flower()
    record.write_text(CONFIG, tomli_w.dumps(values))
    write_summary(record.path, summary)


def _ending(error: BaseException) -> dict[str, Any]:
    """Return how an unfinished run ended; ``restart`` says whether another attempt may help."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return INTERRUPTED
    known = isinstance(error, MdcError)
    return {
        "status": "stopped" if isinstance(error, QuorumError) else "failed",
        "exit-status": error.exit_code if isinstance(error, MdcError) else 1,
        "restart": isinstance(error, EngineError) or not known,
        "error": str(error) if known else f"{type(error).__name__}: {error}",
    }


def _write_ending(record: RunDirectory, summary: dict[str, Any]) -> None:
    try:
        write_summary(record.path, summary)
        record.event("run-ended", status=summary["status"], error=summary.get("error"))
    except StorageError as error:
        # The disk may be what ended the run; that error must not be replaced by this one.
        log(ERROR, "the summary could not be written: %s", error)


def _run(
    grid: Grid,
    task: RunTask,
    record: RunDirectory,
    executor: Executor,
    beginning: Mapping[str, Any],
    run_id: int,
) -> dict[str, Any]:
    """Train, and return the entries of the summary."""
    config = task.config
    changed: dict[str, list[Any]] = {}
    if record.checkpoint is not None:
        changed_keys(record.checkpoint.run["config"], config)  # refuse before waiting for sites
    task.check_model()  # likewise
    check_trackers(config)
    if idle := task.unread_keys(config):
        _warn(
            record,
            f"the run config sets keys that the job has not read: {', '.join(idle)}. They have no "
            "effect, unless the job reads them at a site",
        )
    for remark in task.remarks:
        _warn(record, f"the data: {remark}")
    model = task.new_model()
    if record.checkpoint is None:
        initialized(model, config)
    names = exchanged_names(model, config.exchange, config.keep)
    kept = kept_names(model, config.keep)
    base = base_of(base_digests(model, [*names, *kept]))
    register = os.environ.get(REGISTER, "")
    membership = wait_for_sites(
        grid,
        config.num_sites or None,
        config.wait_for_sites_s,
        config.quorum(config.num_sites) if config.num_sites else None,
        lambda membership, expected: record.event(
            "waiting-for-sites",
            online=list(membership.nodes),
            expected=expected,
            missing=membership.missing,
        ),
        Membership(
            names=registered_sites(register),
            admission=with_card_checks(
                admission(register, code_digests(config), task.data_form),
                config.num_sites,
                coordinator_kit(),
            ),
        ),
        **_resume_options(record, config),
    )
    _check_partitions(membership, config)
    check_same_data(membership, task.data_sha256)
    _check_local_statistics(membership, config)
    if record.checkpoint is None:
        _check_states(membership, config)
    facts = {
        "sites": list(membership.nodes),
        "versions": {card.name: card.version for card in membership.cards.values()},
        "machines": membership.machines,
        "metrics": described(task.metrics),
        **task.facts(membership.num_partitions),
    }
    initial = model_arrays(model, names)
    if config.exchange != ALL or kept:
        facts["exchanged"] = {
            "arrays": len(names),
            "bytes": sum(array.nbytes for array in initial.values()),
            "base": base,
            **({"kept": kept} if kept else {}),
        }
        own = {"keep": config.keep} if kept else {}
        record.describe_models(exchange=config.exchange, base=base, **own)
    recipe = config.recipe()
    run: dict[str, Any] = {
        "id": str(run_id),
        "config": config.to_flower(),
        "version": __version__,
        "partition": _sha256(facts),
        "data": task.data_sha256,
        **({"base": base} if base else {}),
    }
    if record.checkpoint is not None:
        # A resumed run is a new one to Flower. Earlier versions did not store the first id.
        run["id"] = record.checkpoint.run.get("id", run["id"])
        changed = check_resumable(
            record.checkpoint.run, config, _sha256(facts), base, task.data_sha256
        )
        _write_beginning(record, config, beginning)
    evaluate_global = evaluate_fn(task, membership.num_partitions)
    if config.initial_model:
        if record.checkpoint is None:
            run["initial-model"] = _about_initial_model(record, task, initial, evaluate_global)
        else:
            run["initial-model"] = record.checkpoint.run["initial-model"]
        facts["initial-model"] = run["initial-model"]
    position = record.begin(initial, Position(initial, recipe.controller.start()), run)
    trainable, statistics = trainable_names(model) - set(kept), statistics_of(model)
    del model, initial  # from here on the newest checkpoint is the model
    told = [*read_events(record.path, "run-started"), *read_history(record.path)]
    machines = changed_machines(told, membership.machines)
    record.event(
        "run-started",
        recipe=repr(recipe),
        unit=config.unit,
        budget=config.budget,
        num_rounds=config.num_rounds,
        **facts,
    )
    if record.checkpoint is not None:
        record.event(
            "run-resumed",
            rounds_done=position.work.rounds_done,
            work_done=position.work.used,
            changed=changed,
            version=[record.checkpoint.run["version"], __version__],
            machines=machines,
        )
        for site, (before, now) in machines.items():
            log(
                WARNING,
                "%s computes with %s, before with %s: other bits from here",
                site,
                now,
                before,
            )
    with trackers(config, record.path, read_history(record.path)) as observers:
        strategy = RoundLoop(
            recipe,
            membership,
            seed=config.seed,
            trainable=trainable,
            observers=[record, *observers],
            updates=record.updates,
            position=position,
            site_evaluation=config.site_evaluation,
            min_sites=config.quorum(config.num_sites or membership.num_partitions),
            max_round_retries=config.max_round_retries,
            wait_s=config.wait_for_sites_s,
            quorum_patience_s=0.0 if membership.simulated else config.quorum_patience_s,
            deadline=config.deadline(),
            max_relative_update=config.max_relative_update,
            executor=executor,
            variances=frozenset(statistics.values()) & frozenset(names),
            metrics=SiteMetrics(task.metrics),
            state_run=run["id"] if config.keeps_state else "",
            base=base,
            signature=task.signature,
            from_disk=record.from_disk,
        )
        strategy.start(grid, ArrayRecord(), evaluate_fn=evaluate_global)
    layers = statistics if config.batch_norm == "recalibrate" else {}
    return {
        **facts,
        **task.summary(),
        **finish(grid, strategy, record, names, evaluate_global, layers),
        "resumes": [
            {key: event[key] for key in ("time", "rounds_done", "changed", "version")}
            for event in read_events(record.path, "run-resumed")
        ],
    }


def _about_initial_model(
    record: RunDirectory, task: RunTask, arrays: Arrays, evaluate: EvaluateFn
) -> dict[str, Any]:
    """Return what a run records of the file that it starts from, with the model's metrics."""
    config = task.config
    for key in differences(config, task.model_metadata()):
        _warn(
            record,
            f"the model in {config.initial_model} was trained with another {key} than that of the "
            "run's data",
        )
    return {
        "file": config.initial_model,
        "sha256": file_digest(config),
        "evaluation": finite(dict(evaluate(0, arrays_to_record(arrays)) or {})),
    }


def _warn(record: RunDirectory, text: str) -> None:
    """Log a warning, for the live view as well."""
    log(WARNING, "%s", text)
    record.event("warning", text=text)


def _resume_options(record: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Return which sites a resumed run waits for, and how long; empty for a new run."""
    if record.checkpoint is None:
        return {}
    position = record.checkpoint.position

    def report_missing(membership: Membership, left_s: float) -> None:
        missing = sorted({*position.pace, *membership.names} - set(membership.nodes))
        quorum = config.quorum(config.num_sites or membership.num_partitions)
        awaited = Awaited(missing, len(membership.nodes), quorum, left_s)
        log(WARNING, "%s", awaited)
        record.sites_awaited(awaited)

    return {
        "known": position.pace,
        "absent": position.absent,
        # Simulated sites, which take their data from a partition, are online at once or never.
        "patience_s": 0.0 if record.checkpoint.run["partition"] else config.quorum_patience_s,
        "on_wait": report_missing,
    }


def _sha256(facts: Mapping[str, Any]) -> str | None:
    return facts["partition"]["sha256"] if "partition" in facts else None


def _check_partitions(membership: Membership, config: RunConfig) -> None:
    """Refuse a run with fewer or more simulated sites than the config says."""
    simulated = membership.num_partitions
    if simulated and config.min_sites > simulated:
        raise ConfigError(
            "there are fewer sites than the quorum",
            where="min-sites",
            got=config.min_sites,
            expected=f"{simulated} or less, the num-supernodes of the federation",
        )
    if simulated and config.num_sites and simulated != config.num_sites:
        raise RunError(
            "the number of sites differs from that of the simulation",
            where="num-sites",
            got=config.num_sites,
            expected=f"{simulated}, the num-supernodes of the federation",
        )


def _check_local_statistics(membership: Membership, config: RunConfig) -> None:
    """Refuse a run whose model neither the coordinator nor a site could evaluate."""
    if config.batch_norm == "local" and not (membership.num_partitions or config.site_evaluation):
        raise ConfigError(
            "the BatchNorm statistics stay at the sites, but the sites do not evaluate",
            where="batch-norm",
            got="'local' with site-evaluation = false",
            expected="site-evaluation = true",
            hint="The coordinator cannot evaluate a model without these statistics",
        )


def _check_states(membership: Membership, config: RunConfig) -> None:
    """Refuse a run in which a site could not keep the state that it is to keep."""
    without = sorted(card.name for card in membership.cards.values() if not card.keeps_state)
    if config.keeps_state and without:
        raise ConfigError(
            "sites have no folder in which they could keep state from round to round",
            where=config.state_keys[0],
            got=f"{config.to_flower()[config.state_keys[0]]!r}, and no `state` at "
            f"{', '.join(without)}",
            expected="a folder as `state` in the node config of every site",
            hint="`mdc site start` sets one; a plain flower-supernode needs "
            "--node-config 'state=\"/absolute/folder\"'. Or let them keep nothing: "
            "optimizer-state = 'reset', keep = ''",
        )
