"""A round as the user's script sees it: learning rates, seeds, models in and out."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import mdc_flower
from mdc_flower.site.own_loop.callback import RoundRates
from mdc_flower.site.own_loop.request import write_request
from mdc_flower.site.own_loop.round import Round
from mdc_flower.training.arrays import model_arrays
from strategies.common.errors import ConfigError, MdcError, ModelError
from strategies.method.round_plan import CycleShape, RoundPlan
from tests.mdc_flower.examples import plan

SHAPES = get_args(CycleShape)


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight


def new_round(
    folder: Path, model: nn.Module | None = None, **fields: Any
) -> tuple[Round, RoundPlan]:
    """Return a round as a site writes it, and its plan."""
    folder.mkdir(exist_ok=True)
    planned = plan(**{"local_epochs": 3, "lr_max": 0.3, "lr_min": 0.01, **fields})
    write_request(folder, "train", "north", model_arrays(model or Tied()), planned, 60.0)
    return Round(folder), planned


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_scheduler_sets_the_plans_rate_before_every_step(
    tmp_path: Path, shape: str, steps: int
) -> None:
    round, planned = new_round(tmp_path, shape=shape, run_start=0.25, run_end=0.5)
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups: list[dict[str, Any]] = [
        {"params": weights[:1]},
        {"params": weights[1:], "lr_scale": 0.1},
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = round.lr_scheduler(optimizer, steps)
    used = []
    for _ in range(steps):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [planned.lr_at(k / (steps - 1) if steps > 1 else 0.0) for k in range(steps)]
    assert used == [[lr, lr * 0.1] for lr in expected]
    assert [round.lr_at(step, steps) for step in range(steps)] == expected


def test_an_optimizer_that_is_kept_follows_each_rounds_cycle(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    for number in (1, 2):
        round, planned = new_round(tmp_path / str(number), round=number, lr_max=0.1 * number)
        schedule = round.lr_scheduler(optimizer, 2)
        used = []
        for _ in range(2):
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert used == [planned.lr_at(0.0), planned.lr_at(1.0)]


def test_a_loop_that_counts_its_steps_wrongly_is_told(tmp_path: Path) -> None:
    round, _ = new_round(tmp_path)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    schedule = round.lr_scheduler(optimizer, 2)
    with pytest.raises(MdcError, match=r"not trained to its end \(got '0 steps.* expected 2 steps"):
        round.send(Tied(), num_examples=1)
    assert not (tmp_path / "trained.safetensors").exists()
    for _ in range(2):
        optimizer.step()
        schedule.step()
    optimizer.step()
    with pytest.raises(MdcError, match="round 1, step 2, counted from 0: the round has no such"):
        schedule.step()


def test_the_length_of_a_round_is_in_epochs_or_in_steps(tmp_path: Path) -> None:
    assert new_round(tmp_path)[0].steps(per_epoch=5) == 15
    assert new_round(tmp_path, local_epochs=0, local_steps=7)[0].steps(per_epoch=5) == 7
    growing = new_round(tmp_path, local_epochs=0, local_parts=1300, parts_before=500)[0]
    assert growing.steps(per_epoch=5) == 9 - 2
    with pytest.raises(ConfigError, match="does not have whole epochs"):
        _ = growing.local_epochs


def test_a_model_that_a_trainer_has_not_trained_is_not_sent(tmp_path: Path) -> None:
    round = new_round(tmp_path)[0]
    rates = RoundRates(round)
    with pytest.raises(MdcError, match="taken no optimizer step"):
        round.send(nn.Linear(2, 1), num_examples=3)
    rates.rates.append(0.1)
    round.send(nn.Linear(2, 1), num_examples=3)
    assert round.is_sent


def test_seeds_differ_by_name_round_and_site_only(tmp_path: Path) -> None:
    first = new_round(tmp_path)[0]
    seeds = [
        first.seed("order"),
        first.seed("noise"),
        new_round(tmp_path, round=2)[0].seed("order"),
    ]
    write_request(tmp_path, "train", "south", {}, plan(), 60.0)
    seeds.append(Round(tmp_path).seed("order"))
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert new_round(tmp_path, lr_max=0.2)[0].seed("order") == first.seed("order")


def test_the_deadline_is_a_time_of_the_clock(tmp_path: Path) -> None:
    assert 50 < new_round(tmp_path)[0].seconds_left < 61
    write_request(tmp_path, "evaluate", "north", {}, None, math.inf)
    assert Round(tmp_path).deadline == math.inf


def test_weights_that_layers_share_are_loaded_and_sent_once(tmp_path: Path) -> None:
    sent = Tied()
    round, _ = new_round(tmp_path, sent)
    model = Tied()
    round.load(model)
    assert model.last.weight is model.first.weight
    assert torch.equal(model.first.weight, sent.first.weight)
    round.send(model, num_examples=5, metrics={"loss": 0.5})
    again = Round(tmp_path)
    assert sorted(again.arrays) == ["first.bias", "first.weight"]
    (tmp_path / "trained.safetensors").replace(tmp_path / "model.safetensors")
    assert all(np.array_equal(again.arrays[name], a) for name, a in model_arrays(sent).items())
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "num_examples": 5,
        "metrics": {"loss": 0.5},
    }


def test_a_model_that_does_not_fit_is_named_and_stays_as_it_is(tmp_path: Path) -> None:
    round, _ = new_round(tmp_path)
    other = nn.Sequential(nn.Linear(3, 3))
    before = model_arrays(other)
    with pytest.raises(ModelError, match=r"array '0\.bias' is missing"):
        round.load(other)
    assert all(np.array_equal(a, before[name]) for name, a in model_arrays(other).items())


def test_a_script_that_no_site_has_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDC_ROUND", raising=False)
    with pytest.raises(ConfigError, match="no site has started this script"):
        mdc_flower.site()
