"""What coordinator and site say to each other: record names, and the one reader of each.

Four kinds of message exist. *hello* (a Flower query) asks a node for its site name.
*train* carries the global model, a round plan and orders, and is answered with the local model.
*evaluate* carries the global model, and is answered with metrics.
*statistics* carries the global model and orders, and is answered with what the site's data give as
its BatchNorm layers' statistics.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from strategies.common.errors import PlanError, RunError
from strategies.method.round_plan import RoundPlan

PROTOCOL_VERSION = 2

LONGEST_TEXT = 128
"""Characters of a site's text that are kept."""

ARRAYS, PLAN, METRICS, REPLY, SITE = "arrays", "plan", "metrics", "reply", "site"
ORDERS = "orders"
NUM_EXAMPLES, PLAN_ID, DEADLINE, EVALUATE = "num-examples", "plan-id", "deadline-s", "evaluate"

STATISTICS_ACTION = "statistics"
STATISTICS = f"{MessageType.EVALUATE}.{STATISTICS_ACTION}"
"""Flower's message type of *statistics*."""

NUM_VALIDATION = "num-validation-examples"
VALIDATION_LOSS, VALIDATION_ACCURACY = "validation-loss", "validation-accuracy"

VALIDATION_METRICS = frozenset({NUM_VALIDATION, VALIDATION_LOSS, VALIDATION_ACCURACY})
"""Metrics of the global model that a site was sent, on its validation examples."""

TRAIN_METRICS = VALIDATION_METRICS | {
    NUM_EXAMPLES,
    "num-steps",
    "train-loss",
    "train-accuracy",
    "train-seconds",
}
"""Every metric a site may send. All but the number of examples can be kept back by a site."""


@dataclass(frozen=True)
class SiteCard:
    """What a site says of itself before round 1.

    Attributes
    ----------
    name : str
        The site's name: ``site`` in its node config, or ``site-<partition>`` in simulation.
    num_partitions : int
        Simulated sites there are in all; 0 at a real site.
    version : str
        Version of mdc-flower at the site.
    simulated : bool
        Whether Flower's simulation engine made the site.
    protocol : int
        Version of this module's records.
    device : str
        What the site computes on, such as ``NVIDIA H100``; empty where an older version of
        mdc-flower does not say it, as with all that follow.
    number_format : str
        Of forward and backward passes, such as ``bfloat16``.
    threads : int
        CPU threads; 0 where it is not known.
    model_code, dataset_code : str
        SHA-256, in hex, of the user's module that the run names as ``model`` or ``dataset``, as the
        site has it; empty for none.
    num_examples : int
        Training examples in the site's data set, before any are held out or left out; 0 where it
        does not say.
    """

    name: str
    num_partitions: int
    version: str
    simulated: bool = False
    protocol: int = PROTOCOL_VERSION
    device: str = ""
    number_format: str = ""
    threads: int = 0
    model_code: str = ""
    dataset_code: str = ""
    num_examples: int = 0

    @property
    def machine(self) -> str:
        """Return device, number format and threads in one line; empty where they are not known."""
        if not self.device:
            return ""
        count = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"
        return f"{self.device}, {self.number_format}, {count}"

    def to_content(self) -> RecordDict:
        """Return the card as the content of a hello reply."""
        return RecordDict({SITE: ConfigRecord(asdict(self))})

    @classmethod
    def from_content(cls, content: RecordDict) -> "SiteCard":
        """Read a hello reply.

        Raises
        ------
        RunError
            If the node answered with something else, or speaks another protocol.
        """
        record = content.config_records.get(SITE, ConfigRecord())
        name, partitions = record.get("name"), record.get("num_partitions")
        version, protocol = record.get("version"), record.get("protocol")
        if protocol != PROTOCOL_VERSION:
            raise RunError(
                "the node speaks another protocol",
                where="hello reply",
                got=protocol,
                expected=str(PROTOCOL_VERSION),
                hint="Coordinator and sites must run the same version of mdc-flower",
            )
        if not (isinstance(name, str) and name and isinstance(partitions, int)):
            raise RunError("the node did not give a site name", where="hello reply", got=name)
        threads = record.get("threads")
        count = record.get("num_examples")
        return cls(
            name,
            partitions,
            str(version),
            record.get("simulated") is True,
            device=_told(record, "device"),
            number_format=_told(record, "number_format"),
            threads=threads if isinstance(threads, int) and threads > 0 else 0,
            model_code=_told(record, "model_code"),
            dataset_code=_told(record, "dataset_code"),
            num_examples=count if isinstance(count, int) and count > 0 else 0,
        )


