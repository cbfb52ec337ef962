"""The ClientApp: the one adapter between Flower's messages and `SiteClient`."""

import traceback
from collections.abc import Callable
from functools import lru_cache
from logging import ERROR

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import log
from flwr.common.typing import Scalar

from mdc_flower import __version__
from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.numerics import repeatable
from mdc_flower.site_client import SiteClient
from mdc_flower.task import load_task
from strategies.errors import MdcError, ModelError
from strategies.fault_points import reach
from strategies.messages import (
    ARRAYS,
    DEADLINE,
    NUM_EXAMPLES,
    PLAN,
    SiteCard,
    arrays_to_record,
    deadline_of,
    evaluate_reply_content,
    record_to_arrays,
    train_reply_content,
)
from strategies.round_plan import RoundPlan

RAISED = 2
"""Flower's error code for a ClientApp that raised."""

TRACE_LINES = 6
"""Lines of the trace in an error reply: the last two or three calls."""

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Say which site this is."""

    def work() -> RecordDict:
        site = read_site_config(context.node_config)
        return SiteCard(site.name, site.num_partitions, __version__).to_content()

    return _answer(message, work)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model in the message as its round plan says."""

    def work() -> RecordDict:
        client, config = _site(context)
        names, arrays = _model_in(message, client)
        plan = message.content.config_records[PLAN]
        orders: dict[str, Scalar] = {**plan, DEADLINE: deadline_of(message.content)}  # type: ignore[dict-item]
        reach("training", round=int(plan["round"]), site=client.site)  # type: ignore[arg-type]
        with repeatable(config.threads_per_site):
            trained, num_examples, metrics = client.fit(arrays, orders)
        return train_reply_content(
            arrays_to_record(dict(zip(names, trained, strict=True))),
            {NUM_EXAMPLES: num_examples, **metrics},  # type: ignore[dict-item]
            RoundPlan.from_config_record(plan).plan_id,
        )

    return _answer(message, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model in the message on the site's validation examples."""

    def work() -> RecordDict:
        client, config = _site(context)
        _, arrays = _model_in(message, client)
        with repeatable(config.threads_per_site):
            loss, num_examples, metrics = client.evaluate(arrays, {})
        return evaluate_reply_content(
            {NUM_EXAMPLES: num_examples, "loss": loss, "accuracy": float(metrics["accuracy"])}
        )

    return _answer(message, work)


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    """Reply with what ``work`` returns, or with what it raised.

    Flower reports an exception differently on each engine, and in a deployment not at all;
    the coordinator needs the reason to say which site failed and why.
    """
    try:
        return Message(work(), reply_to=message)
    except Exception as error:
        log(ERROR, "%s failed", message.metadata.message_type, exc_info=error)
        return raised_reply(message, error)


def raised_reply(message: Message, error: Exception) -> Message:
    """Return the error reply of a ClientApp: type, message, and the trace's last lines.

    The lines name files and functions of the code, never a value of the data.
    """
    reason = f"{type(error).__name__}: {error}"
    if not isinstance(error, MdcError):
        # An error raised on purpose says what is wrong; any other needs its place.
        lines = "".join(traceback.format_tb(error.__traceback__)).splitlines()
        reason = "\n".join([reason, *lines[-TRACE_LINES:]])
    return Message(Error(RAISED, reason), reply_to=message)


def _site(context: Context) -> tuple[SiteClient, RunConfig]:
    config, site = read_run_config(context.run_config), read_site_config(context.node_config)
    return _site_client(config, site), config


@lru_cache(maxsize=8)
def _site_client(config: RunConfig, site: SiteConfig) -> SiteClient:
    """Return the site's client; a process that serves a site again does not read its data again."""
    task = load_task(config, site.data, site.data_root, site.device)
    return SiteClient(
        site.name,
        task.new_model(),
        task.site_data(site),
        task.settings,
        task.pipeline,
        task.device,
    )


def _model_in(message: Message, client: SiteClient) -> tuple[list[str], list[np.ndarray]]:
    """Return names and arrays of the model in a message, if its names are the site's own."""
    arrays = record_to_arrays(message.content.array_records[ARRAYS])
    own = list(client.model.state_dict())
    if list(arrays) != own:
        misfits = [(a, b) for a, b in zip(arrays, own, strict=False) if a != b]
        got, expected = misfits[0] if misfits else (f"{len(arrays)} arrays", f"{len(own)}")
        raise ModelError(
            "the coordinator's model is not this site's", where="arrays", got=got, expected=expected
        )
    return list(arrays), list(arrays.values())
