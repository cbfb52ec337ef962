"""A model is tried before a run: what cannot be trained, averaged or stored is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdc_flower.data import DataSet, Examples
from mdc_flower.jobs.task import two_examples
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings
from mdc_flower.training.model_trial import try_model
from strategies.common.errors import ModelError
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import GLOBAL_MODEL
from tests.mdc_flower.commands import run_small
from tests.mdc_flower.examples import dataset_of, job_of, numbered

TWO = Tensors(torch.tensor([[0.0], [9.0]]), torch.tensor([0, 1]))
PIPELINE = InputPipeline(mean=(4.0,), std=(2.0,))


def attempt(new_model: Callable[[], nn.Module], settings: TrainSettings) -> None:
    """Try a model with two examples, as the task of a run does."""
    settings = replace(settings, batch_size=2, autocast_dtype=None, compile=False)
    try_model(job_of(TWO, settings, PIPELINE, new_model), settings)


def refusal(new_model: Callable[[], nn.Module]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        attempt(new_model, TrainSettings())
    return caught.value


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layer = nn.Linear(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


class WithMask(Base):
    """Adds constants that are not finite, as the mask of causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 0 * self.get_buffer("mask").exp()


class Caching(Base):
    """Keeps what it has computed, which changes no output."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.last = super().forward(inputs)
        return self.last


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("new_model", [Base, WithMask, Caching])
def test_a_model_that_can_take_part_passes(
    new_model: Callable[[], nn.Module], optimizer: str
) -> None:
    settings = TrainSettings(
        optimizer=optimizer, autocast_dtype=torch.bfloat16, compile=True, clip_norm=1.0
    )
    random_state = torch.get_rng_state()
    attempt(new_model, settings)
    assert torch.equal(torch.get_rng_state(), random_state)


class Moving(Base):
    """Keeps a mean of its inputs where no file has it, and subtracts it in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("mean").lerp_(inputs.detach().mean(0), 0.1)
        return super().forward(inputs - self.get_buffer("mean"))


class Unseeded(Base):
    """Projects its inputs by numbers that differ from model to model."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = float(np.random.default_rng().random())

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.factor * inputs)


@pytest.mark.parametrize("new_model", [Moving, Unseeded])
def test_a_model_that_its_arrays_do_not_give_back_is_refused(
    new_model: Callable[[], nn.Module],
) -> None:
    error = refusal(new_model)
    assert "gives different results" in error.what
    assert "Register it as a buffer" in error.hint


def test_initial_weights_that_no_seed_decides_are_refused() -> None:
    assert "differ each time" in refusal(lambda: nn.Linear(1, 2)).what


def test_a_model_without_a_parameter_to_train_is_refused() -> None:
    assert "no parameter to train" in refusal(lambda: Base().requires_grad_(False)).what
    assert refusal(lambda: Base().requires_grad_(False)).got == "all parameters are frozen"
    assert refusal(nn.Identity).got == "no parameters"


class Detached(Base):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


class WithState(Base):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_a_model_whose_step_fails_is_refused_with_the_reason() -> None:
    error = refusal(Detached)
    assert "the model cannot be trained: RuntimeError: " in str(error)
    assert "grad" in str(error)


def test_a_module_with_state_of_its_own_format_is_refused() -> None:
    assert "not a parameter or a buffer" in refusal(WithState).what


class Complex(Base):
    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.ones(1, dtype=torch.complex64))


class Uninitialized(Base):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.full((2,), torch.nan))


@pytest.mark.parametrize(
    ("new_model", "what", "where"),
    [
        (Complex, "cannot be averaged", "array 'spectrum'"),
        (Uninitialized, "not all finite", "array 'offset'"),
    ],
)
def test_parameters_that_have_no_mean_are_refused(
    new_model: Callable[[], nn.Module], what: str, where: str
) -> None:
    error = refusal(new_model)
    assert what in error.what
    assert error.where == where


def test_weights_that_are_tied_by_their_data_alone_are_refused() -> None:
    def new_model() -> nn.Module:
        model = nn.Sequential(Base(), nn.Linear(2, 2), nn.Linear(2, 2))
        model[2].weight.data = model[1].weight.data
        return model

    assert refusal(new_model).got == "'1.weight' and '2.weight'"


# The two examples


def test_they_are_the_first_and_the_last_of_the_data_set() -> None:
    examples = two_examples(dataset_of(numbered(10), numbered(4)))
    assert examples.inputs[:].tolist() == [[0.0], [9.0]]
    assert examples.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.uint8, 255), (np.float32, 1), (np.int64, 6)], ids=str
)
def test_without_data_they_are_drawn_in_the_range_of_their_type(dtype: Any, largest: float) -> None:
    none = Examples(np.empty((0, 3, 40), dtype), np.empty(0, np.int64))
    data = DataSet("none", none, none, ["a", "b"], num_tokens=7 if dtype is np.int64 else 0)
    inputs = two_examples(data).inputs[:].numpy()
    assert (inputs.shape, inputs.dtype) == ((2, 3, 40), dtype)
    assert 0.9 * largest < inputs.max() <= largest
    assert 0 <= inputs.min() < 0.1 * largest + 1
    assert np.array_equal(inputs, two_examples(data).inputs[:].numpy())


# The command

LAB = """
import torch
from torch import nn

class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"calls": 1}

    def set_extra_state(self, state):
        pass

def stateful(shape, classes):
    return nn.Sequential(nn.Flatten(), Stateful(64, classes))

def frozen(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)

def masked(shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    return model
"""


@pytest.fixture
def trial_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a user's models where Python finds them."""
    (tmp_path / "trial_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("process_state", "trial_lab")
@pytest.mark.parametrize(
    ("model", "told"),
    [("stateful", "not a parameter or a buffer"), ("frozen", "no parameter to train")],
)
def test_a_run_ends_with_2_before_it_begins(tmp_path: Path, model: str, told: str) -> None:
    run_dir = tmp_path / "run"
    settings = ("--set", f"model=trial_lab:{model}", "--set", "num-rounds=1")
    result = run_small(*settings, "--output", run_dir)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not run_dir.exists()


@pytest.mark.usefixtures("process_state", "trial_lab")
def test_a_model_with_a_constant_that_is_not_finite_goes_through_a_run(tmp_path: Path) -> None:
    settings = ("model=trial_lab:masked", "num-rounds=2", "max-relative-update=100")
    options = [part for setting in settings for part in ("--set", setting)]
    result = run_small(*options, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    arrays, _ = read_model(tmp_path / "run" / GLOBAL_MODEL)
    assert (arrays["mask"] == -np.inf).all()
    assert np.isfinite(arrays["1.weight"]).all()
