"""`RoundLoop`: the round loop, and the only class that implements Flower's strategy hooks.

Each round sends a plan to the sites, gathers their updates (see `strategies.exchange.gathering` for
what happens when sites fail), averages them, and records what happened.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from strategies.aggregation.adapter_gaps import adapter_gaps
from strategies.aggregation.averaging import Arrays, Update, bounded
from strategies.aggregation.extrapolation import FedExP
from strategies.aggregation.outer_optimizers import next_model
from strategies.aggregation.pooled_statistics import Layers
from strategies.common.errors import DivergedError, RunError
from strategies.common.log import log
from strategies.exchange.attendance import Attendance, Awaited
from strategies.exchange.deadline import Deadline, Pacing
from strategies.exchange.example_counts import Claims
from strategies.exchange.gate import judge_train, unfit_model
from strategies.exchange.gathering import Gathering, Request, Terms
from strategies.exchange.lineage import Lineages
from strategies.exchange.membership import Membership
from strategies.exchange.messages import (
    arrays_to_record,
    moved_to_record,
    train_content,
    with_base,
)
from strategies.exchange.metrics import TRAIN_SECONDS, VALIDATION, SiteMetrics, Value
from strategies.exchange.records import record_views
from strategies.exchange.shared_model import SharedModel
from strategies.exchange.signature import with_signature
from strategies.exchange.site_evaluation import add_evaluation, site_evaluation
from strategies.exchange.transport import Exchange
from strategies.exchange.update_store import MemoryUpdates, UpdateStore
from strategies.method.local_work import Horizon, WorkState, count_round, relative_change
from strategies.method.recipes import Recipe
from strategies.method.round_plan import PARTS, RoundPlan
from strategies.pending_evaluation import EvaluateFn, Inline, PendingEvaluation
from strategies.recalibration import Recalibration
from strategies.storage.position import Position
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.round_record import RoundRecord, RunObserver


class RoundLoop(Strategy):
    """Flower strategy that sends a plan each round and averages the sites' updates.

    Parameters
    ----------
    recipe : Recipe
        The method: schedule, local work, weighting, outer optimizer, horizon.
    membership : Membership
        Sites that are online at the start of the run. It is refreshed before every round.
    seed : int
        The run's seed.
    trainable : frozenset of str
        Names of the trainable float parameters. The outer optimizer changes only these, and the
        relative change is computed over them.
    observers : iterable of RunObserver
        Notified of every round.
    updates : UpdateStore
        Stores accepted updates until their round is over.
    position : Position or None
        Position to resume from; None to start at round 1.
    site_evaluation : bool
        Whether the sites evaluate the global model on their validation data. The model that a
        round starts from is evaluated as part of that round; the final model is evaluated in a
        separate exchange.
    min_sites : int
        The quorum: a round with fewer updates is repeated; >= 1.
    max_round_retries : int
        How often a round is repeated before the run stops.
    wait_s : float
        Longest wait, in seconds, for sites that went offline, both before and during a round.
    quorum_patience_s : float
        Longest wait, in seconds, for the quorum, if longer than ``wait_s``.
    deadline : Deadline
        Rule for how long to wait for the replies of a round.
    max_relative_update : float
        Largest allowed norm of an update, relative to the norm of the global model; 0 for no bound.
    executor : Executor or None
        Runs the coordinator's evaluation of each global model during the next round. None to
        evaluate before the next round begins.
    variances : frozenset of str
        Names of the arrays that hold variances, in updates and in the global model.
    metrics : SiteMetrics
        The metrics that a site may send, and which one selects the best model, as measured on
        validation examples: the coordinator's, or the sites' if the coordinator has none. A metric
        of the test set never selects.
    state_run : str
        The run's number in the names of the states that sites keep from round to round; empty if
        they keep none.
    base : str
        Digest of the model's arrays that are not exchanged, which sites compare with their own;
        empty if there are none.
    signature : Mapping[str, str]
        What sites must agree on about the job; each compares it with its own.
    from_disk : callable
        Takes a position that the observers have stored; returns the same position with arrays of
        which no more is in memory than is being used.
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
        metrics: SiteMetrics | None = None,
        state_run: str = "",
        base: str = "",
        signature: Mapping[str, str] | None = None,
        from_disk: Callable[[Position], Position] = lambda position: position,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.trainable = trainable
        self.observers = tuple(observers)
        self.updates = updates if updates is not None else MemoryUpdates()
        self.site_evaluation = site_evaluation
        self.terms = Terms(min_sites, max_round_retries, wait_s, quorum_patience_s)
        self.deadline = deadline or Deadline()
        self.max_relative_update = max_relative_update
        self.executor = executor or Inline()
        self.variances = variances
        self.metrics = metrics or SiteMetrics()
        self.state_run = state_run
        self.base = base
        self.signature = signature or {}
        self.from_disk = from_disk
        # Sites known to an earlier process also count as missing.
        start = position or Position({}, recipe.controller.start())
        # An earlier process planned the open round with its own config; budgets may have changed.
        self._position = replace(start, work=recipe.controller.after_round(start.work, None))
        known = {*start.pace, *start.absent}
        membership = replace(membership, names=membership.names | known)
        # The wait at the start of the run included these sites.
        self._sites = Attendance(membership, frozenset(membership.missing))
        self._model = SharedModel(self._position.arrays)
        self._round: _OpenRound | None = None
        self._work_in: dict[int, float] = {}  # of each round of this process
        self._caller = Horizon(None, None)
        self._claims = Claims()

    def summary(self) -> None:
        """Log the schedule, local work, outer optimizer and horizon, one per line."""
        log(INFO, "\t├──> Learning rate: %s", self.recipe.schedule)
        log(INFO, "\t├──> Local %s: %s", self.recipe.unit, self.recipe.controller)
        log(INFO, "\t├──> Outer optimizer: %s", self.recipe.outer)
        log(INFO, "\t└──> Horizon: %s", self.recipe.horizon)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round or repeat it; return one message for each site to ask.

        Waits first for sites that went offline. Sites whose updates are already stored, by an
        earlier attempt or an earlier process, are not asked again. ``config`` is neither read nor
        changed: the plan contains every instruction to a site.
        """
        if self._round is None or self._round.plan != self._plan():
            self._place(replace(self._position, arrays=record_views(arrays)))
        return self._ask(grid)

    def _ask(self, grid: Grid) -> list[Message]:
        """Open a round from the current position, or repeat it; see `configure_train`."""
        plan = self._plan()
        if self._round is None or self._round.plan != plan:
            self._round = self._open(plan)
        gathering = self._round.gathering
        messages = gathering.ask(grid)
        self._sites = gathering.sites
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check replies as they arrive, store the accepted ones, and average them in site order.

        Returns
        -------
        tuple
            The new global model and the mean training metrics, or ``(None, None)`` if there are
            fewer accepted updates than the quorum. In that case the record is marked as failed.

        Raises
        ------
        EngineError
            If a reply reports that a simulation worker died.
        DivergedError
            If the new global model cannot be used.
        """
        metrics = self._aggregate(replies)
        if metrics is None:
            return None, None
        return arrays_to_record(self._opened().after), metrics

    def _aggregate(self, replies: Iterable[Message]) -> MetricRecord | None:
        """Set the model after the open round; return the metrics. See `aggregate_train`."""
        opened = self._opened()
        record, gathering = opened.record, opened.gathering
        updates = gathering.take(replies)
        self._sites = gathering.sites
        record.failed = not gathering.has_quorum(updates)
        sent = {update.site: update.metrics for update in updates}
        record.participants = {site: self.metrics.values(of) for site, of in sent.items()}
        earlier = self._position.counted  # empty in the first round, and of earlier versions
        record.joined = [site for site in sent if earlier and site not in earlier]
        record.began_anew = [update.site for update in updates if update.began_anew]
        machines = self._sites.membership.machines
        record.machines = {site: machines[site] for site in record.participants if site in machines}
        record.training = self.metrics.mean_training(sent)
        record.training.pop(TRAIN_SECONDS, None)  # a time is no result
        record.start_evaluation = self.metrics.mean_validation(sent, self.recipe.max_site_weight)
        opened.updates = updates
        if record.failed:
            return None
        before = self._position.arrays
        weighting = bounded(self.recipe.weighting, updates, self.recipe.max_site_weight)
        record.adapter_gaps = adapter_gaps(updates, weighting)
        outer = self.recipe.outer_of(self._position.work)
        if isinstance(outer, FedExP):
            outer = outer.step_of(before, updates, weighting, self.trainable)
        opened.after, opened.outer_state = next_model(
            outer,
            self._position.outer_state,
            before,
            updates,
            weighting,
            self.trainable,
        )
        self._check_model(opened.after)
        record.relative_change = relative_change(before, opened.after, self.trainable)
        return MetricRecord({**record.training})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last round, return one message for each site with the new model.

        After other rounds return nothing: the sites evaluate the model as part of the next round.
        """
        if not self._evaluates_now():
            return []
        opened = self._opened()
        pacing = self._pass_pacing({**self._position.pace, **opened.pace})
        opened.evaluation = site_evaluation(
            arrays,
            opened.plan.round,
            self._sites,
            pacing,
            self._claims,
            self.metrics,
            self.base,
            Lineages(self.state_run, self._counted_in(opened)),
            self.signature,
        )
        messages = opened.evaluation.ask(grid)
        # Nobody waits for an evaluation, so who is offline now is no reason not to wait later.
        self._sites = replace(opened.evaluation.sites, absent=self._sites.absent)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the sites' metrics, averaged by number of examples; None if there are none."""
        opened = self._opened()
        if opened.evaluation is None:
            return None
        answers = opened.evaluation.take(replies)
        opened.record.site_evaluation = add_evaluation(
            opened.record, opened.evaluation, answers, self.recipe.max_site_weight, self.metrics
        )
        metrics = opened.record.site_evaluation
        return MetricRecord({**metrics}) if metrics else None

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

        This replaces Flower's own loop, which runs a fixed number of rounds from the first. Here
        rounds may become longer, a budget may end the run, a run may be resumed, and every round is
        recorded.

        Parameters
        ----------
        grid
            Flower's message transport.
        initial_arrays
            The model that round 1 starts from. Ignored if the strategy has a position.
        num_rounds
            Upper bound on the number of rounds, in addition to the recipe's horizon; 0 for none.
        timeout
            Seconds to wait for the replies of one exchange; 0 for the strategy's deadline.
        train_config, evaluate_config
            Accepted for compatibility with Flower. They are not used: the round plan contains all
            instructions.
        evaluate_fn
            Called by the strategy's executor after each round, with the round number and the new
            global model.

        Returns
        -------
        Result
            Flower's result: the final arrays and the metrics of each round.

        Raises
        ------
        QuorumError
            If a round had too few updates in every attempt.
        SiteInputError
            If a round had too few updates because sites cannot use their config, data or model.
        EngineError
            If a simulation worker died.
        DivergedError
            If the global model of a round cannot be used.
        """
        if timeout:
            self.deadline = Deadline(fixed_s=timeout)
        result = Result()
        if not self._position.arrays:
            self._place(replace(self._position, arrays=record_views(initial_arrays)))
        self._caller = Horizon(num_rounds or None, None)
        finish = partial(self._finish, result)
        evaluation = PendingEvaluation(evaluate_fn, self.executor, finish)
        exchange = Exchange(grid, evaluation.go_on)
        self.summary()
        if self._position.unfinished is not None:
            evaluation.begin(self._position.unfinished, self._model.record)
            evaluation.poll()
        while not self._is_over(self._position.work):
            started = time.monotonic()
            number = self._position.work.rounds_done + 1
            result.train_metrics_clientapp[number] = self._train(grid, exchange, evaluation)
            self._evaluate_at_sites(number, evaluate_config, grid, exchange, result)
            record = self._fold(exchange, time.monotonic() - started)
            evaluation.begin(record, self._model.record)
            record.seconds = time.monotonic() - started
            evaluation.poll()
        evaluation.wait()
        result.arrays = self._model.record()
        return result

    @property
    def position(self) -> Position:
        """Return the current position of the run; after `start` returns, the final one."""
        return self._position

    def recalibration(
        self,
        layers: Layers,
        updates: UpdateStore,
        results: Recalibrations,
        on_event: Callable[..., None] = lambda kind, **fields: None,
    ) -> Recalibration:
        """Return the exchange that recomputes BatchNorm statistics, with this run's settings.

        Parameters
        ----------
        layers
            Names of the model's running means and variances.
        updates
            Stores the sites' statistics until they are pooled.
        results
            Stores the outcome.
        on_event
            Called with the kind and the fields of each event.
        """
        return Recalibration(
            layers=layers,
            weighting=self.recipe.weighting,
            max_site_weight=self.recipe.max_site_weight,
            claims=self._claims,
            metrics=self.metrics,
            updates=updates,
            results=results,
            round_number=self._position.work.rounds_done,
            sites=self._sites,
            terms=self.terms,
            pacing=self._pass_pacing(self._position.pace),
            site_evaluation=self.site_evaluation,
            on_event=on_event,
            base=self.base,
        )

    def _pacing(self, work: int, pace: Mapping[str, float] | None = None) -> Pacing:
        """Return the pacing for this amount of work, based on the sites' known paces."""
        known = self._position.pace if pace is None else pace
        return Pacing(
            self.deadline,
            self.terms.min_sites,
            known,
            work,
            simulated=self._sites.membership.simulated,
        )

    def _pass_pacing(self, pace: Mapping[str, float]) -> Pacing:
        """Return the pacing for one forward pass over each site's data.

        One forward pass with both transfers takes less time than a round of epochs. A round of
        steps may be shorter than a pass, so its paces are not used.
        """
        known = {} if self.recipe.unit == "steps" else pace
        epoch = PARTS if self.recipe.unit == "parts" else 1
        return self._pacing(max(epoch, self._position.work.length), known)

    def _place(self, position: Position) -> None:
        """Set the position, and so the model to send."""
        self._position, self._model = position, SharedModel(position.arrays)

    def _plan(self) -> RoundPlan:
        return self.recipe.plan(self._position.work, self.seed)

    def _open(self, plan: RoundPlan) -> "_OpenRound":
        """Return a round in which no site has been asked yet."""
        before, model = self._position.arrays, self._model
        lineages = Lineages(self.state_run, self._position.counted)
        record = RoundRecord(plan.round, plan=plan.model_dump() | {"plan_id": plan.plan_id})
        request = Request(
            kind=MessageType.TRAIN,
            plan_id=plan.plan_id,
            round=plan.round,
            what="updates",
            content=lambda site, left_s: lineages.put_in(
                with_signature(
                    with_base(
                        train_content(model.record(), plan, left_s, self.site_evaluation), self.base
                    ),
                    self.signature,
                ),
                site,
            ),
            judge=lambda reply, site: lineages.judged(
                judge_train(
                    reply,
                    site,
                    plan.plan_id,
                    before,
                    self.max_relative_update,
                    self.variances,
                    self.metrics,
                )
            ),
            steps=plan.local_steps,
        )
        gathering = Gathering(
            request,
            record,
            self._sites,
            terms=self.terms,
            pacing=self._pacing(_work(plan)),
            claims=self._claims,
            store=self.updates,
            listener=_RoundListener(self.observers, plan, record, self.terms.min_sites),
        )
        return _OpenRound(plan, record, gathering)

    def _train(
        self,
        grid: Grid,
        exchange: Exchange,
        evaluation: PendingEvaluation,
    ) -> MetricRecord:
        """Repeat a round until the quorum is met; return the metrics."""
        while True:
            messages = self._ask(grid)
            opened = self._opened()
            replies = opened.gathering.replies(messages, exchange)
            del messages  # each with the model
            metrics = self._aggregate(evaluation.wait_after(replies))
            if metrics is not None:
                return metrics
            try:
                opened.gathering.repeat(opened.updates)
            except RunError:
                for observer in self.observers:
                    observer.round_failed(opened.record)
                raise

    def _evaluate_at_sites(
        self,
        number: int,
        config: ConfigRecord | None,
        grid: Grid,
        exchange: Exchange,
        result: Result,
    ) -> None:
        if not self._evaluates_now():
            return
        opened = self._opened()
        arrays, opened.after = dict(opened.after), {}
        after = moved_to_record(arrays)
        opened.after = record_views(after)
        messages = self.configure_evaluate(number, after, config or ConfigRecord(), grid)
        del after
        gathering = opened.evaluation
        if gathering is None:
            return
        metrics = self.aggregate_evaluate(number, gathering.replies(messages, exchange))
        if metrics is not None:
            result.evaluate_metrics_clientapp[number] = metrics

    def _evaluates_now(self) -> bool:
        """Return whether the sites evaluate the new model in an exchange of its own."""
        return self.site_evaluation and self._is_over(self._counted())

    def _fold(self, exchange: Exchange, seconds: float) -> RoundRecord:
        """Close the round, advance the position, and return the record, not yet finished."""
        opened, before = self._opened(), self._position
        record = opened.record
        late_pace: dict[str, float] = {}
        self._work_in[record.round] = _work(opened.plan)
        for asked in exchange.late():
            site = opened.gathering.name_of(asked.dst_node_id)
            record.late[site] = int(asked.group_id)
            if work := self._work_in.get(int(asked.group_id)):
                late_pace[site] = asked.seconds / work
            log(WARNING, "%s answered round %s too late", site, asked.group_id)
        record.seconds = seconds
        measured = {site: pace for site, pace in opened.pace.items() if pace}
        self._position = replace(
            before,
            arrays=opened.after,
            work=self.recipe.controller.after_round(self._counted(), record.relative_change),
            outer_state=opened.outer_state,
            # Late replies set the pace only of sites without one: otherwise a site that has never
            # answered in time would always get too little time. A site that became slower does
            # not get more time, because it could delay all others.
            pace={**opened.pace, **late_pace, **before.pace, **measured},
            absent=self._sites.absent,
            unfinished=record,
            counted=self._counted_in(opened),
        )
        for observer in self.observers:
            observer.round_folded(record, self._position)
        self._place(self.from_disk(self._position))
        self.updates.close(record.round)
        self._round = None
        return record

    def _finish(self, result: Result, record: RoundRecord, metrics: MetricRecord | None) -> None:
        """Complete a round's record, select the best model, and notify the observers."""
        if metrics is not None:
            record.evaluation = dict(metrics)
            result.evaluate_metrics_serverapp[record.round] = metrics
        best = self._position
        for number, score in self._scores(record):
            if self.beats(score, best):
                best = replace(best, best_round=number, best_score=score)
        self._position = replace(best, unfinished=None)
        for observer in self.observers:
            observer.round_finished(record, self._position)

    def beats(self, score: float, position: Position) -> bool:
        """Return whether a model with this score is better than the best of a position."""
        if not position.best_round:
            return not math.isnan(score)
        return self.metrics.selection.is_better(score, position.best_score)

    def score(self, evaluation: Mapping[str, Value]) -> float | None:
        """Return the value that selects the best model; None if the evaluation has none."""
        value = evaluation.get(VALIDATION + self.metrics.selection.name)
        return None if isinstance(value, list) else value

    def _scores(self, record: RoundRecord) -> list[tuple[int, float]]:
        """Return the scores in a record, each with the round number of the scored model."""
        at_coordinator = self.score(record.evaluation)
        if at_coordinator is not None:
            return [(record.round, at_coordinator)]
        at_sites = (
            (record.round - 1, self.score(record.start_evaluation)),
            (record.round, self.score(record.site_evaluation)),
        )
        # The model before round 1 is untrained.
        return [(number, score) for number, score in at_sites if number and score is not None]

    def _check_model(self, arrays: Arrays) -> None:
        """End the run if the new global model cannot be used; the previous model is kept."""
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
            hint="The sites' updates were valid. Start a new run with a lower outer-lr or another "
            "outer-optimizer. The run directory keeps the global model of the previous round",
        )

    def _counted(self) -> WorkState:
        """Return the state of the work after the open round."""
        work = self._position.work
        return count_round(work, self.recipe.length(work))

    def _counted_in(self, opened: "_OpenRound") -> dict[str, str]:
        """Return the plan id of the last round in which each site's update counted."""
        now = dict.fromkeys(opened.record.participants, opened.plan.plan_id)
        return {**self._position.counted, **now}

    def _is_over(self, work: WorkState) -> bool:
        return self.recipe.horizon.finished(work) or self._caller.finished(work)

    def _opened(self) -> "_OpenRound":
        if self._round is None:
            raise RuntimeError("no round is open; call configure_train first")
        return self._round


