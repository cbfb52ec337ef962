"""A site's side of a round: arrays in and out, training as planned, evaluation on its own data."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common.typing import NDArrays, Scalar
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.data import Examples, SiteData
from mdc_flower.models.tensors import trainable_names
from mdc_flower.site.client import SiteClient
from mdc_flower.training.arrays import load_arrays, model_arrays
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import Progress, TrainResult, TrainSettings, train
from strategies.aggregation.averaging import Update, uniform
from strategies.aggregation.outer_optimizers import Momentum, next_model
from strategies.common.errors import DeadlineError, ModelError, PlanError
from strategies.exchange.messages import DEADLINE, NUM_EXAMPLES
from strategies.exchange.metrics import TRAIN_METRICS, VALIDATION_METRICS
from strategies.method.round_plan import RoundPlan
from tests.mdc_flower.examples import (
    CPU,
    accuracy_of,
    evaluated,
    job_of,
    linear,
    numbered,
    plan,
    same_bits,
    site_job,
    state_of,
)

NAMES = [
    "0.weight",
    "0.bias",
    "1.weight",
    "1.bias",
    "1.running_mean",
    "1.running_var",
    "1.num_batches_tracked",
]


def network(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))


SETTINGS = TrainSettings(batch_size=4, weight_decay=0.01)
PIPELINE = InputPipeline(mean=(4.0,), std=(2.0,))


def client(new_model: Callable[[], nn.Module] = network, site: str = "north") -> SiteClient:
    data = SiteData(train=numbered(10), validation=numbered(6))
    return SiteClient(site, site_job(new_model, data, SETTINGS, PIPELINE), SETTINGS, CPU)


def config_of(orders: RoundPlan) -> dict[str, Scalar]:
    return dict(orders.to_config_record())  # type: ignore[arg-type]


# Arrays


def test_arrays_have_the_names_shapes_and_dtypes_of_the_state_dict_in_its_order() -> None:
    arrays = model_arrays(network())
    assert list(arrays) == NAMES
    specs = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    assert specs["0.weight"] == ((2, 1), "float32")
    assert specs["1.running_var"] == ((2,), "float32")
    assert specs["1.num_batches_tracked"] == ((), "int64")


def test_arrays_are_copies() -> None:
    model = network()
    arrays = model_arrays(model)
    for array in arrays.values():
        array[...] = 99
    assert not any((array == 99).any() for array in state_of(model).values())


@pytest.mark.parametrize("named", [True, False])
def test_arrays_come_back_to_the_bit(named: bool) -> None:
    source, target = network(1), network(2)
    source(torch.randn(5, 1, generator=torch.Generator().manual_seed(0)))  # moves the statistics
    arrays = model_arrays(source)
    assert not same_bits(source, target)
    load_arrays(target, arrays if named else list(arrays.values()))
    assert same_bits(source, target)
    assert int(target.state_dict()["1.num_batches_tracked"]) == 1


def test_arrays_by_name_may_come_in_any_order() -> None:
    source, target = network(1), network(2)
    load_arrays(target, dict(reversed(model_arrays(source).items())))
    assert same_bits(source, target)


def test_a_channels_last_weight_is_sent_in_the_order_of_its_shape() -> None:
    layer = nn.Conv2d(2, 3, 2, bias=False).to(memory_format=torch.channels_last)
    array = model_arrays(layer)["weight"]
    assert array.flags.c_contiguous
    assert np.array_equal(array, layer.weight.detach().numpy())


def test_the_model_does_not_share_memory_with_what_it_was_given() -> None:
    model, arrays = network(), model_arrays(network(2))
    load_arrays(model, arrays)
    before = state_of(model)
    for array in arrays.values():
        array[...] = 99
    assert all(np.array_equal(state_of(model)[name], before[name]) for name in NAMES)


def test_read_only_arrays_as_messages_hold_them_are_taken() -> None:
    arrays = model_arrays(network(2))
    for array in arrays.values():
        array.flags.writeable = False
    model = network(1)
    load_arrays(model, arrays)
    assert same_bits(model, network(2))


def with_changes(**changes: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    """Return fitting arrays with some replaced, added, or (None) left out."""
    arrays = dict(model_arrays(network(2)))
    for name, array in changes.items():
        arrays.pop(name, None)
        if array is not None:
            arrays[name] = array
    return {name: arrays[name] for name in [*NAMES, *arrays] if name in arrays}


@pytest.mark.parametrize(
    ("arrays", "where", "named"),
    [
        (
            with_changes(**{"1.bias": None}),
            "model",
            "array '1.bias' is missing",
        ),
        (
            with_changes(**{"2.weight": np.zeros(1, np.float32)}),
            "model",
            "array '2.weight' is not in the model",
        ),
        (
            with_changes(**{"0.weight": np.zeros((2, 3), np.float32)}),
            "array '0.weight'",
            "got 'float32[2, 3]', expected float32[2, 1]",
        ),
        (
            with_changes(**{"0.bias": np.zeros(2, np.float64)}),
            "array '0.bias'",
            "got 'float64[2]', expected float32[2]",
        ),
        (
            with_changes(**{"1.num_batches_tracked": np.array([3])}),
            "array '1.num_batches_tracked'",
            "got 'int64[1]', expected int64[]",
        ),
        (  # both misfit: the first in the order of the model is named
            with_changes(
                **{"1.weight": np.zeros(3, np.float32), "0.bias": np.zeros(3, np.float32)}
            ),
            "array '0.bias'",
            "got 'float32[3]', expected float32[2]",
        ),
        (
            with_changes(**{"0.bias": np.array(["a", "b"])}),
            "array '0.bias'",
            "expected float32[2]",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype", "0-d", "first", "text"],
)
def test_arrays_by_name_that_do_not_fit_are_refused_and_change_nothing(
    arrays: dict[str, NDArray[Any]], where: str, named: str
) -> None:
    model = network(1)
    with pytest.raises(ModelError) as caught:
        load_arrays(model, arrays)
    assert caught.value.where == where
    assert named in str(caught.value)
    assert same_bits(model, network(1))


@pytest.mark.parametrize("count", [0, 6, 8])
def test_a_wrong_number_of_arrays_is_refused_and_changes_nothing(count: int) -> None:
    model = network(1)
    arrays = (list(model_arrays(network(2)).values()) * 2)[:count]
    with pytest.raises(ModelError, match="number of arrays differs from the model's") as caught:
        load_arrays(model, arrays)
    assert caught.value.got == count
    assert caught.value.expected == "7, from '0.weight' to '1.num_batches_tracked'"
    assert same_bits(model, network(1))


class Tied(nn.Module):
    """A language model in small: the embedding's weight is the weight of the outputs, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.outputs = nn.Linear(2, 3)
        self.outputs.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.outputs(self.embedding(tokens).mean(1))
        return logits


