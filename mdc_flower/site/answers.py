"""How a site answers each kind of message with our own training loop."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MessageType, RecordDict

from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.console.site_log import site_event
from mdc_flower.jobs.signature import signature_of
from mdc_flower.models.exchange import base_of, check_base
from mdc_flower.site.card import code_digest, site_card, user_modules
from mdc_flower.site.client import NDArrays, Scalar, SiteClient
from mdc_flower.site.group import current
from mdc_flower.site.kept_arrays import KeptArrays
from mdc_flower.site.leading import site_client, threads_here
from mdc_flower.site.round_files import RoundFiles, round_key
from mdc_flower.site.state import KEPT, OPTIMIZER, KeptOptimizer, NamedState, SiteState
from mdc_flower.training.numerics import repeatable
from strategies.common.errors import ConfigError, ModelError, PlanError
from strategies.common.fault_points import reach
from strategies.exchange.lineage import Lineage, lineage_of
from strategies.exchange.messages import (
    ARRAYS,
    DEADLINE,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN,
    STATISTICS,
    arrays_to_record,
    base_in,
    deadline_of,
    evaluate_reply_content,
    moved_to_record,
    shortened,
    statistics_plan_id,
    statistics_reply_content,
    train_reply_content,
    wants_evaluation,
)
from strategies.exchange.metrics import VALIDATION, SiteMetrics, Value, is_finite
from strategies.exchange.records import record_views, records_of
from strategies.exchange.signature import check_signature
from strategies.method.round_plan import RoundPlan
from strategies.storage.run_directory import SITES


def _hello(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Return the site's card: its name, version and hardware."""
    card = site_card(config, site)
    site_event("hello", site=site.name)
    return card.to_content()


