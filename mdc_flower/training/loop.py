"""One plain training loop and one evaluation loop, independent of Flower."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mdc_flower.common.seeded import seeded
from mdc_flower.training.gradients import Gradients, forward_pass
from mdc_flower.training.job import Job, Pass, add_sums, values_of
from mdc_flower.training.loop_state import LoopState
from mdc_flower.training.micro_batches import micro_batches
from mdc_flower.training.rates import set_lr
from mdc_flower.training.runtime import ONE, Runtime, Saved
from mdc_flower.training.stores import Store, load, save
from strategies.common.errors import DataError, DeadlineError
from strategies.common.seeds import derive_seed
from strategies.exchange.metrics import LOSS, Value, ratio
from strategies.method.round_plan import RoundPlan

PROGRESS_S = 10.0
"""Seconds between two progress reports within an epoch."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of local training, the same in every round.

    Attributes
    ----------
    optimizer : str
        ``sgd`` or ``adamw``; created again in each round.
    momentum, nesterov
        For ``sgd``.
    weight_decay : float
        L2 penalty for ``sgd``; decoupled for ``adamw``.
    batch_size : int
        Examples per step.
    label_smoothing : float
        In [0, 1).
    clip_norm : float
        Maximum norm of a step's gradient; 0 for no limit.
    autocast_dtype : torch.dtype or None
        Number format of the forward and backward passes; None for float32.
    compile : bool
        Whether to use torch.compile.
    micro_batch_size : int
        Largest number of examples that are computed at once; 0 for the whole batch.
    """

    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    batch_size: int = 32
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    autocast_dtype: torch.dtype | None = None
    compile: bool = False
    micro_batch_size: int = 0


@dataclass(frozen=True)
class Progress:
    """Progress of local training: ``step`` of ``num_steps`` steps, at learning rate ``lr``.

    ``epoch`` starts at 1. ``loss`` is the mean per example over the ``num_seen`` examples seen so
    far. ``seconds`` is the time since the start.
    """

    epoch: int
    step: int
    num_steps: int
    lr: float
    loss: float
    num_seen: int
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Result of local training; loss and metrics are over all examples seen.

    ``sums`` are the sums from which they were computed, those of the loss among them.
    """

    num_examples: int
    num_steps: int
    loss: float
    metrics: Mapping[str, Value]
    seconds: float
    sums: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """Mean loss and metrics over all examples; NaN and no metrics if there are none.

    ``sums`` are the sums from which they were computed, those of the loss among them.
    """

    num_examples: int
    loss: float
    metrics: Mapping[str, Value]
    sums: Mapping[str, list[float]] = field(default_factory=dict)


