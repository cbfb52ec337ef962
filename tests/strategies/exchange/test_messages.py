"""Messages: what a train message contains besides the model, and what a site rejects."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from strategies.common.errors import PlanError
from strategies.exchange.messages import (
    ARRAYS,
    DEADLINE,
    EVALUATE,
    LONGEST_TEXT,
    ORDERS,
    PLAN,
    PROTOCOL_VERSION,
    SiteCard,
    arrays_to_record,
    base_in,
    deadline_of,
    record_to_arrays,
    train_content,
    wants_evaluation,
    with_base,
)
from strategies.method.round_plan import RoundPlan

THE_PLAN = RoundPlan(round=3, local_epochs=2, lr_max=1.0, lr_min=0.25, seed=7)


def content(deadline_s: float, evaluate: bool = False) -> RecordDict:
    return train_content(arrays_to_record({"w": np.array([1.5])}), THE_PLAN, deadline_s, evaluate)


def test_a_train_message_carries_the_model_the_plan_and_the_deadline() -> None:
    sent = content(90)
    assert record_to_arrays(sent.array_records[ARRAYS])["w"].tolist() == [1.5]
    assert RoundPlan.from_config_record(sent.config_records[PLAN]) == THE_PLAN
    assert deadline_of(sent) == 90.0


def test_the_orders_are_no_part_of_the_plan() -> None:
    plans = [
        RoundPlan.from_config_record(content(*orders).config_records[PLAN])
        for orders in ((60, False), (600, False), (60, True))
    ]
    assert len({plan.plan_id for plan in plans}) == 1


@pytest.mark.parametrize("evaluate", [True, False])
def test_a_train_message_says_whether_to_evaluate_its_model(evaluate: bool) -> None:
    assert wants_evaluation(content(60, evaluate)) is evaluate


def test_the_digest_of_the_base_is_in_the_message_but_not_in_the_plan() -> None:
    sent = with_base(content(60), "0f" * 32)
    assert base_in(sent) == "0f" * 32
    assert RoundPlan.from_config_record(sent.config_records[PLAN]) == THE_PLAN
    plain = with_base(content(60), "")
    assert base_in(plain) == base_in(RecordDict()) == ""
    assert sorted(plain.config_records) == sorted(content(60).config_records)


@pytest.mark.parametrize("value", [None, 1, "true", [True]])
def test_only_a_clear_order_is_an_order_to_evaluate(value: object) -> None:
    sent = content(60)
    sent.config_records[ORDERS] = ConfigRecord({} if value is None else {EVALUATE: value})  # type: ignore[dict-item]
    assert not wants_evaluation(sent)
    assert not wants_evaluation(RecordDict())


@pytest.mark.parametrize("simulated", [True, False])
def test_a_card_comes_back_as_it_was_given(simulated: bool) -> None:
    card = SiteCard("north", 0, "1.0", simulated)
    assert SiteCard.from_content(card.to_content()) == card


def test_a_card_that_says_nothing_of_a_simulation_is_a_real_sites() -> None:
    told = SiteCard("north", 0, "1.0", simulated=True).to_content()
    (record,) = told.config_records.values()
    del record["simulated"]
    assert not SiteCard.from_content(told).simulated
    assert PROTOCOL_VERSION == 3


HARDWARE: dict[str, Any] = {"device": "NVIDIA H100", "number_format": "bfloat16", "threads": 16}
CODE: dict[str, Any] = {"model_code": "a" * 64, "dataset_code": "b" * 64}


def test_a_card_says_what_the_site_computes_with_and_which_code_it_has() -> None:
    card = SiteCard("north", 0, "1.0", **HARDWARE, **CODE)
    assert SiteCard.from_content(card.to_content()) == card
    assert card.machine == "NVIDIA H100, bfloat16, 16 threads"
    assert replace(card, threads=1).machine == "NVIDIA H100, bfloat16, 1 thread"
    several = replace(card, ranks=8)
    assert several.machine == "8 ranks x NVIDIA H100, bfloat16, 16 threads"
    assert replace(several, sharded=True).machine == f"{several.machine}, sharded"
    assert SiteCard.from_content(several.to_content()) == several


def test_a_card_of_an_older_version_is_understood_without_what_it_does_not_say() -> None:
    told = SiteCard("north", 0, "1.0", **HARDWARE, **CODE).to_content()
    (record,) = told.config_records.values()
    for key in (*HARDWARE, *CODE, "ranks", "sharded"):
        del record[key]
    assert SiteCard.from_content(told) == SiteCard("north", 0, "1.0")
    assert SiteCard("north", 0, "1.0").machine == ""


@pytest.mark.parametrize("value", [7, True, 0.5, ["x"], b"x"])
def test_what_is_no_text_on_a_card_is_left_out(value: Any) -> None:
    told = SiteCard("north", 0, "1.0", **HARDWARE).to_content()
    (record,) = told.config_records.values()
    record["device"] = value
    record["threads"] = -3
    record["ranks"] = value if isinstance(value, bool | float) else 0
    assert SiteCard.from_content(told) == SiteCard("north", 0, "1.0", number_format="bfloat16")


def test_a_long_text_on_a_card_is_cut_and_is_one_line() -> None:
    told = SiteCard("north", 0, "1.0", device="two\nlines " + "x" * 5000).to_content()
    device = SiteCard.from_content(told).device
    assert device.startswith("twolines xxx")
    assert len(device) == LONGEST_TEXT


@pytest.mark.parametrize("value", [None, 0.0, -1.0, float("nan"), 60, "60"])
def test_a_deadline_that_is_missing_or_no_number_above_0_is_refused(value: object) -> None:
    sent = content(60)
    sent.config_records[ORDERS] = ConfigRecord({} if value is None else {DEADLINE: value})  # type: ignore[dict-item]
    with pytest.raises(PlanError, match="deadline is missing or is not a number above 0") as caught:
        deadline_of(sent)
    assert caught.value.where == "orders, deadline-s"


def test_a_message_without_orders_is_refused() -> None:
    with pytest.raises(PlanError, match="deadline is missing"):
        deadline_of(RecordDict())