def _train(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Train the model in the message by its plan; evaluate it first if the message says so."""
    # The time to load the data counts towards the deadline.
    arrived = time.monotonic()
    client = site_client(config, site)
    names, arrays = _model_in(content, client)
    record = records_of(content, ConfigRecord)[PLAN]
    plan = RoundPlan.from_config_record(record)
    stop_at = arrived + deadline_of(content)
    reach("training", round=plan.round, site=client.site)
    files = _round_files(content, client, config, site)
    state = _site_state(content, plan, config, site)
    if files is not None and (kept := _finished(files, state, config)):
        site_event("sent-again", round=plan.round)
        return shortened(kept)
    client.epochs = files
    if state is not None and config.optimizer_state == "keep":
        client.carried = KeptOptimizer(state)
    if state is not None and config.keep:
        client.own_arrays = KeptArrays(state)
    site_event("training", examples=client.job.size("train"), **plan.model_dump())
    with repeatable(threads_here(config, site), client.device):
        validated = _validate(client, arrays) if wants_evaluation(content) else {}
        # The evaluation's time counts towards the deadline as well.
        settings: dict[str, Scalar] = {**record, DEADLINE: stop_at - time.monotonic()}  # type: ignore[dict-item]
        trained, num_examples, metrics = client.fit(arrays, settings)
    known = SiteMetrics(client.job.metrics)
    site_event("trained", round=plan.round, **known.values(metrics))
    named = dict(zip(names, trained, strict=True))
    del trained
    reply = train_reply_content(
        moved_to_record(named),
        site.shared({NUM_EXAMPLES: num_examples, **metrics, **validated}),
        plan.plan_id,
    )
    if files is None:
        return reply
    files.keep_reply(reply, plan.plan_id)
    return shortened(reply) if files.continued else reply


def _round_files(
    content: RecordDict, client: SiteClient, config: RunConfig, site: SiteConfig
) -> RoundFiles | None:
    """Return the files of the round in a train message; None if the site keeps none."""
    if not site.state:
        return None
    modules = {key: code_digest(module) for key, module in user_modules(config, site).items()}
    computing = [torch.__version__, str(client.device), str(client.settings.autocast_dtype)]
    if group := current():
        computing.append(str(group.ranks.size))
    about = [config.lasting, site.to_flower(), modules, computing, client.job.fingerprint()]
    return RoundFiles(Path(site.state), round_key(content, about))


def _finished(files: RoundFiles, state: SiteState | None, config: RunConfig) -> RecordDict | None:
    """Return the round's finished reply, unless the state after the round is not here."""
    kinds = {"optimizer-state": OPTIMIZER, "keep": KEPT}
    if state and not all(state.has_written(kinds[key]) for key in config.state_keys):
        return None
    return files.reply()


def _site_state(
    content: RecordDict, plan: RoundPlan, config: RunConfig, site: SiteConfig
) -> SiteState | None:
    """Return what the site keeps from round to round; None if it keeps nothing."""
    if not config.keeps_state:
        return None
    lineage = lineage_of(content)
    # With older states, the coordinator can go back to any of its checkpoints.
    spare = config.keep_checkpoints - 1
    return SiteState(_state_folder(lineage, config, site), plan, lineage, spare)


def _state_folder(lineage: Lineage, config: RunConfig, site: SiteConfig) -> Path:
    """Return the folder in which a site keeps what it keeps from round to round.

    That of a simulated site is in the run directory, because its process may not outlive the run,
    and all sites of a simulation share one machine and one config.
    """
    if site.state:
        return Path(site.state)
    if site.is_simulated:
        return config.run_dir(lineage.run) / SITES / site.name
    raise ConfigError(
        f"the run lets sites keep state ({', '.join(config.state_keys)}), but this site has no "
        "folder for it",
        where="node config, state",
        expected="the absolute path of a folder",
    )


def _evaluate(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Evaluate the model in the message on the site's validation examples."""
    client = site_client(config, site)
    _, arrays = _model_in(content, client)
    if config.keep:
        lineage = lineage_of(content)
        client.own_arrays = KeptArrays(NamedState(_state_folder(lineage, config, site), lineage))
    with repeatable(threads_here(config, site), client.device):
        validated = _validate(client, arrays)
    site_event("evaluated", **SiteMetrics(client.job.metrics).values(validated))
    return evaluate_reply_content(site.shared(validated))


def _statistics(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Compute the model's BatchNorm statistics on the site's training examples."""
    arrived = time.monotonic()
    client = site_client(config, site)
    if config.batch_norm != "recalibrate":
        raise PlanError(
            "a site sends statistics only in a run that recalibrates BatchNorm",
            where="batch-norm",
            got=config.batch_norm,
            expected="'recalibrate'",
        )
    plan_id = statistics_plan_id(content)
    stop_at = arrived + deadline_of(content)
    _, arrays = _model_in(content, client)
    reach("statistics", site=client.site)
    with repeatable(threads_here(config, site), client.device):
        taken, num_examples = client.statistics(arrays, stop_at - time.monotonic())
    site_event("recalibrated", examples=num_examples)
    return statistics_reply_content(arrays_to_record(taken), num_examples, plan_id)


HANDLERS: Mapping[str, Callable[[RecordDict, RunConfig, SiteConfig], RecordDict]] = {
    MessageType.QUERY: _hello,
    MessageType.TRAIN: _train,
    MessageType.EVALUATE: _evaluate,
    STATISTICS: _statistics,
}


def _validate(client: SiteClient, arrays: NDArrays) -> dict[str, Value]:
    """Return the metrics of a model on the site's validation examples; empty without examples.

    A metric that is not finite is left out: it is no reason to reject the site's update.
    """
    _, num_examples, metrics = client.evaluate(arrays, {})
    if num_examples == 0:
        return {}
    found = {VALIDATION + name: value for name, value in metrics.items()}
    return {NUM_VALIDATION: num_examples} | {n: v for n, v in found.items() if is_finite(v)}


def _model_in(content: RecordDict, client: SiteClient) -> tuple[list[str], list[np.ndarray]]:
    """Return names and arrays of the model in a message; check that the site's model has them.

    The arrays that are not exchanged, and the job's signature, must be the coordinator's, too.
    """
    arrays = record_views(records_of(content, ArrayRecord)[ARRAYS])
    own = client.names
    if list(arrays) != own:
        misfits = [(a, b) for a, b in zip(arrays, own, strict=False) if a != b]
        got, expected = misfits[0] if misfits else (f"{len(arrays)} arrays", f"{len(own)}")
        raise ModelError(
            "the coordinator's model differs from this site's model",
            where="arrays",
            got=got,
            expected=expected,
        )
    where = f"site {client.site!r}"
    check_signature(signature_of(client.job), content, where)
    check_base(base_of(client.base), base_in(content), where)
    return list(arrays), list(arrays.values())
