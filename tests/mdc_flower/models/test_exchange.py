"""Which arrays are exchanged, and how a difference in the others is found."""

import pytest
import torch
from torch import nn

from mdc_flower.models.exchange import (
    base_digests,
    base_of,
    check_base,
    check_unchanged,
    digests_of,
    exchanged_names,
    kept_names,
)
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.arrays import load_arrays, model_arrays
from mdc_flower.training.batch_norm import check_policy
from strategies.common.errors import ConfigError, ModelError


def network() -> nn.Module:
    """Return a frozen part, a trainable BatchNorm layer and a trainable head."""
    torch.manual_seed(1)
    frozen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    return nn.Sequential(frozen, nn.BatchNorm1d(2), nn.Linear(2, 1))


HEAD = ["2.weight", "2.bias"]
NORM = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
NORM.append("1.num_batches_tracked")
REST = [name for name in tensors_of(network()) if name not in NORM + HEAD]


class Tied(nn.Module):
    """Two layers with the same trainable weights, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.outputs.weight = self.inputs.weight
        self.fixed = nn.Linear(2, 2, bias=False).requires_grad_(False)


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        ("all", list(tensors_of(network()))),
        ("*", list(tensors_of(network()))),
        ("trainable", NORM + HEAD),
        ("2.*, 1.*", NORM + HEAD),
        ("1.*,2.weight,2.bias", NORM + HEAD),
        ("trainable, 0.1.running_*", ["0.1.running_mean", "0.1.running_var", *NORM, *HEAD]),
    ],
)
def test_names_are_in_the_models_order(exchange: str, expected: list[str]) -> None:
    assert exchanged_names(network(), exchange) == expected


@pytest.mark.parametrize("exchange", ["trainable", "inputs.*", "outputs.*"])
def test_tied_weights_have_one_name_whichever_name_is_meant(exchange: str) -> None:
    assert exchanged_names(Tied(), exchange) == ["inputs.weight"]


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_are_near() -> None:
    with pytest.raises(ConfigError, match="nothing in the model matches") as caught:
        exchanged_names(network(), "trainable, 2.wieght")
    assert "2.wieght" in str(caught.value)
    assert "2.weight" in str(caught.value)


def test_trainable_matches_nothing_in_a_frozen_model() -> None:
    with pytest.raises(ConfigError, match="nothing in the model matches"):
        exchanged_names(network().requires_grad_(False), "trainable")


@pytest.mark.parametrize(
    ("exchange", "keep", "exchanged", "kept"),
    [
        ("all", "2.*", [name for name in tensors_of(network()) if name not in HEAD], HEAD),
        ("trainable", "1.*", HEAD, NORM),
        ("2.*", "1.*", HEAD, NORM),
        ("trainable", "0.1.running_mean", NORM + HEAD, ["0.1.running_mean"]),
    ],
)
def test_what_is_kept_is_not_exchanged(
    exchange: str, keep: str, exchanged: list[str], kept: list[str]
) -> None:
    assert exchanged_names(network(), exchange, keep) == exchanged
    assert kept_names(network(), keep) == kept


def test_keep_is_refused_if_it_matches_nothing_or_all_that_is_trained() -> None:
    with pytest.raises(ConfigError, match=r"^keep: nothing in the model matches"):
        exchanged_names(network(), "all", "heads.*")
    with pytest.raises(ConfigError, match="nothing would be learned together"):
        exchanged_names(network(), "all", "1.*, 2.*")
    with pytest.raises(ConfigError, match="its training would be lost"):
        exchanged_names(network(), "2.weight", "1.*")


def test_a_trainable_parameter_that_would_stay_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="its training would be lost") as caught:
        exchanged_names(network(), "2.*")
    assert "1.weight" in str(caught.value)


@pytest.mark.parametrize("policy", ["recalibrate", "local"])
def test_statistics_that_are_not_exchanged_allow_no_policy_for_all_layers(policy: str) -> None:
    with pytest.raises(ConfigError, match="statistics are not exchanged") as caught:
        check_policy(network(), "lab:network", policy, "trainable")
    assert "0.1.num_batches_tracked" in str(caught.value)
    check_policy(network(), "lab:network", policy, "trainable, 0.1.*")
    check_policy(network(), "lab:network", "average", "trainable")


def test_the_digest_is_of_the_arrays_that_are_not_exchanged() -> None:
    before = base_digests(network(), NORM + HEAD)
    assert list(before) == REST
    changed = network()
    with torch.no_grad():
        changed[2].weight += 1.0  # type: ignore[index]
    assert base_digests(changed, NORM + HEAD) == before
    assert base_of(base_digests(network(), list(tensors_of(network())))) == ""
    assert len(base_of(before)) == 64


@pytest.mark.parametrize("change", ["value", "shape", "type", "name"])
def test_each_change_of_the_base_changes_its_digest(change: str) -> None:
    digests: dict[str, dict[str, str]] = {}
    for kind in ("none", change):
        values = torch.zeros(2, 2)
        if kind == "value":
            values[1, 1] = -0.0
        if kind == "shape":
            values = values.reshape(4, 1)
        if kind == "type":
            values = values.int()
        model = nn.Module()
        model.register_buffer("other" if kind == "name" else "weight", values)
        digests[kind] = base_digests(model, [])
    assert base_of(digests["none"]) != base_of(digests[change])


def test_an_array_that_training_changed_is_named() -> None:
    model = network()
    before = base_digests(model, NORM + HEAD)
    model.eval()(torch.ones(4, 2))
    check_unchanged(digests_of(model, before), before)
    model.train()(torch.ones(4, 2))
    with pytest.raises(ModelError, match="so the change would be lost") as caught:
        check_unchanged(digests_of(model, before), before)
    assert "'0.1.running_mean', the first of 3 that changed" in str(caught.value)


def test_another_base_is_refused_with_both_digests() -> None:
    check_base("", "", "site 'north'")
    with pytest.raises(ModelError, match="not the same here") as caught:
        check_base("a" * 64, "b" * 64, "site 'north'")
    assert "a" * 16 in str(caught.value)
    assert "b" * 16 in str(caught.value)
    with pytest.raises(ModelError, match="no such arrays"):
        check_base("a" * 64, "", "site 'north'")


def test_some_arrays_are_loaded_and_the_others_stay() -> None:
    source, target = network(), network()
    with torch.no_grad():
        for tensor in source.parameters():
            tensor.add_(1.0)
    before = model_arrays(target)
    arrays = model_arrays(source, HEAD)
    load_arrays(target, arrays, HEAD)
    for name, array in model_arrays(target).items():
        expected = arrays[name] if name in HEAD else before[name]
        assert array.tobytes() == expected.tobytes()
    with pytest.raises(ModelError, match=r"'2\.bias' is missing"):
        load_arrays(target, {"2.weight": arrays["2.weight"]}, HEAD)
    with pytest.raises(ModelError, match=r"'0\.0\.bias' is not in the model"):
        load_arrays(target, {**arrays, "0.0.bias": before["0.0.bias"]}, HEAD)
