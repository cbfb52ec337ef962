"""An in-memory grid and sites that do linear arithmetic: a federation without processes.

The grid subclasses Flower's `Grid`, so that a change in Flower's interface breaks the tests. Time
is simulated and passes only in `sleep`, so no test waits, and a one-day round takes no time.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from numpy.typing import NDArray

from strategies.exchange.messages import (
    ARRAYS,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN,
    SiteCard,
    arrays_to_record,
    evaluate_reply_content,
    record_to_arrays,
    train_reply_content,
    wants_evaluation,
)
from strategies.exchange.metrics import VALIDATION_ACCURACY, VALIDATION_LOSS
from strategies.method.round_plan import RoundPlan

Handler = Callable[[Message], Message | None]
"""Returns a node's reply to a message; None for no reply."""

Fault = Callable[[Message, Message], Message | None]
"""Changes a correct reply: called with the request and the reply."""

NODE_IDS = (
    8_243_971_190_237_113_041,
    1_557_302_844_917_720_986,
    6_020_113_377_615_904_462,
    3_918_774_055_120_638_877,
)
"""Like Flower's node ids: large, and not in the order of the site names."""

SUPERLINK_NODE = 1


class DiedError(Exception):
    """Represents the death of the coordinator's process."""


@contextmanager
def dies_at(module: str, point: str, **where: int) -> Iterator[None]:
    """Make the coordinator die inside the block, at a fault point of a `strategies` module."""

    def hook(reached: str, **known: int | str) -> None:
        if reached == point and where.items() <= known.items():
            raise DiedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"strategies.{module}.reach", hook)
        with pytest.raises(DiedError):
            yield


class Clock:
    """Replacement for the module `time`; time passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._later: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        assert len(self.pauses) < 100_000, "this wait never ends"
        # A pause too short for the sum to show it would never end.
        self.now += max(seconds, 1e-6)
        due = [later for later in self._later if later[0] <= self.now]
        self._later = [later for later in self._later if later not in due]
        for _, action in sorted(due, key=lambda later: later[0]):
            action()

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Call an action once the given time has passed."""
        self._later.append((self.now + seconds, action))


@dataclass
class _Pending:
    request: Message
    reply: Message
    due_at: float


class FakeGrid(Grid):
    """Delivers each message to its node's handler at once, and returns replies when due.

    A hello is answered at once, except for nodes in ``hello_delays``.

    Parameters
    ----------
    nodes
        Handler of each online node, by node id; tests add and remove nodes.
    arrival
        Node ids in the order in which their replies arrive, one second apart; others arrive last.
    delays
        Delay of a node's replies, in seconds.
    hello_delays
        Delay of a node's reply to a hello, in seconds.
    unsendable
        Nodes for which the grid does not accept messages.
    copies
        How many times each reply is returned.
    """

    clock: ClassVar[Clock] = Clock()

    def __init__(
        self,
        nodes: Mapping[int, Handler],
        *,
        arrival: Sequence[int] = (),
        delays: Mapping[int, float] | None = None,
        hello_delays: Mapping[int, float] | None = None,
        unsendable: Collection[int] = (),
        copies: int = 1,
    ) -> None:
        self.nodes = dict(nodes)
        self.arrival = list(arrival)
        self.delays = dict(delays or {})
        self.hello_delays = dict(hello_delays or {})
        self.unsendable = set(unsendable)
        self.copies = copies
        self.sent: list[Message] = []
        self.num_looks = 0
        self.num_pulls = 0
        self._pending: list[_Pending] = []

    def get_node_ids(self) -> Iterable[int]:
        self.num_looks += 1
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str] = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.unsendable:
                continue  # as Flower does: the ids come back without this message's
            message_id = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            ids.append(message_id)
            handler = self.nodes.get(node)
            reply = handler(message) if handler else from_superlink(message, "node unavailable")
            if reply is not None:
                self._pending.append(_Pending(message, reply, self.clock.now + self._late(message)))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.num_pulls += 1
        asked = set(message_ids)
        due = [
            pending
            for pending in self._pending
            if pending.due_at <= self.clock.now and pending.request.metadata.message_id in asked
        ]
        self._pending = [pending for pending in self._pending if pending not in due]
        return [pending.reply for pending in due for _ in range(self.copies)]

    def stop(self, node: int) -> None:
        """Remove a node as if its process was killed: the SuperLink answers in its place."""
        del self.nodes[node]
        for pending in self._pending:
            if pending.request.metadata.dst_node_id == node:
                pending.reply = from_superlink(pending.request, "node unavailable")
                pending.due_at = self.clock.now

    def _late(self, message: Message) -> float:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == MessageType.QUERY:
            return self.hello_delays.get(node, 0.0)
        rank = self.arrival.index(node) if node in self.arrival else len(self.arrival)
        return rank + self.delays.get(node, 0.0)

    def sent_of_type(self, message_type: str) -> list[Message]:
        """Return the sent messages of one type, in order."""
        return [m for m in self.sent if m.metadata.message_type == message_type]

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


