"""The training loop and the evaluation loop: exact steps, rates, losses, and the same bits."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mdc_flower.data import load_dataset
from mdc_flower.jobs.classification import class_probabilities
from mdc_flower.models import build_model
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.job import Job, Pass, Spare
from mdc_flower.training.loop import (
    Progress,
    TrainResult,
    TrainSettings,
    train,
)
from strategies.common.errors import DataError, DeadlineError
from strategies.method.round_plan import CycleShape, RoundPlan
from tests.mdc_flower.examples import (
    CPU,
    accuracy_of,
    evaluated,
    job_of,
    linear,
    plan,
    same_bits,
    state_of,
    vectors,
)

PLAIN = TrainSettings(momentum=0.0, nesterov=False)
RAW = InputPipeline()
E = math.e


def fit(
    model: nn.Module,
    data: Tensors,
    plan: RoundPlan,
    settings: TrainSettings = PLAIN,
    site: str = "north",
    pipeline: InputPipeline = RAW,
) -> TrainResult:
    return train(model, job_of(data, settings, pipeline), plan, settings, CPU, site)


def random_vectors(count: int, width: int = 3, num_classes: int = 2, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return Tensors(
        torch.randn(count, width, generator=generator),
        torch.randint(0, num_classes, (count,), generator=generator),
    )


def biased_linear() -> nn.Linear:
    """Return a linear model of three inputs, two outputs and a bias, always the same."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.6]]))
        model.bias.copy_(torch.tensor([0.05, -0.15]))
    return model