def test_a_tensor_with_two_names_is_one_array_under_the_first() -> None:
    model = Tied()
    assert list(model.state_dict()) == ["embedding.weight", "outputs.weight", "outputs.bias"]
    assert list(model_arrays(model)) == ["embedding.weight", "outputs.bias"]
    assert trainable_names(model) == set(model_arrays(model))
    load_arrays(model, {**model_arrays(model), "embedding.weight": np.ones((3, 2), np.float32)})
    assert (model.embedding.weight == 1).all()
    assert model.outputs.weight is model.embedding.weight


def test_an_outer_optimizer_moves_tied_weights_once() -> None:
    model, site = Tied(), Tied()
    before = model_arrays(model)
    load_arrays(site, {name: array + 1.0 for name, array in before.items()})  # type: ignore[operator]
    update = Update("north", 1, model_arrays(site), {})
    after, _ = next_model(Momentum(lr=0.5), {}, before, [update], uniform, trainable_names(model))
    load_arrays(model, after)
    for name, tensor in model.state_dict().items():
        expected = before.get(name, before["embedding.weight"]) + 0.5  # type: ignore[operator]
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-6, err_msg=name)


def test_arrays_with_every_name_of_a_tensor_are_taken_as_earlier_versions_took_them() -> None:
    model = Tied()
    arrays = state_of(model)
    arrays["outputs.weight"] = np.full((3, 2), 7.0, np.float32)
    load_arrays(model, arrays)
    assert (model.embedding.weight == 7.0).all()


def test_a_layer_that_is_used_twice_is_sent_once() -> None:
    shared = nn.BatchNorm1d(2)
    arrays = model_arrays(nn.Sequential(shared, nn.ReLU(), shared))
    assert {name.partition(".")[0] for name in arrays} == {"0"}


def test_state_that_is_no_tensor_is_refused_by_its_name() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    with pytest.raises(ModelError, match="not a parameter or a buffer") as caught:
        model_arrays(nn.Sequential(Counting(1, 1)))
    assert caught.value.got == "'0._extra_state', dict"


# The client


def arrays_in_order(model: nn.Module) -> NDArrays:
    return list(model_arrays(model).values())


