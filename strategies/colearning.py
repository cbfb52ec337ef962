"""`CoLearning`: the round loop, and the only class that knows Flower's strategy hooks.

On failure: a reply that is unfit, late or missing costs its round that site's update; the
site is named in the record. A round without any fit reply is recorded as failed and leaves
the global model as it was. Only an error on the coordinator itself ends the run.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from logging import INFO, WARNING
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from strategies.averaging import Arrays, Update, in_site_order, weighted_mean
from strategies.exchange import exchange
from strategies.local_epochs import Horizon, count_round, relative_change
from strategies.messages import (
    NUM_EXAMPLES,
    arrays_to_record,
    evaluate_content,
    record_to_arrays,
    train_content,
)
from strategies.recipes import Recipe
from strategies.reply_gate import Rejection, judge_evaluate, judge_train, specs_of
from strategies.roster import Roster, refresh
from strategies.round_plan import RoundPlan

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

SELECTION_METRIC = "validation-accuracy"
"""Metric by which the best model is chosen: never one of the test set."""


@dataclass
class RoundRecord:
    """What happened in one round: a line of ``history.jsonl``.

    Attributes
    ----------
    plan : dict
        The round plan, with its id.
    participants : dict
        Metrics of each site whose update was averaged.
    dropped : dict
        Reason for each site whose reply did not count.
    relative_change : float or None
        ``||w_i - w_{i-1}|| / ||w_{i-1}||`` over trainable parameters; None if failed.
    failed : bool
        Whether the global model stayed because no reply was fit.
    evaluation : dict
        Metrics of the new global model at the coordinator.
    site_evaluation : dict
        Metrics of the new global model over the sites' validation data.
    sent_bytes, received_bytes : int
        Model bytes to and from the sites, dropped replies included.
    seconds : float
        Wall time of the round.
    """

    round: int
    plan: dict[str, Any]
    participants: dict[str, dict[str, float]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    relative_change: float | None = None
    failed: bool = False
    evaluation: dict[str, Any] = field(default_factory=dict)
    site_evaluation: dict[str, float] = field(default_factory=dict)
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)


class RunObserver(Protocol):
    """Is told what happens in a run, when it happens."""

    def round_started(self, plan: RoundPlan, sites: Iterable[str]) -> None:
        """Take note that the plan goes out to these sites."""
        ...

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        """Take note of a site's reply; ``reason`` says why it does not count, if so."""
        ...

    def round_finished(self, record: RoundRecord, arrays: Arrays, is_best: bool) -> None:
        """Take note of a finished round and its global model."""
        ...