def small_net(dropout: float = 0.0) -> nn.Module:
    """Return a network with everything that has state or noise: BatchNorm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2)
        )


# Exact steps. One example x = 1 of class 0, two outputs, weights (0, 0), learning rate 1.
# The gradient of the cross-entropy is (p0 - 1, p1); at equal logits (-1/2, 1/2). The second
# weight is always minus the first, w, so that p0 = 1 / (1 + exp(-2 w)) and g = -(1 - p0).
#   step 1: g = -1/2
#   plain:     w = 1/2;             g = -1 / (1 + e)
#              w = 1/2 + 1 / (1 + e)
#   momentum 1/2: v = -1/2, w = 1/2; v = -1/4 - 1 / (1 + e)
#              w = 1/2 + 1/4 + 1 / (1 + e)
#   nesterov 1/2: v = -1/2, w = 1/2 + 1/4 = 3/4; g = -1 / (1 + e^1.5), v = -1/4 + g
#              w = 3/4 - g - v / 2 = 3/4 + 1 / (1 + e^1.5) + 1/8 + 1/2 / (1 + e^1.5)
#   decay 1/2: g = -1/2 + 0, w = 1/2; g = -1 / (1 + e) + 1/4, w = 1/4 + 1 / (1 + e)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PLAIN, 1 / 2 + 1 / (1 + E)),
        (replace(PLAIN, momentum=0.5), 3 / 4 + 1 / (1 + E)),
        (replace(PLAIN, momentum=0.5, nesterov=True), 7 / 8 + 3 / 2 / (1 + E**1.5)),
        (replace(PLAIN, weight_decay=0.5), 1 / 4 + 1 / (1 + E)),
        # Nesterov without momentum is plain; torch refuses it, so the loop must not ask.
        (replace(PLAIN, nesterov=True), 1 / 2 + 1 / (1 + E)),
    ],
)
def test_two_steps_by_hand(settings: TrainSettings, expected: float) -> None:
    model = linear([[0.0], [0.0]])
    result = fit(model, vectors([[1.0]], [0]), plan(local_epochs=2), settings)
    torch.testing.assert_close(model.weight, torch.tensor([[expected], [-expected]]))
    # The losses before the two steps are ln 2 and ln(1 + exp(-2 w)) with w from step 1.
    first = 3 / 4 if settings.nesterov and settings.momentum else 1 / 2
    assert result.loss == pytest.approx((math.log(2) + math.log1p(E ** (-2 * first))) / 2)
    assert (result.num_examples, result.num_steps) == (1, 2)


def oracle(
    model: nn.Module,
    data: Tensors,
    plan: RoundPlan,
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss_of: Callable[[nn.Module], Tensor],
) -> None:
    """Take full-batch steps with an ordinary optimizer, as plainly as they can be written."""
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step / (steps - 1))
        optimizer.zero_grad()
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def cross_entropy_on(data: Tensors) -> Callable[[nn.Module], Tensor]:
    return lambda model: functional.cross_entropy(model(data.inputs), data.labels)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (PLAIN, lambda p: torch.optim.SGD(p, 1.0)),
        (replace(PLAIN, momentum=0.9), lambda p: torch.optim.SGD(p, 1.0, momentum=0.9)),
        (
            TrainSettings(momentum=0.9, nesterov=True, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        (
            TrainSettings("adamw", weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 1.0, weight_decay=0.1),
        ),
    ],
)
def test_steps_are_those_of_the_ordinary_optimizer(
    settings: TrainSettings, make: Callable[[Any], torch.optim.Optimizer]
) -> None:
    data = random_vectors(20)
    orders = plan(local_epochs=6, lr_max=0.2, lr_min=0.02, shape="exponential")
    trained, expected = biased_linear(), biased_linear()
    fit(trained, data, orders, settings)
    oracle(expected, data, orders, make(expected.parameters()), 6, cross_entropy_on(data))
    for name, array in state_of(trained).items():
        torch.testing.assert_close(torch.tensor(array), torch.tensor(state_of(expected)[name]))


def test_adamw_is_not_sgd() -> None:
    data, weights = random_vectors(20), [[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]]
    one, other = linear(weights), linear(weights)
    fit(one, data, plan(lr_max=0.01, lr_min=0.01), TrainSettings("adamw"))
    fit(other, data, plan(lr_max=0.01, lr_min=0.01), TrainSettings("sgd"))
    # Adam's first step is the learning rate in every direction, whatever the gradient.
    moved = (one.weight - torch.tensor(weights)).abs()
    torch.testing.assert_close(moved, torch.full((2, 3), 0.01))
    assert not same_bits(one, other)


# The learning rate

SHAPES: tuple[CycleShape, ...] = get_args(CycleShape)


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """Record the learning rate of every step that any optimizer takes."""
    seen: list[float] = []

    def record(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seen.extend(group["lr"] for group in optimizer.param_groups)

    handle = register_optimizer_step_pre_hook(record)
    yield seen
    handle.remove()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    # Two examples a step, and of an odd number one is left out: 1, 3, 4 and 32 steps an epoch.
    ("num_examples", "epochs", "steps"),
    [(2, 1, 1), (7, 3, 9), (9, 2, 8), (64, 1, 32)],
)
def test_the_rate_of_every_step_is_the_plans_at_the_sites_own_progress(
    rates: list[float], shape: CycleShape, num_examples: int, epochs: int, steps: int
) -> None:
    orders = plan(local_epochs=epochs, lr_max=0.5, lr_min=0.125, shape=shape)
    fit(linear([[0.0] * 3] * 2), random_vectors(num_examples), orders, replace(PLAIN, batch_size=2))
    progress = [step / (steps - 1) for step in range(steps)] if steps > 1 else [0.0]
    assert rates == [orders.lr_at(p) for p in progress]


@pytest.mark.parametrize("num_examples", [2, 5, 33, 100])
def test_the_cycle_is_whole_whatever_the_amount_of_data(
    rates: list[float], num_examples: int
) -> None:
    orders = plan(local_epochs=3, lr_max=0.5, lr_min=0.125, shape="exponential")
    fit(linear([[0.0] * 3] * 2), random_vectors(num_examples), orders, replace(PLAIN, batch_size=4))
    assert rates[0] == 0.5
    assert rates[-1] == pytest.approx(0.125, rel=1e-15)
    assert rates == sorted(rates, reverse=True)


def test_the_rate_of_adamw_follows_the_plan_too(rates: list[float]) -> None:
    orders = plan(local_epochs=3, lr_max=0.5, lr_min=0.25, shape="linear")
    fit(linear([[0.0] * 3] * 2), random_vectors(4), orders, TrainSettings("adamw"))
    assert rates == [0.5, 0.375, 0.25]


# How long


@pytest.mark.parametrize(
    ("orders", "num_examples", "steps"),
    [
        (plan(local_epochs=3), 10, 9),  # 4 + 4 + 2 examples, three times
        (plan(local_epochs=2), 9, 4),  # 4 + 4, and one left out
        (plan(local_steps=7), 10, 7),  # two epochs and a third of the next
        (plan(local_steps=1), 10, 1),
        (plan(local_steps=5), 1, 5),
    ],
)
def test_a_round_is_as_long_as_the_plan_says(
    rates: list[float], orders: RoundPlan, num_examples: int, steps: int
) -> None:
    settings = replace(PLAIN, batch_size=4)
    result = fit(linear([[0.0] * 3] * 2), random_vectors(num_examples), orders, settings)
    assert result.num_steps == len(rates) == steps
    assert result.num_examples == num_examples


class Recorder(nn.Module):
    """A linear model that notes which examples it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.batches: list[list[float]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.batches.append(inputs[:, 0].tolist())
        outputs: Tensor = self.layer(inputs * 0)
        return outputs


@pytest.mark.parametrize("orders", [plan(local_epochs=2), plan(local_steps=6)])
def test_each_epoch_sees_each_example_once_with_its_own_label(orders: RoundPlan) -> None:
    model = Recorder()
    data = vectors([[float(i)] for i in range(10)], [0] * 10)
    fit(model, data, orders, replace(PLAIN, batch_size=4))
    epochs = [list(chain(*model.batches[:3])), list(chain(*model.batches[3:]))]
    assert [sorted(epoch) for epoch in epochs] == [[float(i) for i in range(10)]] * 2
    assert epochs[0] != epochs[1]


def in_parts(*lengths: int) -> list[RoundPlan]:
    """Return plans of consecutive rounds, in thousandths of an epoch."""
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [
        plan(round=number, local_epochs=0, local_parts=length, parts_before=start)
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True), 1)
    ]


