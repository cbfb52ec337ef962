"""Run ServerApp and ClientApp in this process, without Ray or SuperLink, for tests and notebooks.

A custom grid and messages without a SuperLink need two objects from private modules of Flower:
`Run`, which `Grid` refers to, and the task identity, which `Message` stamps on each message.
"""

import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from mdc_flower import client_app, server_app
from mdc_flower.config import RunConfig
from mdc_flower.site import own_worker
from mdc_flower.site.error_replies import error_of
from strategies.exchange.messages import STATISTICS, deadline_of
from strategies.exchange.transport import NO_REPLY
from strategies.pending_evaluation import Inline

WITH_DEADLINE = (MessageType.TRAIN, STATISTICS)

inline_server = ServerApp()


@inline_server.main()
def _main(grid: Grid, context: Context) -> None:
    """Coordinate a run whose sites train in this thread, so evaluation runs inline as well."""
    server_app.lead(grid, context, Inline())


def run_in_process(
    config: RunConfig,
    num_sites: int,
    server: ServerApp = inline_server,
    client: ClientApp = client_app.app,
) -> None:
    """Run a whole simulation, one site after the other, and return when it has finished.

    Parameters
    ----------
    config
        The run config; ``output-dir`` must be absolute.
    num_sites
        Number of simulated sites.
    server, client
        The apps; tests pass their own.

    Raises
    ------
    Exception
        Any error that the ServerApp raises. An error in a ClientApp becomes an error reply.
    """
    run_id = secrets.randbits(62)
    contexts = {
        # Node ids are random, as in Flower, so that no code can rely on them.
        (node := secrets.randbits(62)): _context(
            run_id, node, config, {"partition-id": site, "num-partitions": num_sites}
        )
        for site in range(num_sites)
    }
    with _identity(run_id), _warnings_only():
        grid = InProcessGrid(client, contexts)
        try:
            server(grid, _context(run_id, SUPERLINK_NODE_ID, config, {}))
        finally:
            own_worker.stop()


def _context(
    run_id: int, node_id: int, config: RunConfig, node_config: Mapping[str, int | str]
) -> Context:
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(config.to_flower()),
    )


class InProcessGrid(Grid):
    """Delivers a message when its reply is pulled: one at a time, in sending order.

    Parameters
    ----------
    client : ClientApp
        The app of every site.
    contexts : dict
        Each site's context, by node id.
    """

    def __init__(self, client: ClientApp, contexts: dict[int, Context]) -> None:
        self._client = client
        self._contexts = contexts
        self._waiting: dict[str, Message] = {}
        self._run = Run.create_empty(run_id=TaskIdentity.run_id)

    def set_run(self, run: Run) -> None:
        """Set the run's information."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run's information."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message; Flower recommends calling `Message` directly."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all sites."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store the messages and return their ids."""
        ids = []
        for message in messages:
            message_id = str(uuid4())
            # Flower's own grids set the id this way; Metadata has no setter for it.
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver the first of these messages and return its reply."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._deliver(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver all messages and return their replies."""
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def _deliver(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            if message.metadata.message_type in WITH_DEADLINE and _is_overdue(message):
                # A site does not start after the deadline.
                return Message(Error(NO_REPLY, "the deadline has passed"), reply_to=message)
            return self._client(message, context)
        except Exception as error:  # as on every engine, a ClientApp's error becomes a reply
            return Message(error_of(error), reply_to=message)


def _is_overdue(message: Message) -> bool:
    return time.time() >= message.metadata.created_at + deadline_of(message.content)


@contextmanager
def _identity(run_id: int) -> Iterator[None]:
    """Give this process the identity that Flower's `Message` stamps on each message."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@contextmanager
def _warnings_only() -> Iterator[None]:
    """Limit Flower's log to warnings; the run directory records everything else."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
