"""Recipes: averaging methods as data, interpreted by one round loop.

A recipe combines a learning-rate schedule, a controller of local work, and an outer optimizer.
FedAvg and co-learning are two recipes for the same loop.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from strategies.aggregation.averaging import Weighting, by_examples, uniform
from strategies.aggregation.extrapolation import FedExP
from strategies.aggregation.outer_optimizers import (
    Adam,
    Average,
    Momentum,
    OuterOptimizer,
    momentum_for,
)
from strategies.method.growing import Growing
from strategies.method.local_work import (
    Fixed,
    Horizon,
    IncreasedLocalEpochs,
    QuadraticSynchronization,
    Unit,
    WorkController,
    WorkState,
    count_round,
)
from strategies.method.round_plan import PARTS, CycleShape, RoundPlan, cosine, parts_in

PeakShape = Literal["constant", "cosine", "linear"]
"""How the peaks of the cycles fall over the run, to zero at its end."""


@dataclass(frozen=True)
class LrSchedule:
    """The learning rate of every round.

    Attributes
    ----------
    lr_max : float
        Peak learning rate of round 1, > 0.
    lr_min_fraction : float
        Lowest learning rate of a round as a fraction of its peak, in [0, 1].
    shape : CycleShape
        Curve within a round.
    lr_max_decay : float
        Factor by which the peak changes from one round to the next, in (0, 1].
    peak_shape : PeakShape
        Curve on which the peaks lie, over the local work of the run.
    """

    lr_max: float
    lr_min_fraction: float = 0.25
    shape: CycleShape = "exponential"
    lr_max_decay: float = 1.0
    peak_shape: PeakShape = "constant"

    def peak(self, rounds_done: int, run_start: float = 0.0) -> float:
        """Return the peak learning rate of a round.

        Parameters
        ----------
        rounds_done
            Rounds before.
        run_start
            Fraction of the run's local work done before, in [0, 1).
        """
        decayed = self.lr_max * self.lr_max_decay**rounds_done
        match self.peak_shape:
            case "constant":
                return decayed
            case "cosine":
                return cosine(decayed, 0.0, run_start)
            case "linear":
                return decayed * (1.0 - run_start)


@dataclass(frozen=True)
class Recipe:
    """Everything that distinguishes one averaging method from another.

    Attributes
    ----------
    schedule : LrSchedule
        Learning rates.
    controller : WorkController
        Length of each round.
    horizon : Horizon
        When the run ends.
    unit : Unit
        What controller and horizon count: local epochs, parts of an epoch, or optimizer steps.
    weighting : Weighting
        Weight of each site in the average.
    max_site_weight : float
        Largest share of one site in the sum of the weights, in (0, 1].
    proximal_mu : float
        Weight of FedProx's proximal term at the sites; 0 turns it off.
    outer : OuterOptimizer
        How the coordinator applies the averaged update.
    plain_last : int
        Number of last rounds whose models are averaged without the outer optimizer.
    """

    schedule: LrSchedule
    controller: WorkController
    horizon: Horizon
    unit: Unit = "epochs"
    weighting: Weighting = by_examples
    max_site_weight: float = 1.0
    proximal_mu: float = 0.0
    outer: OuterOptimizer | FedExP = field(default_factory=Average)
    plain_last: int = 0

    def length(self, state: WorkState) -> int:
        """Return the units of local work of the next round."""
        return self.horizon.fit(state)

    def plan(self, state: WorkState, seed: int) -> RoundPlan:
        """Return the plan of the round after ``state``."""
        start, end = self._share_of_run(state)
        peak = self.schedule.peak(state.rounds_done, start)
        length, before = self.length(state), state.used
        return RoundPlan(
            round=state.rounds_done + 1,
            local_epochs=length if self.unit == "epochs" else 0,
            local_parts=length if self.unit == "parts" else 0,
            parts_before=before if self.unit == "parts" else 0,
            local_steps=length if self.unit == "steps" else 0,
            steps_before=before if self.unit == "steps" else 0,
            lr_max=peak,
            lr_min=peak * self.schedule.lr_min_fraction,
            shape=self.schedule.shape,
            run_start=start,
            run_end=end,
            seed=seed,
            proximal_mu=self.proximal_mu,
        )

    def outer_of(self, state: WorkState) -> OuterOptimizer | FedExP:
        """Return the outer optimizer of the round after ``state``; plain in the last rounds.

        With ILE, only the last round is known to be among the last.
        """
        for _ in range(self.plain_last):
            state = self.controller.after_round(count_round(state, self.length(state)), None)
            if self.horizon.finished(state):
                return Average()
        return self.outer

    def _share_of_run(self, state: WorkState) -> tuple[float, float]:
        """Return the fractions of the run's local work done before and after the next round."""
        rounds, budget = self.horizon.num_rounds, self.horizon.budget
        if isinstance(self.controller, Fixed) and rounds is not None and budget is not None:
            budget = min(budget, rounds * self.controller.length)
        if budget is not None:
            return state.used / budget, min(1.0, (state.used + self.length(state)) / budget)
        if rounds is not None:
            return state.rounds_done / rounds, min(1.0, (state.rounds_done + 1) / rounds)
        return 0.0, 1.0