def drawn(plans: list[RoundPlan], pipeline: InputPipeline = RAW) -> list[list[float]]:
    """Return all batches of consecutive rounds."""
    model = Recorder()
    data = vectors([[float(i)] for i in range(10)], [0] * 10)
    for orders in plans:
        fit(model, data, orders, replace(PLAIN, batch_size=2), pipeline=pipeline)
    return model.batches


def test_a_round_that_ends_within_an_epoch_leaves_its_other_examples_to_the_next() -> None:
    batches = drawn(in_parts(200, 600, 800, 1400))  # 1, 3, 4 and 7 steps
    assert len(batches) == 15
    epochs = [list(chain(*batches[start : start + 5])) for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [[float(i) for i in range(10)]] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # Where rounds end does not matter.
    assert drawn(in_parts(1000, 1000, 1000)) == drawn(in_parts(3000)) == batches


@pytest.mark.parametrize("num_examples", [3, 10, 11, 64])
def test_a_round_in_parts_of_an_epoch_has_a_whole_cycle_at_every_site(
    rates: list[float], num_examples: int
) -> None:
    orders = in_parts(300, 900, 1800)
    falling = [
        orders.model_copy(update={"lr_max": 0.5, "lr_min": 0.125, "shape": "exponential"})
        for orders in orders
    ]
    steps = []
    for one in falling:
        rates.clear()
        result = fit(linear([[0.0] * 3] * 2), random_vectors(num_examples), one)
        assert len(rates) == result.num_steps
        assert rates[0] == 0.5
        assert rates[-1] == (0.125 if len(rates) > 1 else 0.5)
        steps.append(len(rates))
    per_epoch = job_of(random_vectors(num_examples), PLAIN).steps_per_epoch()
    assert sum(steps) == 3 * per_epoch


def test_an_epoch_that_is_cut_is_augmented_as_a_whole_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8)
    job = job_of(
        Tensors(images, torch.arange(12) % 2),
        replace(PLAIN, batch_size=4),
        InputPipeline(augment="crop-flip"),
    )

    def batches(skip: int) -> list[Tensor]:
        order = torch.Generator().manual_seed(3)
        which = Pass("train", CPU, order, augment=True, skip=skip)
        return [batch[0] for batch in job.batches(which) if not isinstance(batch, Spare)]

    for skip in range(4):
        rest = batches(skip)
        assert len(rest) == 3 - skip
        assert all(torch.equal(*pair) for pair in zip(rest, batches(0)[skip:], strict=True))


def test_labels_go_with_their_examples() -> None:
    # x = 1 is of class 0 and x = -1 of class 1: learned only if labels are not mixed up.
    signs = [1.0, -1.0] * 20
    model = linear([[0.0], [0.0]])
    data = vectors([[sign] for sign in signs], [0 if sign > 0 else 1 for sign in signs])
    result = fit(model, data, plan(local_epochs=5), replace(PLAIN, batch_size=3))
    assert accuracy_of(result) > 0.95
    assert accuracy_of(evaluated(model, data)) == 1.0


# Loss and accuracy


def test_loss_and_accuracy_are_means_over_the_examples_of_unequal_batches() -> None:
    # A learning rate that changes no bit, so every example is seen at the initial weights,
    # where its loss is ln(1 + exp(-m)) with the margin m = x for class 0 and -x for class 1.
    # Batches of 3 and 2: a mean of the batches' means would weigh the outlier by 1/6 or 1/4.
    model = linear([[1.5], [0.5]])
    before = copy.deepcopy(model)
    data = vectors([[9.0], [2.0], [2.0], [2.0], [2.0]], [1, 0, 0, 0, 0])
    orders = plan(lr_max=1e-30, lr_min=1e-30)
    result = fit(model, data, orders, replace(PLAIN, batch_size=3))
    assert same_bits(model, before)
    expected = (math.log1p(E**9) + 4 * math.log1p(E**-2)) / 5
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert accuracy_of(result) == 4 / 5


