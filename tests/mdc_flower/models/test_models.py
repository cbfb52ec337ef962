"""Models by name: their outputs, their initial weights, and what is said when one does not fit."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdc_flower.models import MODELS, build_model, check_fits
from strategies.common.errors import ConfigError, ModelError
from tests.mdc_flower.examples import same_bits

IMAGE_MODELS = ("mlp", "small-cnn", "fast-cnn", "resnet8", "resnet20", "resnet9")
AUDIO_MODELS = ("audio-cnn", "audio-crnn")
TEXT_MODELS = ("text-cnn", "text-gru")

LAB = """
import random
import numpy as np
import torch
from torch import nn

def net(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))

def tokens(input_shape, num_classes, num_tokens):
    return nn.Embedding(num_tokens, num_classes)

def doubles(input_shape, num_classes):
    return net(input_shape, num_classes).double()

def lazy(input_shape, num_classes):
    maps = (nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten())
    return nn.Sequential(*maps, nn.Dropout(), nn.LazyLinear(num_classes))

def lazy_tokens(input_shape, num_classes, num_tokens):
    return nn.Sequential(nn.Embedding(num_tokens, 3), nn.Flatten(), nn.LazyLinear(num_classes))

class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.extra = nn.LazyLinear(2)

    def forward(self, inputs):
        return self.extra(inputs) if self.training else inputs

def unused(input_shape, num_classes):
    return Unused()

def drawn(input_shape, num_classes):
    model = nn.Linear(2, num_classes)
    model.register_buffer("hidden", torch.rand(2), persistent=False)
    model.plain = [random.random(), np.random.rand()]
    return model

def fails(input_shape, num_classes):
    raise KeyError("a weight file")

def no_module(input_shape, num_classes):
    return "a model"
"""


@pytest.fixture(autouse=True)
def model_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a user's module where Python finds it."""
    (tmp_path / "model_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


def batch(*shape: int) -> Tensor:
    return torch.zeros(2, *shape)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_built_in_names_are_these() -> None:
    assert list(MODELS) == [*IMAGE_MODELS, *AUDIO_MODELS, *TEXT_MODELS]


@pytest.mark.parametrize("spec", IMAGE_MODELS)
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 8, 8), 10), ((1, 28, 28), 10), ((3, 32, 32), 100), ((2, 4, 5), 2)]
)
def test_a_built_in_model_fits_every_size_of_image(
    spec: str, shape: tuple[int, ...], classes: int
) -> None:
    model = build_model(spec, shape, classes, seed=1)
    assert model(batch(*shape)).shape == (2, classes)
    check_fits(model, spec, batch(*shape), classes)


def test_the_perceptron_takes_vectors() -> None:
    assert build_model("mlp", (7,), 3, seed=1)(batch(7)).shape == (2, 3)


# Weights and biases, by hand.
#   mlp for 8x8 and 10 classes: 64 * 64 + 64, 64 * 10 + 10.
#   small-cnn for one channel: 9 * (1 * 32 + 32 * 64 + 64 * 64), BatchNorms 2 * (32 + 64 + 64),
#     256 * 10 + 10.
#   fast-cnn for one channel: 9 * (1 * 16 + 16 * 32 + 32 * 64), BatchNorms 2 * (16 + 32 + 64),
#     256 * 10 + 10.
#   resnet8: convolution 9 * 16 and BatchNorm 2 * 16; stages of one block: 9 * 2 * 16^2 + 4 * 16;
#     9 * (16 * 32 + 32^2) + 4 * 32 and a shortcut 16 * 32 + 2 * 32;
#     9 * (32 * 64 + 64^2) + 4 * 64 and 32 * 64 + 2 * 64; 64 * 10 + 10.
#   resnet20: each stage two blocks more, of 18 w^2 + 4 w at width w: 2 * (18 * (16^2 + 32^2 +
#     64^2) + 4 * (16 + 32 + 64)).
#   resnet9: 3x3 convolutions of 1 * 64 + 64 * 128 + 2 * 128^2 + 128 * 256 + 256 * 512 + 2 * 512^2
#     weights times 9, BatchNorms of 64 + 3 * 128 + 256 + 3 * 512 channels, 5120 + 10.
STAGES = (4608 + 64) + (13824 + 128 + 512 + 64) + (55296 + 256 + 2048 + 128)
RESNET8 = 144 + 32 + STAGES + 650


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mlp", 4096 + 64 + 640 + 10),
        ("small-cnn", 9 * (32 + 2048 + 4096) + 2 * (32 + 64 + 64) + 2560 + 10),
        ("fast-cnn", 9 * (16 + 512 + 2048) + 2 * (16 + 32 + 64) + 2560 + 10),
        ("resnet8", RESNET8),
        (
            "resnet9",
            9 * (64 + 8192 + 2 * 16384 + 32768 + 131072 + 2 * 262144)
            + 2 * (64 + 3 * 128 + 256 + 3 * 512)
            + 5130,
        ),
        ("resnet20", RESNET8 + 2 * (18 * (256 + 1024 + 4096) + 4 * 112)),
    ],
)
def test_the_number_of_parameters_is_exact(spec: str, expected: int) -> None:
    assert num_parameters(build_model(spec, (1, 8, 8), 10, seed=1)) == expected