def test_parameters_are_the_models_arrays_in_order() -> None:
    parameters = client().get_parameters({})
    expected = arrays_in_order(network())
    assert [p.tobytes() for p in parameters] == [e.tobytes() for e in expected]


@pytest.mark.parametrize(
    ("orders", "steps"),
    [
        # 10 examples in batches of 4: 4, 4 and 2, three steps an epoch.
        (plan(local_epochs=2, lr_max=0.1, lr_min=0.05, shape="linear", round=3, seed=9), 6),
        (plan(local_steps=4, lr_max=0.1, lr_min=0.1, proximal_mu=0.5), 4),
    ],
)
def test_fit_is_training_from_the_given_model_as_the_plan_says(
    orders: RoundPlan, steps: int
) -> None:
    start, expected = network(2), network(2)
    result = train(
        expected,
        job_of(Tensors.of(numbered(10)), SETTINGS, PIPELINE),
        orders,
        SETTINGS,
        CPU,
        "north",
    )
    arrays, num_examples, metrics = client().fit(arrays_in_order(start), config_of(orders))
    assert [a.tobytes() for a in arrays] == [e.tobytes() for e in arrays_in_order(expected)]
    assert num_examples == 10
    assert set(metrics) == TRAIN_METRICS - VALIDATION_METRICS - {NUM_EXAMPLES}
    assert metrics["num-steps"] == steps
    assert (metrics["train-loss"], metrics["train-accuracy"]) == (
        result.loss,
        accuracy_of(result),
    )
    assert float(metrics["train-seconds"]) > 0


def test_fit_depends_on_the_sites_name() -> None:
    orders, start = config_of(plan(lr_max=0.1, lr_min=0.1)), arrays_in_order(network())
    north, south = client(site="north").fit(start, orders), client(site="south").fit(start, orders)
    assert north[0][0].tobytes() != south[0][0].tobytes()


def test_a_client_keeps_nothing_from_one_round_to_the_next() -> None:
    start = arrays_in_order(network())
    orders = config_of(plan(round=2, lr_max=0.1, lr_min=0.1))
    stayed = client()
    stayed.fit(start, config_of(plan(round=1)))
    stayed.evaluate(start, {})
    one, _, _ = stayed.fit(start, orders)
    other, _, _ = client().fit(start, orders)
    assert [a.tobytes() for a in one] == [b.tobytes() for b in other]


class Remembering(nn.Linear):
    """A layer that remembers, in no array, how often it was used in training."""

    def __init__(self) -> None:
        super().__init__(1, 2)
        self.uses = 0
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.uses += 1
            self.get_buffer("scale").mul_(0.5)
        return super().forward(inputs) * self.get_buffer("scale") + self.uses


def test_state_outside_of_arrays_ends_with_the_message() -> None:
    start = arrays_in_order(Remembering())
    orders = config_of(plan(round=2, lr_max=0.1, lr_min=0.1))
    stayed = client(Remembering)
    stayed.fit(start, config_of(plan(round=1)))
    one, _, _ = stayed.fit(start, orders)
    other, _, _ = client(Remembering).fit(start, orders)
    assert [a.tobytes() for a in one] == [b.tobytes() for b in other]
    assert stayed.evaluate(start, {}) == client(Remembering).evaluate(start, {})


def test_no_model_is_built_that_is_not_used() -> None:
    built: list[nn.Module] = []

    def counted() -> nn.Module:
        built.append(network())
        built[-1].get_submodule("1").requires_grad_(False)
        return built[-1]

    one, given = client(counted), arrays_in_order(network())
    one.exchange = "trainable"
    assert one.names == ["0.weight", "0.bias"]
    assert one.base
    one.evaluate(given[:2], {})
    assert len(built) == 1
    one.evaluate(given[:2], {})
    assert len(built) == 2


def test_fit_sends_tied_weights_once_and_trains_them_together() -> None:
    tokens = Examples(np.array([[0, 1], [2, 1]]), np.array([0, 2]))
    data = SiteData(train=tokens, validation=tokens)
    pipeline = InputPipeline()
    one = SiteClient("north", site_job(Tied, data, SETTINGS, pipeline), SETTINGS, CPU)
    start, expected = Tied(), Tied()
    load_arrays(expected, model_arrays(start))
    orders = plan(lr_max=0.1, lr_min=0.1)
    train(expected, job_of(Tensors.of(tokens), SETTINGS, pipeline), orders, SETTINGS, CPU, "north")
    sent, _, _ = one.fit(arrays_in_order(start), config_of(orders))
    assert one.names == ["embedding.weight", "outputs.bias"]
    assert [a.tobytes() for a in sent] == [a.tobytes() for a in arrays_in_order(expected)]


