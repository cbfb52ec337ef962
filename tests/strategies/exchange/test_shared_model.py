"""A model that several messages share: one record while it is used, and none when it is not."""

from weakref import ref

import numpy as np

from strategies.exchange.shared_model import SharedModel


def test_a_shared_model_is_one_record_while_it_is_used_and_no_longer() -> None:
    model = SharedModel({"w": np.ones(3)})
    record = model.record()
    assert model.record() is record
    left = ref(record)
    del record
    assert left() is None
    assert model.record()["w"].numpy().tolist() == [1.0] * 3