@dataclass
class LinearSite:
    """A site whose training adds ``step`` to every float array, and 1 to every counter.

    Attributes
    ----------
    accuracy
        Accuracy on the site's validation examples, as a function of the model's first value.
    num_validation
        Validation examples; 0 for as many as training examples.
    device
        Device on the site card; empty for the card of an older version.
    withheld
        Metrics that the site does not send.
    faults
        Fault applied to the train reply of a round, by round.
    plans, evaluated
        Plans that the site received, and models that it was asked to evaluate.
    """

    name: str
    step: float = 1.0
    num_examples: int = 1
    num_partitions: int = 0
    train_loss: float = 0.5
    loss: float = 1.0
    accuracy: Callable[[float], float] = lambda value: 0.0
    num_validation: int = 0
    simulated: bool = False
    device: str = ""
    withheld: Collection[str] = ()
    faults: dict[int, Fault] = field(default_factory=dict)
    evaluate_fault: Fault | None = None
    plans: list[RoundPlan] = field(default_factory=list)
    evaluated: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)
    num_hellos: int = 0

    def __call__(self, message: Message) -> Message | None:
        match message.metadata.message_type:
            case MessageType.QUERY:
                self.num_hellos += 1
                card = SiteCard(
                    self.name,
                    self.num_partitions,
                    "test",
                    self.simulated,
                    device=self.device,
                    number_format="bfloat16" if self.device else "",
                    threads=8 if self.device else 0,
                )
                return Message(card.to_content(), reply_to=message)
            case MessageType.TRAIN:
                return self._train(message)
            case _:
                return self._evaluate(message)

    def _train(self, message: Message) -> Message | None:
        plan = RoundPlan.from_config_record(message.content.config_records[PLAN])
        self.plans.append(plan)
        received = record_to_arrays(message.content.array_records[ARRAYS])
        metrics = self._shared(train_metrics(self.num_examples, **{"train-loss": self.train_loss}))
        if wants_evaluation(message.content):
            self.evaluated.append(received)
            metrics |= self._validated()
        content = train_reply_content(
            arrays_to_record({name: self._moved(array) for name, array in received.items()}),
            metrics,
            plan.plan_id,
        )
        reply = Message(content, reply_to=message)
        fault = self.faults.get(plan.round)
        return fault(message, reply) if fault else reply

    def _moved(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        step = self.step if np.issubdtype(array.dtype, np.floating) else 1
        return np.asarray(array + np.asarray(step, array.dtype))

    def _evaluate(self, message: Message) -> Message | None:
        self.evaluated.append(record_to_arrays(message.content.array_records[ARRAYS]))
        reply = Message(evaluate_reply_content(self._validated()), reply_to=message)
        return self.evaluate_fault(message, reply) if self.evaluate_fault else reply

    def _validated(self) -> dict[str, float]:
        return self._shared(
            {
                NUM_VALIDATION: self.num_validation or self.num_examples,
                VALIDATION_LOSS: self.loss,
                VALIDATION_ACCURACY: self.accuracy(_first_value(self.evaluated[-1])),
            }
        )

    def _shared(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if name not in self.withheld}


def _first_value(arrays: Mapping[str, NDArray[np.generic]]) -> float:
    return float(next(iter(arrays.values())).flat[0])


def train_metrics(num_examples: int = 1, **changes: float) -> dict[str, float]:
    """Return metrics that a train reply may carry."""
    metrics: dict[str, float] = {
        NUM_EXAMPLES: num_examples,
        "num-steps": 10,
        "train-loss": 0.5,
        "train-accuracy": 0.25,
        "train-seconds": 2.0,
    }
    return metrics | changes


def grid_of(*sites: Handler, node_ids: Sequence[int] = NODE_IDS) -> FakeGrid:
    """Return a grid with one node for each site."""
    return FakeGrid(dict(zip(node_ids, sites, strict=False)))


def silent(request: Message, reply: Message) -> Message | None:
    """Never answer."""
    return None


def raises(request: Message, reply: Message) -> Message | None:
    """Answer like Flower does for a site whose code raised an exception."""
    return Message(Error(2, "the disk of this site is full"), reply_to=request)


def times(number: int, fault: Fault) -> Fault:
    """Apply a fault a limited number of times."""
    left = [number]

    def sometimes(request: Message, reply: Message) -> Message | None:
        left[0] -= 1
        return fault(request, reply) if left[0] >= 0 else reply

    return sometimes


def sends_nan(request: Message, reply: Message) -> Message | None:
    """Corrupt the first value of the first array."""
    record: ArrayRecord = reply.content.array_records[ARRAYS]
    name, packed = next(iter(record.items()))
    array = packed.numpy().copy()
    array.flat[0] = np.nan
    record[name] = Array(array)
    return reply


def from_superlink(request: Message, reason: str, code: int = 5) -> Message:
    """Return the error that the SuperLink sends, under its own id, in a node's place."""
    reply = Message(Error(code, reason), reply_to=request)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE
    return reply
