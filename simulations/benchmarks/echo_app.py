"""A Flower app whose sites send the model back unchanged, to measure only the coordinator.

The same sites work with two coordinators: ours, with or without journal and checkpoints, and
Flower's FedAvg. The app does not import PyTorch, to keep processes small.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from strategies.exchange.deadline import Deadline
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN,
    SiteCard,
    arrays_to_record,
    evaluate_reply_content,
    train_reply_content,
    wants_evaluation,
)
from strategies.exchange.metrics import VALIDATION_ACCURACY, VALIDATION_LOSS
from strategies.exchange.records import records_of
from strategies.exchange.waiting import wait_for_sites
from strategies.method.recipes import fedavg
from strategies.round_loop import RoundLoop
from strategies.storage.lock import coordinator_lock
from strategies.storage.position import Position
from strategies.storage.run_directory import run_directory

NUM_ARRAYS = 10

ROUND_STARTS = "round-starts.txt"
"""File with the start time of each FedAvg round: Unix time in seconds, one line per round."""

VALIDATION = {NUM_VALIDATION: 1, VALIDATION_LOSS: 0.0, VALIDATION_ACCURACY: 0.0}

app = ServerApp()
site = ClientApp()


def arrays_of(megabytes: float) -> dict[str, NDArray[np.generic]]:
    """Return float32 arrays with this total size, in megabytes of 10**6 bytes."""
    size = int(megabytes * 1e6 / 4 / NUM_ARRAYS)
    random = np.random.default_rng(1)
    return {f"w{i}": random.random(size, dtype=np.float32) for i in range(NUM_ARRAYS)}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run rounds in ``output-dir`` with the coordinator given by the key ``coordinator``."""
    config = context.run_config
    kind, rounds = str(config["coordinator"]), int(config["num-rounds"])
    folder = Path(str(config["output-dir"]))
    arrays = arrays_of(float(config["megabytes"]))
    evaluate = bool(config.get("evaluate", False))
    if kind == "fedavg":
        folder.mkdir(parents=True)
        sites = int(config.get("num-sites", 2))
        strategy = _TimedFedAvg(
            folder / ROUND_STARTS,
            fraction_evaluate=1.0 if evaluate else 0.0,
            min_train_nodes=sites,
            min_evaluate_nodes=sites,
            min_available_nodes=sites,
        )
        with coordinator_lock(folder):  # records the pid whose memory is measured
            strategy.start(grid, ArrayRecord(list(arrays.values())), rounds)
    else:
        co_learning(grid, folder, arrays, rounds, kind == "co-learning", evaluate)


class _TimedFedAvg(FedAvg):
    """Flower's FedAvg; records when each round begins."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(**options)
        self._path = path

    def configure_train(self, server_round: int, *others: Any, **named: Any) -> Iterable[Message]:
        """Record the time, and configure the round as usual."""
        with self._path.open("a") as file:
            file.write(f"{time.time()}\n")
        return super().configure_train(server_round, *others, **named)


def co_learning(
    grid: Grid,
    folder: Path,
    arrays: dict[str, NDArray[np.generic]],
    rounds: int,
    stored: bool,
    evaluate: bool = False,
) -> None:
    """Run rounds of our own round loop, with or without journal and checkpoints."""
    recipe = fedavg(rounds, 1, 0.1)
    membership = wait_for_sites(grid, None, 120.0)
    with run_directory(folder, {}) as record:
        position = Position(arrays, recipe.controller.start())
        strategy = RoundLoop(
            recipe,
            membership,
            seed=1,
            trainable=frozenset(arrays),
            deadline=Deadline(fixed_s=600.0),
            site_evaluation=evaluate,
            observers=[record] if stored else [],
            updates=record.updates if stored else None,
            position=record.begin(arrays, position, {}) if stored else position,
            from_disk=record.from_disk if stored else lambda position: position,
        )
        del position, arrays
        strategy.start(grid, ArrayRecord())


@site.query()
def hello(message: Message, context: Context) -> Message:
    """Reply with the card of this site."""
    number, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    card = SiteCard(f"site-{int(number):03d}", int(count), "echo")
    return Message(card.to_content(), reply_to=message)


@site.train()
def train(message: Message, context: Context) -> Message:
    """Send the model back unchanged, after ``training-seconds`` of the run config."""
    time.sleep(float(context.run_config.get("training-seconds", 0.0)))
    content = message.content
    arrays = next(iter(records_of(content, ArrayRecord).values()))
    plan = records_of(content, ConfigRecord).get(PLAN)
    if plan is None:
        metrics = MetricRecord({NUM_EXAMPLES: 1})
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message)
    figures = {"num-steps": 1, "train-loss": 0.0, "train-accuracy": 0.0, "train-seconds": 0.0}
    if wants_evaluation(content):
        figures |= VALIDATION
    reply = train_reply_content(
        arrays_to_record({name: array.numpy() for name, array in arrays.items()}),
        {NUM_EXAMPLES: 1, **figures},
        str(plan["plan_id"]),
    )
    return Message(reply, reply_to=message)


@site.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with an accuracy of 0."""
    # Flower's FedAvg needs NUM_EXAMPLES as weight; our own loop accepts only VALIDATION.
    arrays = next(iter(records_of(message.content, ArrayRecord).values()))
    ours = any(name.startswith("w") for name in arrays)
    content = evaluate_reply_content(VALIDATION if ours else {NUM_EXAMPLES: 1, "accuracy": 0.0})
    return Message(content, reply_to=message)
