"""Messages between coordinator and site: record names, and functions to build and read records.

There are four kinds of message:

- *hello* (a Flower query) asks a node for its site name.
- *train* carries the global model, a round plan and orders. The reply is the local model.
- *evaluate* carries the global model. The reply is metrics.
- *statistics* carries the global model and orders. The reply is the statistics of the model's
  BatchNorm layers on the site's data.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from strategies.common.errors import PlanError, RunError
from strategies.exchange.records import records_of
from strategies.method.round_plan import RoundPlan

PROTOCOL_VERSION = 3

LONGEST_TEXT = 128
"""Largest number of characters kept of a text from a site."""

ARRAYS, PLAN, METRICS, REPLY, SITE = "arrays", "plan", "metrics", "reply", "site"
ORDERS = "orders"
NUM_EXAMPLES, PLAN_ID, DEADLINE, EVALUATE = "num-examples", "plan-id", "deadline-s", "evaluate"

SHORTENED = "shortened"

BASE = "base"
"""Record, and its field, for the digest of the arrays of the model that are not exchanged."""

STATISTICS_ACTION = "statistics"
STATISTICS = f"{MessageType.EVALUATE}.{STATISTICS_ACTION}"
"""Flower's message type for *statistics*."""

NUM_VALIDATION = "num-validation-examples"
"""Number of examples on which a site has evaluated the global model."""


@dataclass(frozen=True)
class SiteCard:
    """A site's introduction: what it reports about itself when it first answers.

    Older versions of mdc-flower do not send ``device`` and the fields after it. These fields are
    then empty or 0.

    Attributes
    ----------
    name : str
        The site's name: ``site`` in its node config, or ``site-<partition>`` in simulation.
    num_partitions : int
        Total number of simulated sites; 0 at a real site.
    version : str
        Version of mdc-flower at the site.
    simulated : bool
        Whether the site belongs to Flower's simulation engine.
    protocol : int
        Version of this module's records.
    device : str
        Device on which the site trains, such as ``NVIDIA H100``.
    number_format : str
        Number format of forward and backward passes, such as ``bfloat16``.
    threads : int
        CPU threads; 0 if unknown.
    model_code, dataset_code, job_code : str
        SHA-256, in hex, of the site's copy of the user module that the run names as ``model``,
        ``dataset`` or ``job``; empty if there is none.
    num_examples : int
        Training examples in the site's data set, before any are held out or left out; 0 if not
        reported.
    keeps_state : bool
        Whether the site has a place for state that it keeps from round to round.
    ranks : int
        Processes that train together, each on such a device.
    sharded : bool
        Whether each of them keeps only its share of the model.
    data_form : str
        At a real site, short digests of what the sites must agree on about their data; see
        `mdc_flower.data.identity.form_of`. Empty if that is not known.
    data_sha256 : str
        At a simulated site, a digest of the data set that all of them share; empty if not known.
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
    job_code: str = ""
    keeps_state: bool = False
    ranks: int = 1
    sharded: bool = False
    data_form: str = ""
    data_sha256: str = ""

    @property
    def machine(self) -> str:
        """Return device, number format, threads and processes in one line; empty if unknown."""
        if not self.device:
            return ""
        count = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"
        one = f"{self.device}, {self.number_format}, {count}"
        if self.ranks == 1:
            return one
        return f"{self.ranks} ranks x {one}" + (", sharded" if self.sharded else "")

    def to_content(self) -> RecordDict:
        """Return the card as the content of a hello reply."""
        return RecordDict({SITE: ConfigRecord(asdict(self))})

    @classmethod
    def from_content(cls, content: RecordDict) -> "SiteCard":
        """Read a hello reply.

        Raises
        ------
        RunError
            If the reply is not a site card or uses another protocol version.
        """
        record = records_of(content, ConfigRecord).get(SITE, ConfigRecord())
        name, partitions = record.get("name"), record.get("num_partitions")
        version, protocol = record.get("version"), record.get("protocol")
        if protocol != PROTOCOL_VERSION:
            raise RunError(
                "the node uses another protocol version",
                where="hello reply",
                got=protocol,
                expected=str(PROTOCOL_VERSION),
                hint="Coordinator and sites must run the same version of mdc-flower",
            )
        if not (isinstance(name, str) and name and isinstance(partitions, int)):
            raise RunError("the node did not give a site name", where="hello reply", got=name)
        threads = record.get("threads")
        count, ranks = record.get("num_examples"), record.get("ranks")
        return cls(
            name,
            partitions,
            str(version),
            record.get("simulated") is True,
            device=_text_field(record, "device"),
            number_format=_text_field(record, "number_format"),
            threads=threads if isinstance(threads, int) and threads > 0 else 0,
            model_code=_text_field(record, "model_code"),
            dataset_code=_text_field(record, "dataset_code"),
            num_examples=count if isinstance(count, int) and count > 0 else 0,
            job_code=_text_field(record, "job_code"),
            keeps_state=record.get("keeps_state") is True,
            ranks=ranks if isinstance(ranks, int) and ranks > 0 else 1,
            sharded=record.get("sharded") is True,
            data_form=_text_field(record, "data_form"),
            data_sha256=_text_field(record, "data_sha256"),
        )


def _text_field(record: ConfigRecord, key: str) -> str:
    """Return a text field of a card, cut to `LONGEST_TEXT` printable characters."""
    value = record.get(key)
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:LONGEST_TEXT]


def arrays_to_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return named arrays as a record; order, shapes and dtypes are kept."""
    # Not items(): it would hold an array until the next one is read.
    return ArrayRecord({name: Array(np.asarray(arrays[name])) for name in arrays})