@pytest.mark.parametrize(("spec", "layers"), [("resnet8", 8), ("resnet20", 20)])
def test_a_resnet_has_as_many_layers_as_its_name_says(spec: str, layers: int) -> None:
    modules = build_model(spec, (3, 32, 32), 10, seed=1).modules()
    weighted = [m for m in modules if isinstance(m, nn.Linear | nn.Conv2d)]
    # The 1x1 convolutions of the two shortcuts are not counted by the name.
    assert len(weighted) - 2 == layers


# Initial weights

SPECS = [*IMAGE_MODELS, *AUDIO_MODELS, "torchvision:resnet18", "model_lab:net"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_seed_alone_decides_the_initial_weights(spec: str) -> None:
    torch.manual_seed(1)
    one = build_model(spec, (3, 32, 32), 10, seed=3)
    torch.manual_seed(2)
    assert same_bits(one, build_model(spec, (3, 32, 32), 10, seed=3))
    assert not same_bits(one, build_model(spec, (3, 32, 32), 10, seed=4))


@pytest.mark.parametrize("spec", SPECS)
def test_the_random_state_of_the_process_is_left_as_it_was(spec: str) -> None:
    before = torch.get_rng_state()
    build_model(spec, (3, 32, 32), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_whatever_else_is_drawn_when_a_model_is_built() -> None:
    def hidden(seed: int) -> list[float]:
        model: Any = build_model("model_lab:drawn", (2,), 3, seed)
        return [*model.hidden.tolist(), *model.plain]

    assert hidden(1) == hidden(1)
    assert not set(hidden(1)) & set(hidden(2))


@pytest.mark.parametrize(
    ("spec", "shape", "num_tokens"), [("lazy", (3, 8, 8), 0), ("lazy_tokens", (5,), 9)]
)
def test_the_seed_decides_the_weights_of_lazy_layers(
    spec: str, shape: tuple[int, ...], num_tokens: int
) -> None:
    def built(seed: int) -> nn.Module:
        return build_model(f"model_lab:{spec}", shape, 3, seed, num_tokens)

    assert same_bits(built(1), built(1))
    assert not same_bits(built(1), built(2))
    assert all(module.training for module in built(1).modules())
    buffers = dict(built(1).named_buffers())
    assert not any(buffer.any() for name, buffer in buffers.items() if "running_mean" in name)


def test_a_lazy_layer_that_evaluation_does_not_use_is_refused() -> None:
    with pytest.raises(ModelError, match="lazy layer") as caught:
        build_model("model_lab:unused", (3,), 3, seed=1)
    assert caught.value.got == "extra.weight"


def test_a_model_is_in_float32() -> None:
    model = build_model("model_lab:doubles", (1, 8, 8), 10, seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Models of recordings


@pytest.mark.parametrize("spec", AUDIO_MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 40, 101), (1, 64, 51), (2, 23, 30)])
def test_a_model_of_recordings_fits_every_size_of_spectrogram(
    spec: str, shape: tuple[int, ...]
) -> None:
    check_fits(build_model(spec, shape, 7, seed=1), spec, batch(*shape), 7)


# audio-cnn: 9 (1 * 16 + 16 * 32 + 32 * 64 + 64 * 64), BatchNorms 2 (16 + 32 + 64 + 64), and
#   64 * 10 + 10.
# audio-crnn: 9 (16 + 16 * 32 + 32 * 32), BatchNorms 2 (16 + 32 + 32); of 40 bands 5 are left, so
#   the GRU has 2 directions * 3 gates * 64 (5 * 32 + 64 weights and 2 biases); 128 * 10 + 10.
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("audio-cnn", 9 * (16 + 512 + 2048 + 4096) + 2 * 176 + 650),
        ("audio-crnn", 9 * (16 + 512 + 1024) + 2 * 80 + 6 * 64 * (160 + 64 + 2) + 1290),
    ],
)
def test_the_number_of_parameters_of_a_model_of_recordings_is_exact(
    spec: str, expected: int
) -> None:
    assert num_parameters(build_model(spec, (1, 40, 101), 10, seed=1)) == expected