@dataclass
class _OpenRound:
    """State of the current round.

    Attributes
    ----------
    plan : RoundPlan
        Instructions to the sites.
    record : RoundRecord
        What has happened in the round so far.
    gathering : Gathering
        The exchange in which the sites train.
    evaluation : Gathering or None
        The exchange in which the sites evaluate the new model, if there is one.
    updates : list of Update
        The updates that count so far.
    outer_state : Arrays
        State of the outer optimizer after the round; empty until the new model exists.
    after : Arrays
        The new model; empty until it exists.
    """

    plan: RoundPlan
    record: RoundRecord
    gathering: Gathering
    evaluation: Gathering | None = None
    updates: list[Update] = field(default_factory=list)
    outer_state: Arrays = field(default_factory=dict)
    after: Arrays = field(default_factory=dict)

    @property
    def pace(self) -> dict[str, float]:
        """Return the seconds per unit of work of each site whose update counts, or 0."""
        return {update.site: update.pace for update in self.updates}


@dataclass(frozen=True)
class _RoundListener:
    """Passes the events of a round's exchange on to the observers of the run."""

    observers: tuple[RunObserver, ...]
    plan: RoundPlan
    record: RoundRecord
    quorum: int

    def awaited(self, awaited: Awaited) -> None:
        for observer in self.observers:
            observer.sites_awaited(awaited)

    def asked(self, sites: list[str], kept: list[str]) -> None:
        for observer in self.observers:
            observer.round_started(self.plan, sites, kept)

    def answered(self, site: str, reason: str | None) -> None:
        for observer in self.observers:
            observer.site_answered(self.plan.round, site, reason)

    def repeated(self) -> None:
        for observer in self.observers:
            observer.round_retried(self.record, self.quorum)


def _work(plan: RoundPlan) -> int:
    """Return a round's units of work: epochs, parts of an epoch, or steps."""
    return plan.local_steps or plan.local_parts or plan.local_epochs