def moved_to_record(arrays: dict[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return named arrays as a record, and remove each from the dictionary once it is packed.

    Without other references, fewer than two copies of the arrays are in memory.
    """
    return ArrayRecord({name: Array(np.asarray(arrays.pop(name))) for name in list(arrays)})


def record_to_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Return a record's arrays by name, in the order of the record."""
    return {name: array.numpy() for name, array in record.items()}


def train_content(
    arrays: ArrayRecord, plan: RoundPlan, deadline_s: float, evaluate: bool = False
) -> RecordDict:
    """Return the content of a train message.

    The deadline and ``evaluate`` (whether to evaluate the model first) are not part of the plan: a
    round repeated with another deadline keeps its plan id.
    """
    orders = ConfigRecord({DEADLINE: float(deadline_s), EVALUATE: evaluate})
    return RecordDict({ARRAYS: arrays, PLAN: plan.to_config_record(), ORDERS: orders})


def with_base(content: RecordDict, base: str) -> RecordDict:
    """Add the digest of the arrays that are not exchanged to a message, if there is one."""
    if base:
        content[BASE] = ConfigRecord({BASE: base})
    return content


def base_in(content: RecordDict) -> str:
    """Return the digest of the arrays that are not exchanged; empty if there is none."""
    value = records_of(content, ConfigRecord).get(BASE, ConfigRecord()).get(BASE)
    return value if isinstance(value, str) else ""


def deadline_of(content: RecordDict) -> float:
    """Return the seconds within which a site must answer a train or statistics message.

    Raises
    ------
    PlanError
        If the deadline is missing or is not a number above 0.
    """
    value = records_of(content, ConfigRecord).get(ORDERS, ConfigRecord()).get(DEADLINE)
    if not (isinstance(value, float) and value > 0):
        raise PlanError(
            "the deadline is missing or is not a number above 0",
            where=f"{ORDERS}, {DEADLINE}",
            got=value,
        )
    return value


def wants_evaluation(content: RecordDict) -> bool:
    """Return whether a train message asks for an evaluation of the model it carries."""
    return records_of(content, ConfigRecord).get(ORDERS, ConfigRecord()).get(EVALUATE) is True


def train_reply_content(
    arrays: ArrayRecord, metrics: Mapping[str, float | list[float]], plan_id: str
) -> RecordDict:
    """Return the content of a site's reply to a train message."""
    return RecordDict(
        {
            ARRAYS: arrays,
            METRICS: MetricRecord(dict(metrics)),
            REPLY: ConfigRecord({PLAN_ID: plan_id}),
        }
    )


def shortened(content: RecordDict) -> RecordDict:
    """Mark a train reply as one for which the site did not train the whole round just now."""
    record = records_of(content, ConfigRecord)[REPLY]
    return RecordDict({**content, REPLY: ConfigRecord({**record, SHORTENED: True})})


def is_shortened(content: RecordDict) -> bool:
    """Return whether a train reply is marked by `shortened`."""
    return records_of(content, ConfigRecord).get(REPLY, ConfigRecord()).get(SHORTENED) is True


def evaluate_content(arrays: ArrayRecord) -> RecordDict:
    """Return the content of an evaluate message."""
    return RecordDict({ARRAYS: arrays})


def evaluate_reply_content(metrics: Mapping[str, float | list[float]]) -> RecordDict:
    """Return the content of a site's reply to an evaluate message."""
    return RecordDict({METRICS: MetricRecord(dict(metrics))})


def statistics_content(arrays: ArrayRecord, plan_id: str, deadline_s: float) -> RecordDict:
    """Return the content of a statistics message; ``plan_id`` names the model it carries."""
    orders = ConfigRecord({DEADLINE: float(deadline_s), PLAN_ID: plan_id})
    return RecordDict({ARRAYS: arrays, ORDERS: orders})


def statistics_plan_id(content: RecordDict) -> str:
    """Return the id that the reply to a statistics message must contain.

    Raises
    ------
    PlanError
        If it is missing.
    """
    value = records_of(content, ConfigRecord).get(ORDERS, ConfigRecord()).get(PLAN_ID)
    if not (isinstance(value, str) and value):
        raise PlanError("the plan id is missing", where=f"{ORDERS}, {PLAN_ID}", got=value)
    return value


def statistics_reply_content(arrays: ArrayRecord, num_examples: int, plan_id: str) -> RecordDict:
    """Return the content of a site's reply to a statistics message."""
    return train_reply_content(arrays, {NUM_EXAMPLES: num_examples}, plan_id)
