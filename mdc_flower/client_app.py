"""The ClientApp: passes each message to the site's worker, or answers it in this process.

Flower starts a new process for every message to a real site. If `mdc site start` runs a worker (see
`mdc_flower.site.worker`), that process only passes the message on, so it does not import PyTorch.
"""

import os
from logging import ERROR
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from mdc_flower.console.site_log import site_event
from mdc_flower.site.error_replies import error_of, is_simulated
from mdc_flower.site.handover import WORKER, hand_over
from strategies.common.log import log
from strategies.exchange.messages import STATISTICS_ACTION

app = ClientApp()


@app.query()
@app.train()
@app.evaluate()
@app.evaluate(STATISTICS_ACTION)
def answer(message: Message, context: Context) -> Message:
    """Reply to a message; an exception becomes an error reply."""
    return Message(_answer(message, context), reply_to=message)


def _answer(message: Message, context: Context) -> RecordDict | Error:
    metadata, configs = message.metadata, (context.run_config, context.node_config)
    kind = metadata.message_type
    folder = os.environ.get(WORKER)
    if folder or _has_several_ranks(context):
        try:
            to = Path(folder) if folder else _own_worker(context)
            return hand_over(to, context.run_id, kind, message.content, *configs, metadata.ttl)
        except Exception as error:
            log(ERROR, "%s failed", kind, exc_info=error)
            site_event("failed", message=kind, error=f"{type(error).__name__}: {error}")
            return error_of(error, private=not is_simulated(context.node_config))
    from mdc_flower.site import answering  # imports PyTorch, unless the site has a command

    return answering.answer(kind, message.content, *configs)


def _has_several_ranks(context: Context) -> bool:
    run, node = context.run_config, context.node_config
    default = run.get("ranks-per-site", 1) if is_simulated(node) else 1
    return node.get("ranks", default) != 1 or node.get("nodes", 1) != 1


def _own_worker(context: Context) -> Path:
    """Return the folder of a worker that this process has started."""
    from mdc_flower.site.own_worker import launch_of, own_worker  # imports pydantic

    return own_worker(context.run_id, launch_of(context.node_config, context.run_config))