def test_an_example_that_is_left_out_of_an_epoch_does_not_count() -> None:
    # 4 examples in batches of 3: the last one alone is left out; the others are all right.
    data = vectors([[1.0]] * 4, [0] * 4)
    result = fit(linear([[1.0], [0.0]]), data, plan(), replace(PLAIN, batch_size=3))
    assert (result.num_examples, result.num_steps, accuracy_of(result)) == (4, 1, 1.0)
    assert result.loss == pytest.approx(math.log1p(E**-1))


def test_the_time_is_measured() -> None:
    seconds = fit(linear([[0.0], [0.0]]), vectors([[1.0]], [0]), plan()).seconds
    assert math.isfinite(seconds)
    assert seconds > 0


def test_label_smoothing_mixes_the_label_with_all_classes() -> None:
    # With smoothing s and logits (m, 0): -log p0 = ln(1 + exp(-m)) =: a, -log p1 = a + m,
    # loss = (1 - s) a + s/2 (a + a + m) = a + s m / 2. With m = 2 and s = 0.2: a + 0.2.
    data = vectors([[2.0]], [0])
    result = fit(linear([[1.0], [0.0]]), data, plan(), replace(PLAIN, label_smoothing=0.2))
    assert result.loss == pytest.approx(math.log1p(E**-2) + 0.2)


@pytest.mark.parametrize(
    "without_effect", [{"label_smoothing": 0.0}, {"clip_norm": 0.0}, {"clip_norm": 1e9}]
)
def test_settings_that_ask_for_nothing_change_no_bit(without_effect: dict[str, Any]) -> None:
    data, orders = random_vectors(30), plan(local_epochs=3, lr_max=0.3, lr_min=0.1, shape="cosine")
    base = TrainSettings(weight_decay=0.01, batch_size=8)
    one, other = small_net(), small_net()
    fit(one, data, orders, base)
    fit(other, data, orders, replace(base, **without_effect))
    assert same_bits(one, other)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_clipping_bounds_the_norm_of_a_steps_gradient(dtype: torch.dtype | None) -> None:
    # The gradient at equal logits is (-1/2, 1/2), of norm 1/sqrt(2); clipped to 1/10 it is
    # (-1, 1) / (10 sqrt(2)), and one step at learning rate 1 is minus that.
    model = linear([[0.0], [0.0]])
    settings = replace(PLAIN, clip_norm=0.1, autocast_dtype=dtype)
    fit(model, vectors([[1.0]], [0]), plan(), settings)
    expected = 1 / (10 * math.sqrt(2))
    torch.testing.assert_close(
        model.weight, torch.tensor([[expected], [-expected]]), rtol=1e-4, atol=0
    )


# FedProx


def test_without_mu_the_proximal_term_changes_no_bit() -> None:
    data = random_vectors(30)
    one, other = small_net(), small_net()
    fit(one, data, plan(local_epochs=2, proximal_mu=0.0))
    fit(other, data, plan(local_epochs=2))
    assert same_bits(one, other)


def test_the_proximal_term_is_half_of_mu_times_the_squared_distance() -> None:
    data, mu = random_vectors(20), 0.8
    orders = plan(local_epochs=5, lr_max=0.5, lr_min=0.5, proximal_mu=mu)
    trained, start, expected = biased_linear(), biased_linear(), biased_linear()

    def loss_of(model: nn.Module) -> Tensor:
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        distance = sum(((p - q.detach()) ** 2).sum() for p, q in pairs)
        return cross_entropy_on(data)(model) + mu / 2 * distance

    fit(trained, data, orders)
    oracle(expected, data, orders, torch.optim.SGD(expected.parameters(), 1.0), 5, loss_of)
    torch.testing.assert_close(trained.state_dict(), expected.state_dict())


def test_a_large_mu_keeps_the_weights_near_the_global_model() -> None:
    def distance(mu: float) -> float:
        data, model = random_vectors(20), linear([[0.5] * 3, [-0.5] * 3])
        start = model.weight.detach().clone()
        fit(model, data, plan(local_epochs=40, lr_max=0.05, lr_min=0.05, proximal_mu=mu))
        return float((model.weight.detach() - start).norm())

    far, near, nearest = distance(0.0), distance(2.0), distance(20.0)
    # At rest, mu times the distance equals the gradient, whose norm is at most that of x.
    assert far > 2 * near > 10 * nearest > 0


