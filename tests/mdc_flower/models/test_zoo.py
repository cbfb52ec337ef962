"""Large models of torchvision and timm: from a name through a round of two sites, and back."""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType, RecordDict
from torch import Tensor, nn

from mdc_flower.data import Examples, SiteData
from mdc_flower.models import build_model, check_fits
from mdc_flower.site.client import SiteClient
from mdc_flower.training.arrays import load_arrays, model_arrays
from mdc_flower.training.batches import InputPipeline
from mdc_flower.training.loop import TrainSettings
from strategies.aggregation.averaging import Arrays, Update, by_examples, weighted_mean
from strategies.common.errors import ModelError
from strategies.exchange.gate import judge_train
from strategies.exchange.messages import arrays_to_record, train_reply_content
from tests.mdc_flower.examples import CPU, plan, site_job
from tests.strategies.fakes import NODE_IDS, train_metrics

CLASSES = 10


@dataclass(frozen=True)
class Named:
    """A model, the smallest image that it takes, and its parameters in millions, as published.

    The published number is for 1000 classes; with 10 there are 990 outputs less.
    """

    spec: str
    shape: tuple[int, int, int]
    published: float
    width: int  # of what the last layer reads

    def __str__(self) -> str:
        return self.spec

    @property
    def num_parameters(self) -> float:
        return self.published * 1e6 - 990 * (self.width + 1)


ZOO = (
    Named("torchvision:vgg19", (3, 32, 32), 143.667, 4096),
    Named("torchvision:resnet152", (3, 32, 32), 60.193, 2048),
    Named("torchvision:densenet121", (3, 32, 32), 7.979, 1024),
    Named("torchvision:densenet161", (3, 32, 32), 28.681, 2208),
    Named("timm:inception_v4", (1, 75, 75), 42.679, 1536),
    Named("timm:inception_resnet_v2", (3, 75, 75), 55.844, 1536),
    Named("torchvision:inception_v3", (3, 75, 75), 23.835, 2048),  # 27.161 with the auxiliary
    Named("torchvision:googlenet", (3, 16, 16), 6.625, 1024),
)


def built(named: Named) -> nn.Module:
    if named.spec.startswith("timm:"):
        pytest.importorskip("timm")
    return build_model(named.spec, named.shape, CLASSES, seed=1)


def client(site: str, model: nn.Module, shape: tuple[int, ...], count: int) -> SiteClient:
    """Return a site with random bytes for images, and two of them for validation."""
    random = np.random.default_rng(count)

    def some(number: int) -> Examples:
        images = random.integers(0, 256, (number, *shape), dtype=np.uint8)
        return Examples(images, random.integers(0, CLASSES, number))

    # BatchNorm over two maps of one pixel, which is what is left in the last layers, has gradients
    # without bound.
    settings = TrainSettings(batch_size=4, clip_norm=1.0)
    pipeline = InputPipeline((0.5,), (0.25,))
    return SiteClient(
        site,
        site_job(lambda: model, SiteData(some(count), some(2)), settings, pipeline),
        settings,
        CPU,
    )


def update_of(site: SiteClient, before: Arrays) -> Update:
    """Return what the reply gate lets through of a site's reply to one round of one step."""
    orders = plan(lr_max=0.001, lr_min=0.001)
    arrays, count, _ = site.fit(list(before.values()), dict(orders.to_config_record()))  # type: ignore[arg-type]
    named = dict(zip(before, arrays, strict=True))
    content = train_reply_content(arrays_to_record(named), train_metrics(count), "plan")
    request = Message(RecordDict(), dst_node_id=NODE_IDS[0], message_type=MessageType.TRAIN)
    judged = judge_train(Message(content, reply_to=request), site.site, "plan", before)
    assert isinstance(judged, Update), judged
    return judged


def mean_by_hand(name: str, north: Update, south: Update) -> Any:
    """Return the mean of 2 and 4 examples: a third and two thirds."""
    one: Any = north.arrays[name]
    other: Any = south.arrays[name]
    if not np.issubdtype(one.dtype, np.floating):
        return one  # a counter has no mean
    return one / 3 + other * (2 / 3)


def warm_up(model: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm the statistics of these images, as it has after some rounds.

    With those of a new model, 0 and 1, and a few steps, activations grow from layer to layer in
    evaluation, and are not finite after a hundred of them. From then on statistics move slowly:
    those of two maps of one pixel are nobody else's.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.01


@pytest.mark.integration
@pytest.mark.parametrize(
    "named",
    [pytest.param(ZOO[0], marks=pytest.mark.slow), *ZOO[1:]],  # VGG-19 is 558 MB of weights
    ids=str,
)
def test_a_large_model_goes_through_a_round_of_two_sites(named: Named, identity: None) -> None:
    model = built(named)
    check_fits(model, named.spec, torch.zeros(2, *named.shape), CLASSES)
    warm_up(model, torch.randn(8, *named.shape, generator=torch.Generator().manual_seed(1)))
    before = model_arrays(model)
    north, south = (
        update_of(client(site, model, named.shape, count), before)
        for site, count in (("north", 2), ("south", 4))
    )
    mean = weighted_mean([north, south], by_examples)
    assert {name: (a.shape, a.dtype) for name, a in mean.items()} == {
        name: (a.shape, a.dtype) for name, a in before.items()
    }
    for name, array in mean.items():
        np.testing.assert_allclose(
            cast(Any, array), mean_by_hand(name, north, south), 1e-4, 1e-6, err_msg=name
        )
    trained = [name for name, _ in model.named_parameters()]
    assert any(not np.array_equal(mean[name], before[name]) for name in trained)
    counters = [name for name in mean if name.endswith("num_batches_tracked")]
    assert all(mean[name] == before[name] + 1 for name in counters), "one step was made"
    assert bool(counters) == (named.spec != "torchvision:vgg19"), "VGG has no BatchNorm"
    load_arrays(model, mean)
    loss, count, metrics = client("west", model, named.shape, 2).evaluate(list(mean.values()), {})
    assert math.isfinite(loss)
    assert count == 2
    assert 0 <= float(metrics["accuracy"]) <= 1


@pytest.mark.parametrize("named", ZOO, ids=str)
def test_its_parameters_are_as_many_as_published(named: Named) -> None:
    with torch.device("meta"):
        found = sum(parameter.numel() for parameter in built(named).parameters())
    in_channels_less = 2 * 9 * 32 if named.shape[0] == 1 else 0  # of the first 3x3, 32 filters
    assert found == pytest.approx(named.num_parameters - in_channels_less, abs=1000)


@pytest.mark.parametrize(
    ("spec", "shape", "takes"),
    [
        ("torchvision:densenet121", (3, 16, 16), (3, 32, 32)),
        ("torchvision:googlenet", (1, 28, 28), (3, 28, 28)),
        ("timm:inception_v4", (1, 28, 28), (1, 75, 75)),
    ],
)
def test_for_images_that_are_too_small_or_grey_the_error_says_which_would_do(
    spec: str, shape: tuple[int, int, int], takes: tuple[int, int, int]
) -> None:
    model = built(Named(spec, shape, 0, 0))
    with pytest.raises(ModelError, match="does not fit the data") as caught:
        check_fits(model, spec, torch.zeros(2, *shape), CLASSES)
    assert f"It accepts images (C, H, W) of {takes}" in caught.value.hint
