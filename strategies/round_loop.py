"""`RoundLoop`: the round loop, and the only class that knows Flower's strategy hooks.

On failure: a site whose reply is unfit or missing is asked once more while there is time; what
does not count then costs the round that site's update, and the site is named in the record. A
round with fewer updates than the quorum is repeated, asking only the sites that are missing;
after that the run stops. Updates are kept in a store before they count, so that a coordinator
that dies asks only the sites whose updates it did not have.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from strategies.aggregation.averaging import Arrays, bounded
from strategies.aggregation.outer_optimizers import next_model
from strategies.aggregation.pooled_statistics import Layers
from strategies.common.errors import DivergedError, EngineError
from strategies.common.fault_points import reach
from strategies.common.log import log
from strategies.exchange.attendance import Attendance, Awaited
from strategies.exchange.causes import Cause
from strategies.exchange.deadline import Deadline, Pacing
from strategies.exchange.example_counts import Claims
from strategies.exchange.gate import Rejection, engine_died, judge_train, unfit_model
from strategies.exchange.membership import Membership
from strategies.exchange.messages import (
    VALIDATION_ACCURACY,
    arrays_to_record,
    evaluate_content,
    record_to_arrays,
    train_content,
)
from strategies.exchange.metrics import judged_evaluations, mean_metrics, mean_validation
from strategies.exchange.requests import Requests
from strategies.exchange.traffic import Traffic
from strategies.exchange.transport import Exchange
from strategies.method.local_epochs import EpochState, Horizon, count_round, relative_change
from strategies.method.recipes import Recipe
from strategies.method.round_plan import RoundPlan
from strategies.pending_evaluation import EvaluateFn, Inline, PendingEvaluation
from strategies.recalibration import Recalibration
from strategies.storage.position import Position
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.round_record import RoundRecord, RunObserver
from strategies.storage.updates import MemoryUpdates, UpdateStore
from strategies.too_few_sites import too_few

SELECTION_METRIC = "validation-accuracy"
"""The coordinator's metric by which the best model is chosen: never one of the test set.