def test_fit_leaves_the_arrays_it_was_given() -> None:
    start = arrays_in_order(network())
    before = [array.copy() for array in start]
    client().fit(start, config_of(plan()))
    assert all(np.array_equal(a, b) for a, b in zip(start, before, strict=True))


def test_fit_refuses_a_plan_that_it_does_not_understand() -> None:
    with pytest.raises(PlanError) as caught:
        client().fit(arrays_in_order(network(2)), {**config_of(plan()), "momentum": 0.9})
    assert caught.value.where == "round plan, momentum"


def test_fit_stops_at_the_deadline_beside_the_plan() -> None:
    orders = {**config_of(plan(round=3, local_epochs=2)), DEADLINE: 1e-9}
    with pytest.raises(DeadlineError, match="0 of 6 steps") as caught:
        client().fit(arrays_in_order(network()), orders)
    assert caught.value.where == "round 3"


def test_the_deadline_is_counted_from_when_fit_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def note(*args: Any, stop_at: float, **kwargs: Any) -> TrainResult:
        seen.append(stop_at)
        return TrainResult(10, 3, 0.0, {}, 0.0)

    monkeypatch.setattr("mdc_flower.site.client.train", note)
    monkeypatch.setattr("mdc_flower.site.client.time", SimpleNamespace(monotonic=lambda: 1000.0))
    start, orders = arrays_in_order(network()), config_of(plan())
    client().fit(start, {**orders, DEADLINE: 60.0})
    client().fit(start, orders)
    assert seen == [1060.0, math.inf]


def test_progress_reports_change_no_bit() -> None:
    told: list[Progress] = []
    data = SiteData(train=numbered(10), validation=numbered(6))
    start, orders = arrays_in_order(network()), config_of(plan(local_epochs=2, lr_min=0.5))
    watched = SiteClient(
        "north", site_job(network, data, SETTINGS, PIPELINE), SETTINGS, CPU, told.append
    )
    arrays, _, metrics = watched.fit(start, orders)
    assert [(one.epoch, one.step) for one in told] == [(1, 3), (2, 6)]
    assert told[-1].loss == metrics["train-loss"]
    unwatched, _, _ = client().fit(start, orders)
    assert [a.tobytes() for a in arrays] == [b.tobytes() for b in unwatched]


def test_fit_and_evaluate_refuse_arrays_that_do_not_fit() -> None:
    one = client()
    with pytest.raises(ModelError, match="number of arrays"):
        one.fit(arrays_in_order(network())[:-1], config_of(plan()))
    with pytest.raises(ModelError, match="number of arrays"):
        one.evaluate(arrays_in_order(network())[:-1], {})


def test_evaluate_is_on_the_validation_examples() -> None:
    # The model says class 0 for every x above 4, the mean: of validation x = 0 .. 5, all of
    # x = 0, 1, 2, 3 and 4 give class 1 (at x = 4 by the bias) and x = 5 class 0.
    # Classes are 0 1 0 1 0 1: right are x = 1 and x = 3.
    model = nn.Linear(1, 2)
    data = SiteData(train=numbered(50), validation=numbered(6))
    one = SiteClient("north", site_job(lambda: model, data, SETTINGS, PIPELINE), SETTINGS, CPU)
    weights: Sequence[NDArray[Any]] = [
        np.array([[1.0], [-1.0]], np.float32),
        np.array([-0.1, 0.1], np.float32),
    ]
    loss, num_examples, metrics = one.evaluate(list(weights), {})
    assert (num_examples, metrics) == (6, {"loss": loss, "accuracy": 2 / 6})
    assert loss == evaluated(model, Tensors.of(numbered(6)), PIPELINE).loss


def test_evaluate_of_a_site_without_validation_examples_is_not_a_number() -> None:
    nothing = Examples(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
    one = SiteClient(
        "north",
        site_job(
            lambda: linear([[1.0], [0.0]]), SiteData(numbered(2), nothing), SETTINGS, PIPELINE
        ),
        SETTINGS,
        CPU,
    )
    loss, num_examples, metrics = one.evaluate([np.zeros((2, 1), np.float32)], {})
    assert (num_examples, [*metrics]) == (0, ["loss"])
    assert np.isnan([loss, metrics["loss"]]).all()