def train(
    model: nn.Module,
    job: Job,
    plan: RoundPlan,
    settings: TrainSettings,
    device: torch.device,
    site: str,
    on_progress: Callable[[Progress], None] | None = None,
    stop_at: float = math.inf,
    epochs: Store | None = None,
    carried: Store | None = None,
    runtime: Runtime = ONE,
) -> TrainResult:
    """Train ``model`` in place for one round.

    Before every optimizer step, the learning rate is set by `RoundPlan.lr_of_step`: the cycle is
    whole, whatever amount of data the site has.

    All randomness (order, augmentation, dropout, and other draws of the model from the global
    generators) comes from the plan's seed, its round and the site's name. A round that is counted
    in parts of an epoch goes on with the epoch that the round before has not finished, so order and
    augmentation then come from the number of the epoch instead of the round.

    ``on_progress`` is called at the end of each epoch, and every `PROGRESS_S` seconds in between.
    Training continues from the state in ``epochs``, which gets the state after each epoch but the
    last. Otherwise it begins with the optimizer's state in ``carried``, which gets that state at
    the end.

    Several processes (``runtime``) share each batch, so the number of steps and the learning rates
    do not depend on how many there are. All call this function alike. Only the deadline, progress
    reports, ``epochs`` and ``carried`` of the first one count. The result is the same in all.

    Raises
    ------
    DeadlineError
        If training does not finish by ``stop_at``, a time of `time.monotonic`.
    DataError
        If the job has no batch, or not as many as it says.
    """
    started = resumed = last_report = time.monotonic()
    per_epoch = 0 if plan.local_steps else _steps_per_epoch(job)
    steps = plan.steps(per_epoch)
    runtime.place(model, device)
    model.train()
    job.prepare(model)
    shared = runtime.wrap(model)
    forward = torch.compile(shared) if settings.compile else shared
    gradients = Gradients(
        job,
        shared,
        forward,
        runtime,
        partial(_autocast, device, settings.autocast_dtype),
        _proximal(model, plan.proximal_mu) if plan.proximal_mu else None,
    )
    state = LoopState(
        model,
        runtime.adapted(job.optimizer(model)),
        torch.amp.GradScaler(device.type, enabled=settings.autocast_dtype == torch.float16),
        torch.Generator().manual_seed(derive_seed(plan.seed, "batches", plan.round, site)),
        # Sums stay on the device, because reading them would synchronize every step.
        loss_sum=torch.zeros((), dtype=torch.float64, device=device),
        runtime=runtime,
    )

    def compute(batch: Any) -> None:
        gradients.compute(state, micro_batches(batch, settings.micro_batch_size, runtime))

    def repeat_first_step() -> None:
        """Compute what this process would have computed first; its effects are overwritten."""
        if runtime.first_step_decides:
            compute(next(iter(job.batches(next_pass()))))

    def so_far() -> Saved:
        seconds = state.seconds + time.monotonic() - resumed
        return replace(state, seconds=seconds).saved()

    def report_progress() -> None:
        nonlocal last_report
        loss_sum = runtime.total(state.loss_sum)
        if on_progress is not None:
            last_report = time.monotonic()
            on_progress(
                Progress(
                    epoch=min(state.epoch + 1, plan.local_epochs or state.epoch + 1),
                    step=state.step,
                    num_steps=steps,
                    lr=state.optimizer.param_groups[0]["lr"],
                    loss=float(loss_sum) / state.num_seen,
                    num_seen=state.num_seen,
                    seconds=state.seconds + last_report - resumed,
                )
            )

    is_stream = job.size("train") is None
    training = Pass(
        "train", device, state.batches, True, plan.steps_before, runtime.rank, runtime.size
    )

    def next_pass() -> Pass:
        """Return the next pass over the data; it may go on with the epoch of the round before."""
        if not plan.local_parts:
            return training
        epoch, skip = divmod(plan.place(per_epoch) + state.step, per_epoch)
        state.batches.manual_seed(derive_seed(plan.seed, "batches of an epoch", epoch, site))
        return replace(training, skip=skip)

    with seeded(derive_seed(plan.seed, "model noise", plan.round, site, *runtime.salt)):
        if load(epochs, runtime, state.restore, repeat_first_step):
            resumed = time.monotonic()
        else:
            load(carried, runtime, state.carry_on)
        while state.step < steps:
            before = state.step
            for batch in job.batches(next_pass()):
                if state.step == steps:
                    break
                now = time.monotonic()
                is_due = now - last_report >= PROGRESS_S and state.step > 0
                is_late, is_due = runtime.first_says(now >= stop_at, is_due)
                if is_late:
                    raise DeadlineError(
                        "the deadline passed before training finished",
                        where=f"round {plan.round}",
                        got=f"{state.step} of {steps} steps in {now - started:.0f} s",
                    )
                if is_due:
                    report_progress()
                set_lr(state.optimizer, plan.lr_of_step(state.step, steps))
                compute(batch)
                _step(state, settings.clip_norm)
                state.step += 1
                if is_stream and state.step == steps:
                    break  # the stream may end here, so it is not asked for another batch
            else:
                _check_pass(plan, per_epoch, before, state.step)
                report_progress()
                state.epoch += 1
                if state.step < steps:
                    save(epochs, runtime, so_far)

    save(carried, runtime, state.carried)
    loss_sum = float(runtime.total(state.loss_sum))
    sums = _all_sums(loss_sum, state.num_seen, runtime.totals(state.sums))
    size = job.size("train")
    return TrainResult(
        num_examples=runtime.total_count(state.examples) if size is None else size,
        num_steps=steps,
        loss=ratio(sums[LOSS.sums]),
        metrics=_values(job, sums),
        seconds=state.seconds + time.monotonic() - resumed,
        sums=sums,
    )