def co_learning(
    epoch_budget: int,
    lr_max: float,
    initial_epochs: int,
    epsilon: float,
    max_epochs: int,
    lr_min_fraction: float = 0.25,
) -> Recipe:
    """Return co-learning: one learning-rate cycle per round, and ILE.

    Reconstructed from the abstract of arXiv 1810.06877. The formulas for the cycle and for the
    doubling are this project's own.
    """
    return Recipe(
        schedule=LrSchedule(lr_max, lr_min_fraction, "exponential"),
        controller=IncreasedLocalEpochs(initial_epochs, epsilon, max_epochs),
        horizon=Horizon(num_rounds=None, budget=epoch_budget),
    )


def annealed_co_learning(
    epoch_budget: int,
    num_rounds: int,
    lr_max: float,
    first_epochs: float = 0.1,
    lr_min_fraction: float = 0.25,
) -> Recipe:
    """Return annealed co-learning: cycles whose peak falls to zero, and growing rounds.

    The coordinator takes Nesterov steps, with a momentum that fits the number of rounds, and
    averages the last round plainly.
    """
    budget = epoch_budget * PARTS
    return Recipe(
        schedule=LrSchedule(lr_max, lr_min_fraction, "exponential", peak_shape="cosine"),
        controller=Growing(parts_in(first_epochs), budget, num_rounds),
        horizon=Horizon(num_rounds, budget),
        unit="parts",
        outer=Momentum(1.0, momentum_for(num_rounds), nesterov=True),
        plain_last=1,
    )


def fedavg(num_rounds: int, local_epochs: int, lr: float) -> Recipe:
    """Return FedAvg (McMahan et al., AISTATS 2017): fixed epochs, constant learning rate."""
    return Recipe(
        schedule=LrSchedule(lr, 1.0, "constant"),
        controller=Fixed(local_epochs),
        horizon=Horizon(num_rounds=num_rounds, budget=None),
    )


def qsr(epoch_budget: int, lr: float, base_epochs: int, alpha: float) -> Recipe:
    """Return the quadratic synchronization rule (Gu et al., ICLR 2024) under a cosine to zero.

    See `QuadraticSynchronization` for the units.
    """
    return Recipe(
        schedule=LrSchedule(lr, 0.0, "global-cosine"),
        controller=QuadraticSynchronization(base_epochs, alpha, lr, 0.0, epoch_budget),
        horizon=Horizon(num_rounds=None, budget=epoch_budget),
    )


def fedprox(num_rounds: int, local_epochs: int, lr: float, mu: float) -> Recipe:
    """Return FedProx (Li et al., MLSys 2020): FedAvg with a proximal term at the sites.

    All sites train the same number of local epochs; the paper also lets slow sites train less.
    """
    return replace(fedavg(num_rounds, local_epochs, lr), proximal_mu=mu)


def fedavgm(num_rounds: int, local_epochs: int, lr: float, momentum: float = 0.9) -> Recipe:
    """Return FedAvgM (Hsu et al., 2019): FedAvg with momentum at the coordinator."""
    return replace(fedavg(num_rounds, local_epochs, lr), outer=Momentum(1.0, momentum))


def fedadam(num_rounds: int, local_epochs: int, lr: float, outer_lr: float) -> Recipe:
    """Return FedAdam (Reddi et al., ICLR 2021): FedAvg with Adam at the coordinator.

    See `Adam` for the deviations.
    """
    return replace(fedavg(num_rounds, local_epochs, lr), outer=Adam(outer_lr))


def diloco(num_rounds: int, local_steps: int, lr: float) -> Recipe:
    """Return DiLoCo (Douillard et al., 2023): many local steps, Nesterov at the coordinator.

    The sites must be configured to train with AdamW. The learning rate follows one cosine over the
    whole run. In the paper the sites keep AdamW's state from round to round and warm up the
    learning rate; here the state is reset every round unless ``optimizer-state`` is ``keep``, and
    there is no warmup.
    """
    return Recipe(
        schedule=LrSchedule(lr, 0.0, "global-cosine"),
        controller=Fixed(local_steps),
        horizon=Horizon(num_rounds=num_rounds, budget=None),
        unit="steps",
        weighting=uniform,
        outer=Momentum(0.7, 0.9, nesterov=True),
    )