class CoLearning(Strategy):
    """Averaging with a learning-rate cycle and a number of local epochs sent each round.

    Parameters
    ----------
    recipe : Recipe
        The method: schedule, local epochs, weighting, horizon.
    roster : Roster
        Sites that are online at the start; looked up anew before every round.
    seed : int
        The run's seed.
    trainable : frozenset of str
        Names of the trainable float parameters, for the relative change.
    observers : iterable of RunObserver
        Told of every round.
    site_evaluation : bool
        Whether the sites evaluate each round's new global model, in a second exchange.
    """

    def __init__(
        self,
        recipe: Recipe,
        roster: Roster,
        *,
        seed: int,
        trainable: frozenset[str],
        observers: Iterable[RunObserver] = (),
        site_evaluation: bool = False,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.trainable = trainable
        self.observers = tuple(observers)
        self.site_evaluation = site_evaluation
        self._roster = roster
        self._state = recipe.controller.start()
        self._deadline_s = 3600.0
        self._plan: RoundPlan | None = None
        self._record: RoundRecord | None = None
        self._global: Arrays = {}

    def summary(self) -> None:
        """Log the method in one line each for schedule, epochs and horizon."""
        log(INFO, "\t├──> Learning rate: %s", self.recipe.schedule)
        log(INFO, "\t├──> Local epochs: %s", self.recipe.controller)
        log(INFO, "\t└──> Horizon: %s", self.recipe.horizon)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round: return one message for each site, with the model and the plan.

        ``config`` is neither read nor changed: all that a site is told stands in the plan.
        """
        self._roster = refresh(self._roster, grid)
        nodes = self._roster.nodes
        self._global = record_to_arrays(arrays)
        self._plan = plan = self.recipe.plan(self._state, self.seed)
        self._record = RoundRecord(
            plan.round,
            plan=plan.model_dump() | {"plan_id": plan.plan_id},
            sent_bytes=arrays.count_bytes() * len(nodes),
        )
        for observer in self.observers:
            observer.round_started(plan, nodes)
        return [
            self._message(node, server_round, MessageType.TRAIN, train_content(arrays, plan))
            for node in nodes.values()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge replies as they come, and average those that count, in site order.

        Returns
        -------
        tuple
            The new global model and the mean training metrics, or ``(None, None)`` if no
            reply counts; the round's record then says that it failed.
        """
        record = self._open_record()
        updates = [
            verdict
            for site, reply in self._by_site(replies)
            if isinstance(verdict := self._judge(site, reply), Update)
        ]
        if not updates:
            record.failed = True
            log(WARNING, "round %d failed: no reply counts %s", server_round, record.dropped)
            return None, None
        updates = in_site_order(updates)
        arrays = weighted_mean(updates, self.recipe.weighting)
        record.participants = {update.site: dict(update.metrics) for update in updates}
        record.relative_change = relative_change(self._global, arrays, self.trainable)
        return arrays_to_record(arrays), MetricRecord({**_mean_metrics(record.participants)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for each site with the new model, if sites evaluate at all."""
        if not self.site_evaluation:
            return []
        nodes = self._roster.nodes
        self._open_record().sent_bytes += arrays.count_bytes() * len(nodes)
        return [
            self._message(node, server_round, MessageType.EVALUATE, evaluate_content(arrays))
            for node in nodes.values()
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the sites' metrics averaged by their examples; None if there are none."""
        record = self._open_record()
        by_site: dict[str, Mapping[str, float]] = {}
        for site, reply in self._by_site(replies):
            verdict = judge_evaluate(reply, site)
            if isinstance(verdict, Rejection):
                before = f"{record.dropped[site]}; " if site in record.dropped else ""
                record.dropped[site] = f"{before}evaluation: {verdict.reason}"
            else:
                by_site[site] = verdict
        if not by_site:
            return None
        record.site_evaluation = _mean_metrics(dict(sorted(by_site.items())))
        return MetricRecord({**record.site_evaluation})

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run rounds until the recipe's horizon.

        Flower's own loop runs a fixed number of rounds; here local epochs may double, a
        budget may end the run, and each round is recorded, so the loop is written out.

        Parameters
        ----------
        grid
            Flower's message transport.
        initial_arrays
            The model that round 1 starts from.
        num_rounds
            Upper bound on the rounds beside the recipe's horizon; 0 for none.
        timeout
            Seconds to wait for the replies of one exchange.
        train_config, evaluate_config
            Accepted for Flower's sake and never changed; the round plan carries it all.
        evaluate_fn
            Called with the round and the new global model after each round.

        Returns
        -------
        Result
            Flower's result: final arrays and the metrics of each round.
        """
        self._deadline_s = timeout
        result = Result()
        result.arrays = arrays = initial_arrays
        best = float("-inf")
        caller = Horizon(num_rounds or None, None)
        self.summary()
        while not (self.recipe.horizon.finished(self._state) or caller.finished(self._state)):
            started = time.monotonic()
            number = self._state.rounds_done + 1
            messages = self.configure_train(number, arrays, train_config or ConfigRecord(), grid)
            replies = exchange(grid, messages, timeout)
            averaged, train_metrics = self.aggregate_train(number, replies)
            record = self._open_record()
            if averaged is not None and train_metrics is not None:
                result.arrays = arrays = averaged
                result.train_metrics_clientapp[number] = train_metrics
                self._evaluate(number, arrays, evaluate_config, grid, evaluate_fn, result)
            record.seconds = time.monotonic() - started
            score = record.evaluation.get(SELECTION_METRIC)
            is_best = score is not None and score > best
            best = score if is_best and score is not None else best
            for observer in self.observers:
                observer.round_finished(record, record_to_arrays(arrays), is_best)
            self._state = self.recipe.controller.after_round(
                count_round(self._state, self.recipe.epochs(self._state)), record.relative_change
            )
        return result

    def _evaluate(
        self,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord | None,
        grid: Grid,
        evaluate_fn: EvaluateFn | None,
        result: Result,
    ) -> None:
        messages = self.configure_evaluate(number, arrays, config or ConfigRecord(), grid)
        sites_metrics = self.aggregate_evaluate(number, exchange(grid, messages, self._deadline_s))
        if sites_metrics is not None:
            result.evaluate_metrics_clientapp[number] = sites_metrics
        server_metrics = evaluate_fn(number, arrays) if evaluate_fn else None
        if server_metrics is not None:
            self._open_record().evaluation = dict(server_metrics)
            result.evaluate_metrics_serverapp[number] = server_metrics

    def _message(self, node: int, server_round: int, kind: str, content: RecordDict) -> Message:
        """Return a message that is void once its reply is no longer waited for."""
        return Message(
            content,
            dst_node_id=node,
            message_type=kind,
            group_id=str(server_round),
            ttl=self._deadline_s,
        )

    def _judge(self, site: str, reply: Message) -> Update | Rejection:
        record, plan = self._open_record(), self._plan
        assert plan is not None  # set with the record
        verdict = judge_train(reply, site, plan.plan_id, specs_of(self._global))
        if reply.has_content():
            record.received_bytes += sum(
                arrays.count_bytes() for arrays in reply.content.array_records.values()
            )
        reason = verdict.reason if isinstance(verdict, Rejection) else None
        if reason is not None:
            record.dropped[site] = reason
            log(WARNING, "round %d: %s does not count: %s", plan.round, site, reason)
        for observer in self.observers:
            observer.site_answered(plan.round, site, reason)
        return verdict

    def _by_site(self, replies: Iterable[Message]) -> Iterable[tuple[str, Message]]:
        """Yield replies with the name of their site; unknown nodes and repeats are left out."""
        names = {node: site for site, node in self._roster.nodes.items()}
        for reply in replies:
            site = names.pop(reply.metadata.src_node_id, None)
            if site is not None:
                yield site, reply

    def _open_record(self) -> RoundRecord:
        if self._record is None:
            raise RuntimeError("no round is open: configure_train opens one")
        return self._record


def _mean_metrics(by_site: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics' means weighted by examples, and the examples' sum."""
    total = sum(metrics[NUM_EXAMPLES] for metrics in by_site.values())
    names = [name for name in next(iter(by_site.values())) if name != NUM_EXAMPLES]
    means = {
        name: sum(m[NUM_EXAMPLES] * m[name] for m in by_site.values()) / total for name in names
    }
    return {NUM_EXAMPLES: total, **means}
