"""The ClientApp: the only adapter between Flower's messages and `SiteClient`."""

import math
import re
import time
import traceback
from collections.abc import Callable, Mapping
from logging import ERROR
from pathlib import Path

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.console.site_log import site_event
from mdc_flower.site.card import site_card
from mdc_flower.site.client import NDArrays, Scalar, SiteClient
from mdc_flower.site.worker import site_client
from mdc_flower.training.numerics import repeatable
from mdc_flower.training.task import threads_of
from strategies.common.errors import DataError, MdcError, ModelError, PlanError
from strategies.common.fault_points import reach
from strategies.common.log import log
from strategies.exchange.causes import error_code
from strategies.exchange.messages import (
    ARRAYS,
    DEADLINE,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN,
    STATISTICS_ACTION,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
    arrays_to_record,
    deadline_of,
    evaluate_reply_content,
    record_to_arrays,
    statistics_plan_id,
    statistics_reply_content,
    train_reply_content,
    wants_evaluation,
)
from strategies.method.round_plan import RoundPlan

TRACE_LINES = 6
"""Traceback lines in a simulated site's error reply: the last two or three calls."""

TRACE_CALLS = 3
"""Traceback calls in a real site's error reply."""

_SLASH = re.compile(r"[/\\]")

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Reply with the site's card: its name, version and hardware."""

    def work() -> RecordDict:
        config, site = _configs(context)
        card = site_card(config, site)
        site_event("hello", site=site.name)
        return card.to_content()

    return _answer(message, context, work)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model in the message by its plan; evaluate it first if the message says so."""

    def work() -> RecordDict:
        # The time to load the data counts towards the deadline.
        arrived = time.monotonic()
        client, config, site = _site(context)
        names, arrays = _model_in(message, client)
        record = message.content.config_records[PLAN]
        plan = RoundPlan.from_config_record(record)
        stop_at = arrived + deadline_of(message.content)
        reach("training", round=plan.round, site=client.site)
        site_event("training", examples=len(client.data.train), **plan.model_dump())
        with repeatable(threads_of(config, site), client.device):
            validated = _validate(client, arrays) if wants_evaluation(message.content) else {}
            # The evaluation's time counts towards the deadline as well.
            settings: dict[str, Scalar] = {**record, DEADLINE: stop_at - time.monotonic()}  # type: ignore[dict-item]
            trained, num_examples, metrics = client.fit(arrays, settings)
        site_event("trained", round=plan.round, **metrics)
        return train_reply_content(
            arrays_to_record(dict(zip(names, trained, strict=True))),
            _shared({NUM_EXAMPLES: num_examples, **metrics, **validated}, site),  # type: ignore[dict-item]
            plan.plan_id,
        )

    return _answer(message, context, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model in the message on the site's validation examples."""

    def work() -> RecordDict:
        client, config, site = _site(context)
        _, arrays = _model_in(message, client)
        with repeatable(threads_of(config, site), client.device):
            validated = _validate(client, arrays)
        site_event("evaluated", **validated)
        return evaluate_reply_content(_shared(validated, site))

    return _answer(message, context, work)


@app.evaluate(STATISTICS_ACTION)
def statistics(message: Message, context: Context) -> Message:
    """Compute the model's BatchNorm statistics on the site's training examples."""

    def work() -> RecordDict:
        arrived = time.monotonic()
        client, config, site = _site(context)
        if config.batch_norm != "recalibrate":
            raise PlanError(
                "a site sends statistics only in a run that recalibrates BatchNorm",
                where="batch-norm",
                got=config.batch_norm,
                expected="'recalibrate'",
            )
        plan_id = statistics_plan_id(message.content)
        stop_at = arrived + deadline_of(message.content)
        _, arrays = _model_in(message, client)
        reach("statistics", site=client.site)
        with repeatable(threads_of(config, site), client.device):
            taken, num_examples = client.statistics(arrays, stop_at - time.monotonic())
        site_event("recalibrated", examples=num_examples)
        return statistics_reply_content(arrays_to_record(taken), num_examples, plan_id)

    return _answer(message, context, work)