Without it, because the coordinator has no data, the sites' own is taken.
"""


class RoundLoop(Strategy):
    """Averaging with a learning-rate cycle and a number of local epochs sent each round.

    Parameters
    ----------
    recipe : Recipe
        The method: schedule, local epochs, weighting, outer optimizer, horizon.
    membership : Membership
        Sites that are online at the start, after a wait for all; looked up anew before every
        round.
    seed : int
        The run's seed.
    trainable : frozenset of str
        Names of the trainable float parameters: the outer optimizer moves them, and the relative
        change is theirs.
    observers : iterable of RunObserver
        Told of every round.
    updates : UpdateStore
        Where accepted updates are kept until their round is over.
    position : Position or None
        Where to go on; None for the beginning.
    site_evaluation : bool
        Whether the sites evaluate the global model on their validation data: that which a
        round starts from in the round's own exchange, and the last in one of its own.
    min_sites : int
        Updates without which a round is repeated, >= 1.
    max_round_retries : int
        How often a round is repeated before the run stops.
    wait_s : float
        Longest wait, in seconds, for sites that have gone: at the start of a round, and in it.
    quorum_patience_s : float
        Longest wait, in seconds, for the quorum, where it is longer than ``wait_s``.
    deadline : Deadline
        How long a round's replies are waited for.
    max_relative_update : float
        Largest norm of an update, relative to the global model's; 0 for no bound.
    executor : Executor or None
        Where the coordinator evaluates each global model while the next round goes on; None to
        evaluate it before the next round begins.
    variances : frozenset of str
        Names of the arrays that are variances, of sites' updates and of the global model.
    """

    def __init__(
        self,
        recipe: Recipe,
        membership: Membership,
        *,
        seed: int,
        trainable: frozenset[str],
        observers: Iterable[RunObserver] = (),
        updates: UpdateStore | None = None,
        position: Position | None = None,
        site_evaluation: bool = False,
        min_sites: int = 1,
        max_round_retries: int = 2,
        wait_s: float = 600.0,
        quorum_patience_s: float = 0.0,
        deadline: Deadline | None = None,
        max_relative_update: float = 0.0,
        executor: Executor | None = None,
        variances: frozenset[str] = frozenset(),
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.trainable = trainable
        self.observers = tuple(observers)
        self.updates = updates if updates is not None else MemoryUpdates()
        self.site_evaluation = site_evaluation
        self.min_sites = min_sites
        self.max_round_retries = max_round_retries
        self.wait_s = wait_s
        self.quorum_patience_s = quorum_patience_s
        self.deadline = deadline or Deadline()
        self.max_relative_update = max_relative_update
        self.executor = executor or Inline()
        self.variances = variances
        # Sites that an earlier process knew are missed, too.
        start = position or Position({}, recipe.controller.start())
        # An earlier process planned the open round by its own config; budgets may have changed.
        self._position = replace(start, epochs=recipe.controller.after_round(start.epochs, None))
        known = {*start.pace, *start.absent}
        membership = replace(membership, names=membership.names | known)
        # The wait at the start was for them, too.
        self._sites = Attendance(membership, frozenset(membership.missing))
        self._round: _OpenRound | None = None
        self._caller = Horizon(None, None)
        self._claims = Claims()

    def summary(self) -> None:
        """Log the method in one line each for schedule, epochs, outer optimizer and horizon."""
        log(INFO, "\t├──> Learning rate: %s", self.recipe.schedule)
        log(INFO, "\t├──> Local epochs: %s", self.recipe.controller)
        log(INFO, "\t├──> Outer optimizer: %s", self.recipe.outer)
        log(INFO, "\t└──> Horizon: %s", self.recipe.horizon)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round, or try it again: return a message for each site that is to be asked.

        Sites that have gone are waited for first. Those whose updates are kept already, by an
        earlier attempt or an earlier process, are not asked again. ``config`` is neither read
        nor changed: all that a site is told stands in the plan.
        """
        plan = self.recipe.plan(self._position.epochs, self.seed)
        again = self._round if self._round and self._round.plan == plan else None
        self.updates.open(plan.plan_id)
        if again is None:
            self._position = replace(self._position, arrays=record_to_arrays(arrays))
            facts = plan.model_dump() | {"plan_id": plan.plan_id}
            record = RoundRecord(plan.round, plan=facts)
            traffic = Traffic.of(self.updates.updates())
        else:
            record, traffic = again.record, again.requests.traffic
            record.attempts += 1
        kept = self.updates.sites()
        pacing = self._pacing(_work(plan)).knowing(self.updates.updates())
        longest_s = pacing.seconds(pacing.pace, record.attempts)
        self._sites = self._sites.waited(
            grid,
            kept,
            self.min_sites,
            min(self.wait_s, longest_s),
            self.quorum_patience_s,
            self._tell_awaited,
        )
        membership = self._sites.membership
        record.deadline_s = pacing.seconds({*membership.nodes, *kept}, record.attempts)
        record.missing = sorted(set(membership.missing) - set(kept) - set(traffic.times))
        requests = Requests(
            grid,
            membership,
            plan.round,
            lambda left_s: train_content(arrays, plan, left_s, self.site_evaluation),
            deadline_s=record.deadline_s,
            wait_s=self.wait_s,
            kept=kept,
            traffic=traffic,
            pacing=replace(pacing, simulated=membership.simulated),
        )
        self._round = _OpenRound(plan, record, requests)
        asked = [site for site in membership.nodes if site not in kept]
        for observer in self.observers:
            observer.round_started(plan, asked, kept)
        reach("sending", round=plan.round)
        return requests.first()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge replies as they come, keep those that count, and fold them in site order.

        Returns
        -------
        tuple
            The new global model and the mean training metrics, or ``(None, None)`` if fewer
            updates than the quorum count; the round's record then says that it failed.

        Raises
        ------
        EngineError
            If a reply says that the simulation's worker died.
        DivergedError
            If the new global model cannot be used.
        """
        opened = self._opened()
        record, requests = opened.record, opened.requests
        for reply in replies:
            if reply.metadata.message_type == MessageType.QUERY:
                requests.introduce(reply)
            else:
                self._take(reply)
            del reply  # before the next one comes: it holds a whole model
        self._sites = replace(self._sites, membership=requests.membership)
        record.asked_again = requests.traffic.asked_again()
        record.sent_bytes = requests.traffic.sent_bytes.total()
        record.received_bytes = requests.traffic.received_bytes.total()
        record.missing = sorted(set(record.missing) - set(requests.times))
        updates = self.updates.updates()
        reach("folding", round=server_round)
        for site in sorted(requests.accepted - {update.site for update in updates}):
            record.dropped[site] = "its update was damaged on the coordinator's disk"
            record.causes[site] = Cause.DAMAGED
        opened.pace = {update.site: update.pace for update in updates}
        record.failed = len(updates) < self.min_sites
        record.participants = {update.site: dict(update.metrics) for update in updates}
        machines = requests.membership.machines
        record.machines = {site: machines[site] for site in record.participants if site in machines}
        record.start_evaluation = mean_validation(record.participants, self.recipe.max_site_weight)
        if record.failed:
            log(
                WARNING,
                "round %d: %d updates count, the quorum is %d; dropped: %s",
                server_round,
                len(updates),
                self.min_sites,
                record.dropped or "none",
            )
            return None, None
        before = self._position.arrays
        arrays, opened.outer_state = next_model(
            self.recipe.outer,
            self._position.outer_state,
            before,
            updates,
            bounded(self.recipe.weighting, updates, self.recipe.max_site_weight),
            self.trainable,
        )
        self._judge_model(arrays)
        record.relative_change = relative_change(before, arrays, self.trainable)
        return arrays_to_record(arrays), MetricRecord({**mean_metrics(record.participants)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for each site with the new model, after the last round.

        After any other the sites get that model for the next round, and evaluate it then.
        """
        if not (self.site_evaluation and self._is_over(self._counted())):
            return []
        opened, membership = self._opened(), self._sites.membership
        pacing = self._pass_pacing({**self._position.pace, **opened.pace})
        opened.evaluation = Requests(
            grid,
            membership,
            opened.plan.round,
            lambda left_s: evaluate_content(arrays),
            deadline_s=pacing.seconds(membership.nodes),
            wait_s=0.0,
            kind=MessageType.EVALUATE,
            pacing=pacing,
            again=False,
        )
        return opened.evaluation.first()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the sites' metrics averaged by their examples; None if there are none."""
        opened = self._opened()
        record, requests = opened.record, opened.evaluation or opened.requests
        record.site_evaluation = judged_evaluations(
            replies, requests, record.dropped, self._claims, self.recipe.max_site_weight
        )
        return MetricRecord({**record.site_evaluation}) if record.site_evaluation else None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run rounds until the recipe's horizon.

        Flower's own loop runs a fixed number of rounds from the first; here local epochs may
        double, a budget may end the run, a run may go on where another process left it, and
        each round is recorded, so the loop is written out.

        Parameters
        ----------
        grid
            Flower's message transport.
        initial_arrays
            The model that round 1 starts from; unused where the strategy has a position.
        num_rounds
            Upper bound on the rounds beside the recipe's horizon; 0 for none.
        timeout
            Seconds to wait for the replies of one exchange; 0 for the strategy's deadline.
        train_config, evaluate_config
            Accepted for Flower's sake and never changed; the round plan carries it all.
        evaluate_fn
            Called with the round and the new global model after each round, by the strategy's
            executor.

        Returns
        -------
        Result
            Flower's result: final arrays and the metrics of each round.

        Raises
        ------
        QuorumError
            If a round had too few updates as often as it may be tried.
        SiteInputError
            The same, where sites cannot use their config, data or model.
        EngineError
            If the simulation's worker died.
        DivergedError
            If a round's global model cannot be used.
        """
        if timeout:
            self.deadline = Deadline(fixed_s=timeout)
        result = Result()
        arrays = initial_arrays
        if self._position.arrays:
            arrays = arrays_to_record(self._position.arrays)
        self._caller = Horizon(num_rounds or None, None)
        finish = partial(self._finish, result)
        evaluation = PendingEvaluation(evaluate_fn, self.executor, finish)
        exchange = Exchange(grid, evaluation.look)
        self.summary()
        if self._position.unfinished is not None:
            evaluation.begin(self._position.unfinished, arrays)
            evaluation.look()
        while not self._is_over(self._position.epochs):
            started = time.monotonic()
            number = self._position.epochs.rounds_done + 1
            arrays, result.train_metrics_clientapp[number] = self._train(
                number, arrays, train_config, grid, exchange, evaluation
            )
            self._evaluate_at_sites(number, arrays, evaluate_config, grid, exchange, result)
            record = self._fold(arrays, exchange, time.monotonic() - started)
            evaluation.begin(record, arrays)
            record.seconds = time.monotonic() - started
            evaluation.look()
        evaluation.wait()
        result.arrays = arrays
        return result

    @property
    def position(self) -> Position:
        """Return where the run stands: after its last round, once `start` has returned."""
        return self._position

    def recalibration(
        self,
        layers: Layers,
        updates: UpdateStore,
        results: Recalibrations,
        on_event: Callable[..., None] = lambda kind, **fields: None,
    ) -> Recalibration:
        """Return what takes BatchNorm's statistics anew, on the terms of this run's rounds.

        Parameters
        ----------
        layers
            Names of the model's running means and variances.
        updates
            Where the sites' statistics are kept until they are folded.
        results
            Where the outcome is kept.
        on_event
            Told what happens, as a kind and fields.
        """
        return Recalibration(
            layers=layers,
            weighting=self.recipe.weighting,
            max_site_weight=self.recipe.max_site_weight,
            claims=self._claims,
            updates=updates,
            results=results,
            round_number=self._position.epochs.rounds_done,
            sites=self._sites,
            min_sites=self.min_sites,
            max_round_retries=self.max_round_retries,
            wait_s=self.wait_s,
            quorum_patience_s=self.quorum_patience_s,
            pacing=self._pass_pacing(self._position.pace),
            site_evaluation=self.site_evaluation,
            on_event=on_event,
        )

    def _pacing(self, work: int, pace: Mapping[str, float] | None = None) -> Pacing:
        """Return how long sites may take for so much work, by their paces until now."""
        known = self._position.pace if pace is None else pace
        return Pacing(
            self.deadline, self.min_sites, known, work, simulated=self._sites.membership.simulated
        )

    def _pass_pacing(self, pace: Mapping[str, float]) -> Pacing:
        """Return how long sites may take to pass their data once through a model.

        One pass forward and both transfers take less than a round of epochs. A round of steps may
        be shorter than a pass, and tells nothing about it.
        """
        known = {} if self.recipe.local_steps else pace
        return self._pacing(max(1, self._position.epochs.local_epochs), known)

    def _train(
        self,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord | None,
        grid: Grid,
        exchange: Exchange,
        evaluation: PendingEvaluation,
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Try a round until enough updates count; return the new global model."""
        while True:
            messages = self.configure_train(number, arrays, config or ConfigRecord(), grid)
            record, requests = self._opened().record, self._opened().requests
            replies = exchange.replies(messages, record.deadline_s, requests)
            averaged, metrics = self.aggregate_train(number, evaluation.over_after(replies))
            self._sites = replace(self._sites, absent=self._sites.absent | requests.gone())
            if averaged is not None and metrics is not None:
                return averaged, metrics
            if record.attempts > self.max_round_retries:
                for observer in self.observers:
                    observer.round_failed(record)
                raise too_few(
                    f"round {number} has too few updates",
                    record,
                    len(record.participants),
                    self.min_sites,
                    requests.membership.nodes,
                )
            for observer in self.observers:
                observer.round_retried(record, self.min_sites)

    def _evaluate_at_sites(
        self,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord | None,
        grid: Grid,
        exchange: Exchange,
        result: Result,
    ) -> None:
        record = self._opened().record
        messages = list(self.configure_evaluate(number, arrays, config or ConfigRecord(), grid))
        record.sent_bytes += arrays.count_bytes() * len(messages)
        requests = self._opened().evaluation
        replies = exchange.replies(messages, requests.deadline_s, requests) if requests else []
        sites_metrics = self.aggregate_evaluate(number, replies)
        if sites_metrics is not None:
            result.evaluate_metrics_clientapp[number] = sites_metrics

    def _fold(self, arrays: ArrayRecord, exchange: Exchange, seconds: float) -> RoundRecord:
        """Close the round: move to the position after it; return its record, not yet finished."""
        opened, before = self._opened(), self._position
        record = opened.record
        late_pace: dict[str, float] = {}
        for asked in exchange.late():
            site = opened.requests.name_of(asked.dst_node_id)
            record.late[site] = int(asked.group_id)
            late_pace[site] = asked.seconds / _work(opened.plan)
            log(WARNING, "%s answered round %s too late", site, asked.group_id)
        record.seconds = seconds
        self._position = replace(
            before,
            arrays=record_to_arrays(arrays),
            epochs=self.recipe.controller.after_round(self._counted(), record.relative_change),
            outer_state=opened.outer_state,
            # A site that has never answered in time would be given too little time for ever; one
            # that has become slower is not waited for longer, or it could stop all the others.
            pace={**late_pace, **before.pace, **opened.pace},
            absent=self._sites.absent,
            unfinished=record,
        )
        for observer in self.observers:
            observer.round_folded(record, self._position)
        self.updates.close(record.round)
        self._round = None
        return record

    def _finish(self, result: Result, record: RoundRecord, metrics: MetricRecord | None) -> None:
        """Complete a round's record, choose the best model, and tell the observers."""
        if metrics is not None:
            record.evaluation = dict(metrics)
            result.evaluate_metrics_serverapp[record.round] = metrics
        best_round, best_score = self._position.best_round, self._position.best_score
        for number, score in _scores(record):
            if score > best_score:
                best_round, best_score = number, score
        self._position = replace(
            self._position, best_round=best_round, best_score=best_score, unfinished=None
        )
        for observer in self.observers:
            observer.round_finished(record, self._position)

    def _take(self, reply: Message) -> None:
        """Judge one reply; keep its update if it counts."""
        opened = self._opened()
        record, plan, requests = opened.record, opened.plan, opened.requests
        site = requests.site_of(reply)
        if site is None or site in requests.accepted:
            log(WARNING, "round %d: a second reply of %s is left out", plan.round, site)
            return
        # A real site that says so has only itself to speak for.
        if self._sites.membership.simulated and engine_died(reply):
            raise EngineError(
                "a worker of the simulation died",
                where=f"round {plan.round}, {site}",
                got=(reply.error.reason or "").splitlines()[0],
            )
        verdict = judge_train(
            reply,
            site,
            plan.plan_id,
            self._position.arrays,
            self.max_relative_update,
            self.variances,
        )
        verdict = self._claims.judged(verdict, requests.membership.num_examples)
        requests.traffic.receive(site, reply)
        if isinstance(verdict, Rejection):
            record.dropped[site] = verdict.reason
            record.causes[site] = verdict.cause
            if verdict.detail:
                record.errors[site] = verdict.detail
            log(WARNING, "round %d: %s does not count: %s", plan.round, site, verdict.reason)
            requests.reject(site)
        else:
            pace = requests.seconds_of(site) / _work(plan)
            self.updates.add(requests.traffic.noted_on(replace(verdict, pace=pace)))
            record.dropped.pop(site, None)
            record.causes.pop(site, None)
            requests.accept(site)
            reach("update-accepted", round=plan.round, site=site, count=len(requests.accepted))
        for observer in self.observers:
            observer.site_answered(plan.round, site, record.dropped.get(site))

    def _judge_model(self, arrays: Arrays) -> None:
        """End the run if the new global model cannot be used; that before it stays the last."""
        opened = self._opened()
        why = unfit_model(self._position.arrays, arrays, opened.outer_state, self.variances)
        if why is None:
            return
        opened.record.failed = True
        for observer in self.observers:
            observer.round_failed(opened.record)
        raise DivergedError(
            f"the new global model cannot be used: {why}",
            where=f"round {opened.plan.round}, {self.recipe.outer}",
            hint="The sites' updates were fit. Start a new run with a lower outer-lr, or with "
            "another outer-optimizer; the global model in the run directory is that of the "
            "round before",
        )

    def _tell_awaited(self, awaited: Awaited) -> None:
        for observer in self.observers:
            observer.sites_awaited(awaited)

    def _counted(self) -> EpochState:
        """Return the epochs as they are when the open round is over."""
        epochs = self._position.epochs
        return count_round(epochs, self.recipe.epochs(epochs))

    def _is_over(self, epochs: EpochState) -> bool:
        return self.recipe.horizon.finished(epochs) or self._caller.finished(epochs)

    def _opened(self) -> "_OpenRound":
        if self._round is None:
            raise RuntimeError("no round is open: configure_train opens one")
        return self._round


