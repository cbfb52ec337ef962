"""Messages: what a train message carries beside the model, and what a site refuses in it."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from strategies.errors import PlanError
from strategies.messages import (
    ARRAYS,
    DEADLINE,
    PLAN,
    TIMING,
    arrays_to_record,
    deadline_of,
    record_to_arrays,
    train_content,
)
from strategies.round_plan import RoundPlan

THE_PLAN = RoundPlan(round=3, local_epochs=2, lr_max=1.0, lr_min=0.25, seed=7)


def content(deadline_s: float) -> RecordDict:
    return train_content(arrays_to_record({"w": np.array([1.5])}), THE_PLAN, deadline_s)


def test_a_train_message_carries_the_model_the_plan_and_the_deadline() -> None:
    sent = content(90)
    assert record_to_arrays(sent.array_records[ARRAYS])["w"].tolist() == [1.5]
    assert RoundPlan.from_config_record(sent.config_records[PLAN]) == THE_PLAN
    assert deadline_of(sent) == 90.0


def test_the_deadline_is_no_part_of_the_plan() -> None:
    plans = [RoundPlan.from_config_record(content(s).config_records[PLAN]) for s in (60, 600)]
    assert plans[0].plan_id == plans[1].plan_id


@pytest.mark.parametrize("value", [None, 0.0, -1.0, float("nan"), 60, "60"])
def test_a_deadline_that_is_missing_or_no_number_above_0_is_refused(value: object) -> None:
    sent = content(60)
    sent.config_records[TIMING] = ConfigRecord({} if value is None else {DEADLINE: value})  # type: ignore[dict-item]
    with pytest.raises(PlanError, match="deadline is missing or not understood") as caught:
        deadline_of(sent)
    assert caught.value.where == "timing, deadline-s"


def test_a_message_without_timing_is_refused() -> None:
    with pytest.raises(PlanError, match="deadline is missing"):
        deadline_of(RecordDict())