def test_the_recurrent_model_hears_the_order_of_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    there = torch.randn(2, 1, 16, 32, generator=generator)
    model = build_model("audio-crnn", (1, 16, 32), 3, seed=1).eval()
    with torch.no_grad():
        assert not torch.allclose(model(there), model(there.flip(3)), atol=1e-4)


# Models of texts


def text_model(spec: str, num_tokens: int = 50, length: int = 12) -> nn.Module:
    return build_model(spec, (length,), 3, seed=1, num_tokens=num_tokens).eval()


def texts(*lengths: int, padded_to: int = 12) -> Tensor:
    """Return texts of tokens 2, 3, 4, and so on, each followed by padding."""
    rows = [[*range(2, 2 + length), *[0] * (padded_to - length)] for length in lengths]
    return torch.tensor(rows)


@pytest.mark.parametrize("spec", TEXT_MODELS)
def test_a_model_of_texts_fits_tokens_of_every_length(spec: str) -> None:
    for length in (1, 2, 64):
        model = build_model(spec, (length,), 3, seed=1, num_tokens=9)
        check_fits(model, spec, torch.zeros(2, length, dtype=torch.int64), 3)
        check_fits(model, spec, torch.full((2, length), 8), 3)


# text-cnn: 50 * 64 numbers; 64 maps of 64 * (3 + 4 + 5) weights and 3 biases; 192 * 3 + 3.
# text-gru: 50 * 64; 2 directions * 3 gates * 64 (64 + 64 weights and 2 biases); 128 * 3 + 3.
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("text-cnn", 3200 + 64 * (64 * 12 + 3) + 579),
        ("text-gru", 3200 + 6 * 64 * 130 + 387),
    ],
)
def test_the_number_of_parameters_of_a_model_of_texts_is_exact(spec: str, expected: int) -> None:
    assert num_parameters(text_model(spec)) == expected


@pytest.mark.parametrize("spec", TEXT_MODELS)
def test_padding_after_a_text_changes_nothing(spec: str) -> None:
    model = text_model(spec)
    with torch.no_grad():
        for length in (0, 1, 2, 5, 12):
            alone, among = model(texts(length)), model(texts(length, 12, 3, padded_to=20))
            assert torch.allclose(alone[0], among[0], atol=1e-6)


@pytest.mark.parametrize("spec", TEXT_MODELS)
def test_the_order_of_tokens_is_seen(spec: str) -> None:
    model = text_model(spec)
    with torch.no_grad():
        assert not torch.allclose(model(texts(12)), model(texts(12).flip(1)), atol=1e-4)


@pytest.mark.parametrize("spec", TEXT_MODELS)
def test_the_numbers_of_padding_stay_zero_in_training(spec: str) -> None:
    model = text_model(spec).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(texts(3, 5)).sum().backward()
        optimizer.step()
    weights = model.get_parameter("embedding.weight").detach()
    assert (weights[0] == 0).all()
    assert (weights[2] != text_model(spec).get_parameter("embedding.weight")[2]).all()


@pytest.mark.parametrize("spec", TEXT_MODELS)
def test_the_seed_alone_decides_a_model_of_texts(spec: str) -> None:
    torch.manual_seed(1)
    one = text_model(spec)
    torch.manual_seed(2)
    assert same_bits(one, text_model(spec))