def test_the_loss_that_is_reported_is_without_the_proximal_term() -> None:
    data = vectors([[1.0]], [0])
    with_mu = fit(linear([[0.0], [0.0]]), data, plan(local_epochs=2, proximal_mu=1e-3))
    # The weights after step 1 are the same with and without: the term's gradient is 0 there.
    assert with_mu.loss == fit(linear([[0.0], [0.0]]), data, plan(local_epochs=2)).loss


# The same bits

NOISY = InputPipeline(augment="crop-flip")


def noisy_training(seed: int = 1, round_number: int = 1, site: str = "north") -> nn.Module:
    """Train with everything that is random: order, augmentation and dropout."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=generator, dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear([[0.01] * 64, [-0.01] * 64]))
    orders = plan(seed=seed, round=round_number, local_epochs=2, lr_max=0.1, lr_min=0.1)
    data = Tensors(images, torch.arange(20) % 2)
    fit(model, data, orders, replace(PLAIN, batch_size=8), site, NOISY)
    return model


def test_the_same_seed_round_and_site_give_the_same_bits() -> None:
    torch.manual_seed(123)
    one = noisy_training()
    torch.manual_seed(321)
    assert same_bits(one, noisy_training())


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"round_number": 2}, {"site": "south"}], ids=["seed", "round", "site"]
)
def test_another_seed_round_or_site_gives_other_bits(other: dict[str, Any]) -> None:
    assert not same_bits(noisy_training(), noisy_training(**other))


@pytest.mark.parametrize("other", [{"seed": 2}, {"round_number": 2}, {"site": "south"}])
def test_dropout_alone_depends_on_seed_round_and_site(other: dict[str, Any]) -> None:
    # One example: the order is the same in any case, and only the noise is left.
    def one_example(seed: int = 1, round_number: int = 1, site: str = "north") -> nn.Module:
        model = nn.Sequential(nn.Dropout(0.5), linear([[0.0] * 64, [0.0] * 64]))
        data = vectors([[1.0] * 64], [0])
        fit(model, data, plan(seed=seed, round=round_number), PLAIN, site)
        return model

    assert same_bits(one_example(), one_example())
    assert not same_bits(one_example(), one_example(**other))


class Drawing(nn.Module):
    """Adds noise from one of the global generators, in evaluation too."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw
        self.layer = linear([[0.1], [-0.1]])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs + self.draw())
        return outputs


GENERATORS = [random.random, np.random.rand, lambda: float(torch.rand(()))]


@pytest.mark.parametrize("draw", GENERATORS, ids=["python", "numpy", "torch"])
def test_a_model_may_draw_from_any_global_generator(draw: Callable[[], float]) -> None:
    def trained(site: str = "north") -> nn.Module:
        model = Drawing(draw)
        fit(model, vectors([[1.0]], [0]), plan(), PLAIN, site)
        return model

    one = trained()
    draw()
    assert same_bits(one, trained())
    assert not same_bits(one, trained("south"))


@pytest.mark.parametrize("draw", GENERATORS, ids=["python", "numpy", "torch"])
def test_a_model_that_draws_in_evaluation_is_evaluated_alike_each_time(
    draw: Callable[[], float],
) -> None:
    model, data = Drawing(draw), vectors([[1.0]], [0])
    first = evaluated(model, data)
    draw()
    assert evaluated(model, data) == first


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"round": 2}, {"site": "south"}], ids=["seed", "round", "site"]
)
def test_the_order_alone_depends_on_seed_round_and_site(other: dict[str, Any]) -> None:
    def order(site: str = "north", **changes: int) -> list[list[float]]:
        model = Recorder()
        data = vectors([[float(i)] for i in range(20)], [0] * 20)
        fit(model, data, plan(**changes), replace(PLAIN, batch_size=4), site)
        return model.batches

    assert order() == order()
    assert order() != order(**other)


def test_the_random_state_of_the_process_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    noisy_training()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_is_given_back_also_when_training_fails() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: Tensor) -> Tensor:
            torch.rand(3)
            raise ArithmeticError("no more")

    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        fit(Failing(), vectors([[1.0]], [0]), plan())
    assert torch.equal(torch.get_rng_state(), before)


# What else holds of training


