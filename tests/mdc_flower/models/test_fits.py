"""Whether a model fits the data: both ways it is used, what it would take, and nothing changed."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mdc_flower.models import build_model, check_fits
from mdc_flower.models.fits import SIDES
from strategies.common.errors import ModelError
from tests.mdc_flower.examples import same_bits


def batch(*shape: int) -> Tensor:
    return torch.zeros(2, *shape)


def refusal(model: nn.Module, *shape: int, num_classes: int = 10) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check_fits(model, "mine:net", batch(*shape), num_classes)
    return caught.value


def takes_only(channels: int, side: int) -> nn.Module:
    """Return a model of one size of image and 10 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 10))


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


class WithAuxiliary(nn.Module):
    """As torchvision's googlenet: in training it returns more than outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = takes_only(1, 8)

    def forward(self, inputs: Tensor) -> Tensor | Outputs:
        logits: Tensor = self.classes(inputs)
        return Outputs(logits, logits) if self.training else logits


class Pair(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs


def test_a_model_for_other_inputs_is_refused_with_the_shape() -> None:
    error = refusal(nn.Sequential(nn.Linear(5, 10)), 4)
    assert error.what.startswith("the model does not fit the data: RuntimeError")
    assert (error.got, error.expected) == ("mine:net", "a model that accepts inputs of shape (4,)")
    assert error.hint == "", "only of images can it be said what would do"


# The sizes that are tried grow from that of the data: 75 is one of them, 76 is not.
@pytest.mark.parametrize(
    ("model", "shape", "hint"),
    [
        (
            takes_only(1, 75),
            (1, 28, 28),
            "It accepts images (C, H, W) of (1, 75, 75); the key image-size resizes images "
            "from files",
        ),
        (
            takes_only(3, 8),
            (1, 8, 8),
            "It accepts images (C, H, W) of (3, 8, 8); timm:NAME builds a timm model for "
            "any number of channels",
        ),
        (
            takes_only(3, 32),
            (1, 8, 8),
            "It accepts images (C, H, W) of (3, 32, 32); the key image-size resizes images "
            "from files; timm:NAME builds a timm model for any number of channels",
        ),
        (takes_only(1, 76), (1, 28, 28), ""),
        (takes_only(1, 32), (1, 48, 48), ""),
    ],
)
def test_the_error_says_which_images_would_do(
    model: nn.Module, shape: tuple[int, ...], hint: str
) -> None:
    assert refusal(model, *shape).hint == hint
    assert 75 in SIDES
    assert 76 not in SIDES


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (nn.Flatten(), "(2, 64)"),
        (nn.Identity(), "(2, 1, 8, 8)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), "(2, 9)"),
        (nn.Flatten(0), "(128,)"),
    ],
)
def test_a_model_of_other_outputs_is_refused_with_both_shapes(model: nn.Module, got: str) -> None:
    error = refusal(model, 1, 8, 8)
    assert error.what == "the model's output does not match the number of classes"
    assert f"got {got}, expected (2, 10)" in str(error)


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    assert "tuple" in str(refusal(Pair(), 1, 8, 8))


def test_a_model_that_returns_more_in_training_is_refused_before_it_trains() -> None:
    error = refusal(WithAuxiliary(), 1, 8, 8)
    assert error.what == "the model's output does not match the number of classes in training"
    assert error.got is Outputs


class Viewing(nn.Module):
    """Flattens by view, which takes no memory layout but the usual one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(channels, 3, 1), nn.Conv2d(3, 4, 1))
        self.classes = nn.Linear(4 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolutions(images)
        logits: Tensor = self.classes(maps.view(len(images), -1))
        return logits


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_takes_no_channels_last_images_is_refused_with_the_key(channels: int) -> None:
    images = batch(channels, 8, 8).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ModelError, match="channels-last") as caught:
        check_fits(Viewing(channels), "mine:net", images, 10, channels_last=True)
    assert caught.value.got == "mine:net"
    assert caught.value.hint.startswith("Set channels-last = false")
    check_fits(Viewing(channels), "mine:net", batch(channels, 8, 8), 10)


def test_a_model_that_takes_images_in_no_layout_is_refused_for_their_shape() -> None:
    with pytest.raises(ModelError, match="does not fit the data"):
        check_fits(takes_only(1, 9), "mine:net", batch(1, 8, 8), 10, channels_last=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_mode_statistics_and_random_state_as_they_were(training: bool) -> None:
    model = nn.Sequential(build_model("small-cnn", (1, 8, 8), 10, seed=1), nn.Dropout())
    model.train(training)
    model[1].train(not training)  # a part may have another mode than the whole
    before = torch.get_rng_state()
    check_fits(model, "mine:net", torch.ones(2, 1, 8, 8), 10)
    assert (model.training, model[1].training) == (training, not training)
    assert same_bits(model[0], build_model("small-cnn", (1, 8, 8), 10, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