@pytest.mark.parametrize("spec", TEXT_MODELS)
@pytest.mark.parametrize(("shape", "num_tokens"), [((12,), 0), ((1, 8, 8), 9), ((), 9)])
def test_a_model_of_texts_for_anything_else_is_refused(
    spec: str, shape: tuple[int, ...], num_tokens: int
) -> None:
    with pytest.raises(ModelError, match="needs texts as tokens") as caught:
        build_model(spec, shape, 3, seed=1, num_tokens=num_tokens)
    assert caught.value.got == f"{spec} for inputs {shape} and {num_tokens} tokens"


# Others' models


def test_a_model_of_torchvision_fits_colour_images() -> None:
    model = build_model("torchvision:resnet18", (3, 32, 32), 7, seed=1)
    check_fits(model, "torchvision:resnet18", batch(3, 32, 32), 7)
    # Its 11,689,512 parameters for 1000 classes, less 993 outputs of 512 weights and a bias.
    assert num_parameters(model) == 11_689_512 - 993 * 513


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_no_backbone_is_downloaded(name: str) -> None:
    # Tests have no network, and a download would fail.
    assert num_parameters(build_model(f"torchvision:{name}", (3, 32, 32), 7, seed=1)) > 3_000_000


def test_a_users_function_is_given_shape_and_classes() -> None:
    model = build_model("model_lab:net", (1, 4, 4), 3, seed=1)
    assert num_parameters(model) == 16 * 3 + 3


def test_a_users_function_that_has_a_parameter_for_the_number_of_tokens_gets_it() -> None:
    model = build_model("model_lab:tokens", (1,), 3, seed=1, num_tokens=9)
    assert num_parameters(model) == 9 * 3
    assert num_parameters(build_model("model_lab:net", (4,), 3, seed=1, num_tokens=9)) == 15


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"cannot be used: .*timm") as caught:
        build_model("timm:resnet18", (3, 32, 32), 10, seed=1)
    assert "pip install 'mdc-flower[timm]'" in caught.value.hint


def test_timm_is_asked_for_the_classes_and_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append({"name": name, **options})
        return nn.Linear(1, 1)

    timm = ModuleType("timm")
    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    build_model("timm:vit_tiny", (1, 28, 28), 10, seed=1)
    assert asked == [{"name": "vit_tiny", "pretrained": False, "num_classes": 10, "in_chans": 1}]


# Refused


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("small-cn", "Did you mean 'small-cnn'?"),
        ("resnet18", "Did you mean 'resnet8'?"),
        ("MLP", ""),
        ("xyzzy", ""),
        ("torchvision", ""),
        ("torchvision:", ""),
        ("timm:", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_of_them(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="no such model") as caught:
        build_model(spec, (1, 8, 8), 10, seed=1)
    assert (caught.value.where, caught.value.got, caught.value.hint) == ("model", spec, hint)
    assert caught.value.expected == (
        "one of: mlp, small-cnn, fast-cnn, resnet8, resnet20, resnet9, audio-cnn, audio-crnn, "
        "text-cnn, text-gru, torchvision:NAME, timm:NAME, module:function"
    )


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("torchvision:resnet19", "Unknown model resnet19"),
        ("model_lab:fails", "KeyError: 'a weight file'"),
        ("small-cnn", "IndexError"),  # no channels in the shape ()
    ],
)
def test_a_model_that_cannot_be_built_is_refused_with_what_it_was_asked_for(
    spec: str, named: str
) -> None:
    with pytest.raises(ModelError, match="cannot be built") as caught:
        build_model(spec, (), 10, seed=1)
    assert named in str(caught.value)
    assert caught.value.got == spec
    assert caught.value.hint == "It was built for inputs of shape () and 10 classes"


def test_a_module_that_is_not_there_is_refused_with_the_key() -> None:
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        build_model("no_such_lab:net", (1, 8, 8), 10, seed=1)
    assert (caught.value.where, caught.value.got) == ("model", "no_such_lab:net")


def test_a_function_that_returns_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match="did not return a module") as caught:
        build_model("model_lab:no_module", (1, 8, 8), 10, seed=1)
    assert caught.value.got == "str"