def test_training_leaves_the_model_in_training_mode_and_its_statistics_moved() -> None:
    model = small_net().eval()
    before = state_of(model)
    fit(model, random_vectors(10), plan(local_epochs=3))
    assert model.training
    after = state_of(model)
    assert after["1.num_batches_tracked"] == before["1.num_batches_tracked"] + 3
    assert not (after["1.running_mean"] == before["1.running_mean"]).any()


def test_a_frozen_parameter_stays_and_the_others_move() -> None:
    model = nn.Sequential(linear([[0.3, 0.1, 0.2], [0.4, -0.5, 0.6]]), linear([[1.0, 0.5]] * 2))
    model[0].requires_grad_(False)
    before = state_of(model)
    settings = TrainSettings(momentum=0.9, weight_decay=0.1, clip_norm=1.0)
    fit(model, random_vectors(20), plan(local_epochs=3, proximal_mu=0.1), settings)
    after = state_of(model)
    assert after["0.weight"].tobytes() == before["0.weight"].tobytes()
    assert (after["1.weight"] != before["1.weight"]).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_of_the_weights_follows_the_images(channels_last: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 2 * 2, 2))
    images = Tensors(torch.zeros(4, 2, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    fit(model, images, plan(), pipeline=InputPipeline(channels_last=channels_last))
    weight = model[0].weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_an_evaluation_between_epochs_changes_nothing_in_training() -> None:
    data, orders = random_vectors(20), plan(local_epochs=4, lr_max=0.1, lr_min=0.1)
    watched, unwatched = small_net(dropout=0.5), small_net(dropout=0.5)
    losses: list[float] = []

    def evaluate_now(progress: Progress) -> None:
        losses.append(evaluated(watched, data).loss)

    train(watched, job_of(data, PLAIN), orders, PLAIN, CPU, "north", on_progress=evaluate_now)
    fit(unwatched, data, orders)
    assert len(set(losses)) == 4
    assert losses[-1] == evaluated(watched, data).loss
    assert same_bits(watched, unwatched)


# Progress


def reports(monkeypatch: pytest.MonkeyPatch, orders: RoundPlan, step_s: float) -> list[Progress]:
    """Train on 20 examples in batches of 8, 3 steps an epoch, each of so many seconds."""
    told: list[Progress] = []
    now = [100.0]

    def after_step(*args: object) -> None:
        now[0] += step_s

    monkeypatch.setattr("mdc_flower.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))
    handle = register_optimizer_step_pre_hook(after_step)
    try:
        settings = replace(PLAIN, batch_size=8)
        model = small_net(dropout=0.5)
        train(
            model,
            job_of(random_vectors(20), settings),
            orders,
            settings,
            CPU,
            "north",
            on_progress=told.append,
        )
    finally:
        handle.remove()
    unwatched = small_net(dropout=0.5)
    fit(unwatched, random_vectors(20), orders, settings)
    assert same_bits(model, unwatched)
    return told


def test_progress_is_told_at_the_end_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = plan(local_epochs=3, lr_max=0.2, lr_min=0.1, shape="linear")
    told = reports(monkeypatch, orders, step_s=1.0)
    assert [(one.epoch, one.step, one.num_steps) for one in told] == [
        (1, 3, 9),
        (2, 6, 9),
        (3, 9, 9),
    ]
    assert [one.num_seen for one in told] == [20, 40, 60]
    assert [one.seconds for one in told] == [3.0, 6.0, 9.0]
    assert [one.lr for one in told] == pytest.approx([orders.lr_at(s / 8) for s in (2, 5, 8)])


def test_the_last_progress_holds_the_loss_that_training_returns() -> None:
    told: list[Progress] = []
    orders = plan(local_epochs=2, lr_max=0.1, lr_min=0.1)
    model = small_net()
    result = train(
        model,
        job_of(random_vectors(20), PLAIN),
        orders,
        PLAIN,
        CPU,
        "north",
        on_progress=told.append,
    )
    assert (told[-1].loss, told[-1].num_steps) == (result.loss, result.num_steps)


# A step of 6 s: told before the third step, after 12 s; the epoch ends after 18 s; then 12 s later.
def test_within_a_long_epoch_progress_is_told_every_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = reports(monkeypatch, plan(local_epochs=2, lr_max=0.1, lr_min=0.1), step_s=6.0)
    assert [(one.epoch, one.step, one.seconds) for one in told] == [
        (1, 2, 12.0),
        (1, 3, 18.0),
        (2, 5, 30.0),
        (2, 6, 36.0),
    ]


def test_progress_of_a_plan_in_steps_counts_the_epochs_that_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = reports(monkeypatch, plan(local_steps=7, lr_max=0.1, lr_min=0.1), step_s=1.0)
    assert [(one.epoch, one.step) for one in told] == [(1, 3), (2, 6)]


# The deadline


def test_training_stops_between_two_steps_when_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, orders = random_vectors(20), plan(local_epochs=4, lr_max=0.1, lr_min=0.1)
    settings = replace(PLAIN, batch_size=8)  # 3 steps an epoch, 12 in all
    stopped, whole = small_net(), small_net()
    fit(whole, data, plan(local_steps=5, lr_max=0.1, lr_min=0.1), settings)
    # The clock is read at the start, at 100 s, then once before each step: 101 s, 102 s, ...
    clock = SimpleNamespace(monotonic=iter(range(100, 120)).__next__)
    monkeypatch.setattr("mdc_flower.training.loop.time", clock)
    with pytest.raises(DeadlineError) as caught:
        train(stopped, job_of(data, settings), orders, settings, CPU, "north", stop_at=106)
    assert caught.value.where == "round 1"
    assert str(caught.value.got).startswith("5 of 12 steps in ")
    assert same_bits(stopped, whole)


def test_a_time_that_has_come_before_lets_no_step_happen() -> None:
    model = small_net()
    with pytest.raises(DeadlineError, match="0 of 1 steps"):
        train(model, job_of(random_vectors(8), PLAIN), plan(), PLAIN, CPU, "north", stop_at=0.0)
    assert same_bits(model, small_net())


class Deaf:
    """A job that does not leave out the batches of earlier rounds, or gives none at all."""

    def __init__(self, job: Job, gives: int = 99) -> None:
        self._job, self._gives = job, gives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def batches(self, which: Pass) -> list[Any]:
        return list(self._job.batches(replace(which, skip=0)))[: self._gives]


def test_a_job_that_repeats_batches_of_an_earlier_round_is_refused() -> None:
    settings = replace(PLAIN, batch_size=8)  # 3 steps an epoch
    job: Any = Deaf(job_of(random_vectors(20), settings))
    growing = plan(round=2, local_epochs=0, local_parts=1000, parts_before=400)
    with pytest.raises(DataError, match="does not end with the epoch") as caught:
        train(small_net(), job, growing, settings, CPU, "north")
    assert "leave out" in str(caught.value.hint)


def test_a_pass_without_a_batch_is_an_error_and_does_not_hang() -> None:
    job: Any = Deaf(job_of(random_vectors(20), PLAIN), gives=0)
    with pytest.raises(DataError, match="gives no batch"):
        train(small_net(), job, plan(), PLAIN, CPU, "north")


def test_an_epoch_without_a_step_is_an_error() -> None:
    job: Any = Deaf(job_of(random_vectors(20), PLAIN))
    job.steps_per_epoch = lambda: 0
    with pytest.raises(DataError, match="an epoch has no batch"):
        train(small_net(), job, plan(), PLAIN, CPU, "north")


# Number formats


@pytest.mark.parametrize(
    ("dtype", "architecture"), [(torch.bfloat16, "small-cnn"), (torch.float16, "mlp")]
)
def test_a_short_number_format_reaches_about_the_accuracy_of_float32(
    dtype: torch.dtype, architecture: str
) -> None:
    data = load_dataset("digits", max_train=600)
    pipeline = InputPipeline.of(data)

    def accuracy(dtype: torch.dtype | None) -> float:
        model = build_model(architecture, data.input_shape, data.num_classes, seed=1)
        settings = TrainSettings(autocast_dtype=dtype, batch_size=16)
        orders = plan(local_epochs=3, lr_max=0.05, lr_min=0.01, shape="exponential")
        result = fit(model, Tensors.of(data.train), orders, settings, pipeline=pipeline)
        assert math.isfinite(result.loss)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(p.isfinite().all() for p in model.parameters())
        return accuracy_of(evaluated(model, Tensors.of(data.test), pipeline, dtype))

    full, short = accuracy(None), accuracy(dtype)
    assert full > 0.9
    assert abs(full - short) < 0.04


def test_float16_gradients_that_would_vanish_are_scaled() -> None:
    # At the logits (7.5, -7.5) the gradient of the second is 1 / (1 + e^15) = 3.06e-7, and with
    # an input of 2^-8 that of its weight 1.2e-9: float16 begins at 6e-8 and would make it 0.
    scale = 2.0**-8
    start = 7.5 / scale
    model = linear([[start], [-start]])
    settings = replace(PLAIN, autocast_dtype=torch.float16)
    fit(model, vectors([[scale]], [0]), plan(lr_max=1e9, lr_min=1e9), settings)
    moved = float(model.weight[1, 0].detach()) + start
    assert moved == pytest.approx(-1e9 * scale / (1 + E**15), rel=0.01)


# Evaluation


def test_evaluation_is_exact_over_more_examples_than_a_batch_holds() -> None:
    # Logits (x, 0). 300 times x = 1 and class 0, right, with loss ln(1 + 1/e); 100 times x = 2
    # and class 1, wrong, with loss ln(1 + e^2).
    data = vectors([[1.0]] * 300 + [[2.0]] * 100, [0] * 300 + [1] * 100)
    result = evaluated(linear([[1.0], [0.0]]), data)
    assert (result.num_examples, accuracy_of(result)) == (400, 0.75)
    assert result.loss == pytest.approx((300 * math.log1p(1 / E) + 100 * math.log1p(E**2)) / 400)


def test_a_model_that_never_finds_the_rare_class_is_seen_by_its_recall() -> None:
    # 98 of 100 are healthy, class 0, and the model says so of everyone. Class 2 has no examples.
    data = vectors([[1.0]] * 100, [0] * 98 + [1] * 2)
    result = evaluated(linear([[1.0], [0.0], [0.0]]), data)
    assert accuracy_of(result) == 0.98
    recall = result.metrics["recall"]
    assert isinstance(recall, list)
    assert recall[:2] == [1.0, 0.0]
    assert math.isnan(recall[2])
    assert result.metrics["balanced-accuracy"] == 0.5


def test_evaluation_of_nothing_is_not_a_number() -> None:
    result = evaluated(linear([[1.0], [0.0]]), Tensors(torch.zeros(0, 1), torch.zeros(0)))
    assert result.num_examples == 0
    assert math.isnan(result.loss)
    assert result.metrics == {}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_weights_statistics_mode_and_random_state(training: bool) -> None:
    model, data = small_net(dropout=0.5).train(training), random_vectors(20)
    before, random_state = copy.deepcopy(model), torch.get_rng_state()
    first, second = (
        evaluated(model, data),
        evaluated(model, data),
    )
    assert first == second
    assert same_bits(model, before)
    assert [module.training for module in model.modules()] == [training] * 6
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_class_probabilities_are_the_softmax_of_the_outputs_by_hand() -> None:
    # Outputs (x, 0): e^x / (e^x + 1), for x = 0 one half, for x = ln 3 three quarters.
    inputs = torch.tensor([[0.0], [math.log(3.0)]])
    said = class_probabilities(linear([[1.0], [0.0]]), inputs, RAW, CPU)
    assert said.dtype == torch.float64
    assert said.flatten().tolist() == pytest.approx([0.5, 0.5, 0.75, 0.25], rel=1e-6)


def test_class_probabilities_cover_all_batches_and_leave_the_model_as_it_is() -> None:
    model, data = small_net(dropout=0.5).train(), random_vectors(600)
    before = copy.deepcopy(model)
    said = class_probabilities(model, data.inputs, RAW, CPU)
    assert said.shape == (600, 2)
    assert not said.requires_grad
    single = class_probabilities(model, data.inputs[599:], RAW, CPU)
    assert said[599].tolist() == pytest.approx(single[0].tolist(), rel=1e-5)
    share = float((said.argmax(1) == data.labels).double().mean())
    assert share == accuracy_of(evaluated(model, data))
    assert same_bits(model, before)
    assert model.training


def test_evaluation_gives_the_mode_back_also_when_it_fails() -> None:
    model = small_net().train()
    with pytest.raises(RuntimeError):
        evaluated(model, random_vectors(4, width=5))
    assert model.training


def test_evaluation_uses_the_running_statistics() -> None:
    # BatchNorm with mean 3 and variance 4 - 1e-5: (7 - 3) / 2 = 2 for one example of 7,
    # which its own batch's statistics would make 0.
    norm = nn.BatchNorm1d(1)
    norm.load_state_dict(
        {**norm.state_dict(), "running_mean": torch.tensor([3.0]),
         "running_var": torch.tensor([4.0 - 1e-5])}
    )  # fmt: skip
    model = nn.Sequential(norm, linear([[1.0], [0.0]]))
    assert evaluated(model, vectors([[7.0]], [0])).loss == pytest.approx(math.log1p(E**-2))


def test_evaluation_does_not_augment() -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 0, 0] = 255  # a corner that a shift or a mirror would move
    corner = torch.zeros(2, 64)
    corner[0, 0] = 1
    model = nn.Sequential(nn.Flatten(), linear(corner.tolist()))
    data = Tensors(images, torch.zeros(20, dtype=torch.int64))
    assert evaluated(model, data, NOISY).loss == pytest.approx(math.log1p(1 / E))