def _validate(client: SiteClient, arrays: NDArrays) -> dict[str, float | int]:
    """Return the metrics of a model on the site's validation examples; empty without examples.

    A metric that is not finite is left out: it is no reason to reject the site's update.
    """
    loss, num_examples, metrics = client.evaluate(arrays, {})
    if num_examples == 0:
        return {}
    accuracy = float(metrics["accuracy"])
    found = {NUM_VALIDATION: num_examples, VALIDATION_LOSS: loss, VALIDATION_ACCURACY: accuracy}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _shared(metrics: Mapping[str, float | int], site: SiteConfig) -> dict[str, float | int]:
    """Return the metrics that may leave the site."""
    return {name: value for name, value in metrics.items() if name in site.shared_metrics}


def _answer(message: Message, context: Context, work: Callable[[], RecordDict]) -> Message:
    """Reply with the content that ``work`` returns, or with the error that it raises.

    Flower reports an exception differently on each engine, and not at all in a deployment. The
    coordinator needs the reason to report which site failed and why.
    """
    try:
        return Message(work(), reply_to=message)
    except Exception as error:
        kind = message.metadata.message_type
        log(ERROR, "%s failed", kind, exc_info=error)
        site_event("failed", message=kind, error=f"{type(error).__name__}: {error}")
        # The node config itself may be wrong, so it is not parsed here.
        simulated = "partition-id" in context.node_config and "site" not in context.node_config
        return raised_reply(message, error, private=not simulated)


def raised_reply(message: Message, error: Exception, private: bool = False) -> Message:
    """Return the error reply of a ClientApp: code, type, message, and the traceback's last lines.

    For an error at a real site (``private``), the reply contains the message of an `MdcError`,
    without paths. For any other error it contains only type and place, because the text could
    contain a value of the data. The site's own log has the complete error.
    """
    kind = type(error).__name__
    if isinstance(error, MdcError):
        # An MdcError explains itself; any other error needs its place in the code.
        reason = f"{kind}: {without_paths(error) if private else error}"
    elif private:
        calls = traceback.extract_tb(error.__traceback__)[-TRACE_CALLS:]
        places = [f"{Path(call.filename).name}:{call.lineno} in {call.name}" for call in calls]
        reason = "\n".join([f"{kind}, see the site's log", *places])
    else:
        lines = "".join(traceback.format_tb(error.__traceback__)).splitlines()
        reason = "\n".join([f"{kind}: {error}", *lines[-TRACE_LINES:]])
    return Message(Error(error_code(error), reason), reply_to=message)


def without_paths(error: MdcError) -> str:
    """Return an error's message without anything that may be a path, or that follows one.

    For an error in the data, the message leaves out the found and the expected value: they may be
    data, or names of classes, which are names of folders.
    """

    def safe(value: object) -> object:
        return None if _SLASH.search(str(value)) else value

    about_data = isinstance(error, DataError)
    what, *rest = _SLASH.split(error.what, maxsplit=1)
    public = MdcError(
        f"{what}<path>" if rest else what,
        where=str(safe(error.where) or ""),
        got=None if about_data else safe(error.got),
        expected="" if about_data else str(safe(error.expected) or ""),
        hint="The site's log has the details" if about_data else str(safe(error.hint) or ""),
    )
    return str(public)


def _configs(context: Context) -> tuple[RunConfig, SiteConfig]:
    return read_run_config(context.run_config), read_site_config(context.node_config)


def _site(context: Context) -> tuple[SiteClient, RunConfig, SiteConfig]:
    config, site = _configs(context)
    return site_client(config, site), config, site


def _model_in(message: Message, client: SiteClient) -> tuple[list[str], list[np.ndarray]]:
    """Return names and arrays of the model in a message; check that the site's model has them."""
    arrays = record_to_arrays(message.content.array_records[ARRAYS])
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
    return list(arrays), list(arrays.values())