def _told(record: ConfigRecord, key: str) -> str:
    """Return a short text of a card, for records and pages; empty where there is none."""
    value = record.get(key)
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:LONGEST_TEXT]


def arrays_to_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return named arrays as a record that keeps their order, shapes and dtypes."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def record_to_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Return a record's arrays by name, in its order."""
    return {name: array.numpy() for name, array in record.items()}


def train_content(
    arrays: ArrayRecord, plan: RoundPlan, deadline_s: float, evaluate: bool = False
) -> RecordDict:
    """Return the content of a train message.

    Deadline, and whether to evaluate the model first, are no part of the plan: a round that is
    repeated with another deadline is the same round, with the same plan id.
    """
    orders = ConfigRecord({DEADLINE: float(deadline_s), EVALUATE: evaluate})
    return RecordDict({ARRAYS: arrays, PLAN: plan.to_config_record(), ORDERS: orders})


def deadline_of(content: RecordDict) -> float:
    """Return the seconds within which a train or statistics message is to be answered.

    Raises
    ------
    PlanError
        If they are missing, or no number above 0.
    """
    value = content.config_records.get(ORDERS, ConfigRecord()).get(DEADLINE)
    if not (isinstance(value, float) and value > 0):
        raise PlanError(
            "the deadline is missing or not understood", where=f"{ORDERS}, {DEADLINE}", got=value
        )
    return value


def wants_evaluation(content: RecordDict) -> bool:
    """Return whether a train message asks for an evaluation of the model it carries."""
    return content.config_records.get(ORDERS, ConfigRecord()).get(EVALUATE) is True


def train_reply_content(
    arrays: ArrayRecord, metrics: Mapping[str, float | int], plan_id: str
) -> RecordDict:
    """Return the content of a site's answer to a train message."""
    return RecordDict(
        {
            ARRAYS: arrays,
            METRICS: MetricRecord(dict(metrics)),
            REPLY: ConfigRecord({PLAN_ID: plan_id}),
        }
    )


def evaluate_content(arrays: ArrayRecord) -> RecordDict:
    """Return the content of an evaluate message."""
    return RecordDict({ARRAYS: arrays})


def evaluate_reply_content(metrics: Mapping[str, float | int]) -> RecordDict:
    """Return the content of a site's answer to an evaluate message."""
    return RecordDict({METRICS: MetricRecord(dict(metrics))})


def statistics_content(arrays: ArrayRecord, plan_id: str, deadline_s: float) -> RecordDict:
    """Return the content of a statistics message; ``plan_id`` names the model it carries."""
    orders = ConfigRecord({DEADLINE: float(deadline_s), PLAN_ID: plan_id})
    return RecordDict({ARRAYS: arrays, ORDERS: orders})


def statistics_plan_id(content: RecordDict) -> str:
    """Return the id that the answer to a statistics message must give.

    Raises
    ------
    PlanError
        If it is missing.
    """
    value = content.config_records.get(ORDERS, ConfigRecord()).get(PLAN_ID)
    if not (isinstance(value, str) and value):
        raise PlanError("the id is missing", where=f"{ORDERS}, {PLAN_ID}", got=value)
    return value


def statistics_reply_content(arrays: ArrayRecord, num_examples: int, plan_id: str) -> RecordDict:
    """Return the content of a site's answer to a statistics message."""
    return train_reply_content(arrays, {NUM_EXAMPLES: num_examples}, plan_id)