@dataclass
class _OpenRound:
    """What is known of the round that goes on.

    Attributes
    ----------
    plan : RoundPlan
        What the sites are told.
    record : RoundRecord
        What has happened.
    asks : Requests
        The attempt that goes on.
    evaluation : Requests or None
        The exchange in which the sites evaluate the new model, if there is one.
    pace : dict
        Seconds that each site whose update counts took for a unit of work.
    outer_state : Arrays
        The outer optimizer's, when the round has its model.
    """

    plan: RoundPlan
    record: RoundRecord
    requests: Requests
    evaluation: Requests | None = None
    pace: Mapping[str, float] = field(default_factory=dict)
    outer_state: Arrays = field(default_factory=dict)


def _work(plan: RoundPlan) -> int:
    """Return a round's units of work: local epochs, or steps."""
    return plan.local_steps or plan.local_epochs


def _scores(record: RoundRecord) -> list[tuple[int, float]]:
    """Return the scores that a round has brought, each with the round whose model it is of."""
    if SELECTION_METRIC in record.evaluation:
        return [(record.round, record.evaluation[SELECTION_METRIC])]
    known = ((record.round - 1, record.start_evaluation), (record.round, record.site_evaluation))
    return [
        (number, metrics[VALIDATION_ACCURACY])
        for number, metrics in known
        # Before round 1 there is nothing that has been trained.
        if number and VALIDATION_ACCURACY in metrics
    ]