def _steps_per_epoch(job: Job) -> int:
    if (steps := job.steps_per_epoch()) < 1:
        raise DataError("an epoch has no batch", where="job, train", got=steps)
    return steps


def _check_pass(plan: RoundPlan, per_epoch: int, before: int, step: int) -> None:
    """Refuse a pass without a batch, and one that does not end where its epoch ends."""
    if step == before:
        raise DataError("a pass over the training examples gives no batch", where="job, train")
    if plan.local_parts and (plan.place(per_epoch) + step) % per_epoch:
        raise DataError(
            "a pass over the training examples does not end with the epoch",
            where="job, train",
            got=f"{step - before} batches after those that were used in earlier rounds",
            expected=f"{per_epoch} batches in an epoch, as the job says, less those",
            hint="With growing rounds, a job must leave out the first `Pass.skip` batches",
        )


def _all_sums(loss_sum: float, count: int, sums: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return the sums of a pass as plain numbers, those of the loss among them."""
    return {LOSS.sums: [loss_sum, float(count)]} | {n: of.tolist() for n, of in sums.items()}


def _values(job: Job, sums: Mapping[str, list[float]]) -> dict[str, Value]:
    """Return the values of the job's metrics, without the loss."""
    return values_of((metric for metric in job.metrics if metric.name != LOSS.name), sums)


def _step(state: LoopState, clip_norm: float) -> None:
    """Take one optimizer step with the scaled gradients."""
    if clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()


def evaluate(
    model: nn.Module,
    job: Job,
    split: str,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
    runtime: Runtime = ONE,
) -> EvalResult:
    """Evaluate ``model`` on a split without changing its weights, statistics or mode.

    Several processes (``runtime``) share each batch; all get the whole result.
    """
    # On the device, as in training.
    losses, count = torch.zeros((), dtype=torch.float64, device=device), 0
    sums: dict[str, Tensor] = {}
    runtime.place(model, device)
    which = Pass(split, device, rank=runtime.rank, ranks=runtime.size)
    with evaluating(model, device, autocast_dtype):
        for batch in job.batches(which) if job.size(split) != 0 else ():
            done = forward_pass(job, model, batch)
            exact = done.loss_sum
            losses += done.loss.double() * done.count if exact is None else exact.double()
            count += done.count
            add_sums(sums, done.sums)
    loss_sum, count = runtime.total_loss(float(losses), count)
    all_sums = _all_sums(loss_sum, count, runtime.totals(sums))
    size = job.size(split)
    num_examples = count if size is None else size
    return EvalResult(num_examples, ratio(all_sums[LOSS.sums]), _values(job, all_sums), all_sums)


_EVALUATION_SEED = derive_seed(0, "evaluation noise")


def _proximal(model: nn.Module, mu: float) -> Callable[[], Tensor]:
    """Return the function that computes FedProx's ``mu / 2 * ||w - w_round||^2``."""
    anchor = [p.detach().clone() for p in model.parameters()]

    def penalty() -> Tensor:
        pairs = zip(model.parameters(), anchor, strict=True)
        return 0.5 * mu * torch.stack([((p - a) ** 2).sum() for p, a in pairs]).sum()

    return penalty


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def evaluating(
    model: nn.Module, device: torch.device, autocast_dtype: torch.dtype | None
) -> Iterator[None]:
    """Put the model into evaluation mode inside the block, and restore its mode afterwards.

    A model that draws random numbers in evaluation draws the same ones each time.
    """
    mode = model.training
    model.to(device).eval()
    try:
        with seeded(_EVALUATION_SEED), torch.no_grad(), _autocast(device, autocast_dtype):
            yield
    finally:
        model.train(mode)
