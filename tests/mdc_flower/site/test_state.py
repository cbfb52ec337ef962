"""What a site keeps from round to round: which state counts, which stays, what if it is lost."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, MessageType, RecordDict
from torch import nn
from torch.nn import functional

from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.site import state as states
from mdc_flower.site.answering import answer
from mdc_flower.site.resources import site_client
from mdc_flower.site.round_files import RoundFiles
from mdc_flower.training import loop_state
from mdc_flower.training.runtime import Saved
from strategies.common.files import cannot_write
from strategies.exchange.causes import Cause, cause_of
from strategies.exchange.lineage import Lineage
from strategies.exchange.messages import ARRAYS, arrays_to_record, record_to_arrays, train_content
from strategies.method.round_plan import RoundPlan
from strategies.storage.model_files import StoredArrays
from tests.mdc_flower.examples import plan
from tests.tiny import KEYS, linear

KEEP = KEYS | {"optimizer-state": "keep", "optimizer": "adamw", "batch-size": 64}
FIRST, SECOND, THIRD, FOURTH = (
    plan(round=number, lr_max=0.1, lr_min=0.1) for number in range(1, 5)
)
RUN = "4711"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "events.jsonl"))
    return tmp_path / "events.jsonl"


def kinds(log: Path) -> list[str]:
    return [json.loads(line)["event"] for line in log.read_text().splitlines()]


def node(folder: Path) -> dict[str, Any]:
    return {"site": "north", "modules": "tests.tiny", "threads": 1, "state": str(folder / "round")}


def ask(
    folder: Path,
    plan: RoundPlan,
    after: RoundPlan | None = None,
    model: Any = None,
    run: str = RUN,
    **keys: Any,
) -> RecordDict | Error:
    """Let the site train a round that begins with the state after another round."""
    content = train_content(arrays_to_record(model or _initial()), plan, 100.0)
    Lineage(run, after.plan_id if after else "").put_in(content)
    return answer(MessageType.TRAIN, content, KEEP | keys, node(folder))


def trained(*args: Any, **kwargs: Any) -> dict[str, Any]:
    reply = ask(*args, **kwargs)
    assert isinstance(reply, RecordDict), reply.reason
    return record_to_arrays(reply.array_records[ARRAYS])


def bits(*args: Any, **kwargs: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trained(*args, **kwargs).items()}


def cause(reply: RecordDict | Error) -> Cause:
    assert isinstance(reply, Error)
    return cause_of(reply.code)


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "round").glob("*.optimizer.*"))


def rounds(folder: Path) -> list[int]:
    return [int(path.name.split(".")[1]) for path in kept(folder)]


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.1, weight_decay=0.01)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=0.01, nesterov=True)


@pytest.mark.parametrize("optimizer", [adamw, sgd])
def test_training_goes_on_as_with_one_optimizer_in_plain_pytorch(
    tmp_path: Path, optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    model = _initial()
    keys = {"optimizer": optimizer.__name__, "weight-decay": 0.01}
    for before, now in ((None, FIRST), (FIRST, SECOND), (SECOND, THIRD)):
        model = trained(tmp_path, now, before, model, **keys)

    client = site_client(read_run_config(KEEP), read_site_config({"site": "north"}))
    data = client.job.splits["train"]  # type: ignore[attr-defined]
    plain = linear((4,), 2)
    for parameter, array in zip(plain.parameters(), _initial().values(), strict=True):
        parameter.data = torch.from_numpy(array).clone()
    stepping = optimizer(plain.parameters())
    # Each batch has all examples, so their order makes no difference but for rounding.
    for _ in range(3):
        stepping.zero_grad()
        loss: torch.Tensor = functional.cross_entropy(plain(data.inputs[:]), data.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        stepping.step()
    for parameter, array in zip(plain.parameters(), model.values(), strict=True):
        torch.testing.assert_close(parameter.data, torch.from_numpy(array), atol=1e-6, rtol=1e-5)


def test_the_state_makes_a_difference_that_its_loss_takes_away(tmp_path: Path) -> None:
    trained(tmp_path, FIRST)
    begun_with, anew = bits(tmp_path, SECOND, FIRST), bits(tmp_path, SECOND)
    assert begun_with != anew
    assert anew == bits(tmp_path / "other", SECOND)
    reset = answer(
        MessageType.TRAIN,
        train_content(arrays_to_record(_initial()), SECOND, 100.0),
        KEEP | {"optimizer-state": "reset"},
        node(tmp_path),
    )
    assert isinstance(reset, RecordDict)
    arrays = record_to_arrays(reset.array_records[ARRAYS])
    assert {name: array.tobytes() for name, array in arrays.items()} == anew


def test_the_scale_of_float16_losses_goes_on_too(tmp_path: Path) -> None:
    steps = []
    for before, now in ((None, FIRST), (FIRST, SECOND)):
        trained(tmp_path, now, before, precision="fp16")
        steps.append(StoredArrays(kept(tmp_path)[-1]).metadata["scale"]["_growth_tracker"])
    assert steps == [1, 2], "steps since the scale has grown"
    trained(tmp_path / "other", FIRST, precision="none")
    assert "scale" not in StoredArrays(kept(tmp_path / "other")[-1]).metadata


def _initial() -> dict[str, Any]:
    client = site_client(read_run_config(KEEP), read_site_config({"site": "north"}))
    return dict(zip(client.names, client.get_parameters({}), strict=True))


def test_an_optimizer_without_a_state_loses_none(tmp_path: Path) -> None:
    plain = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False}
    trained(tmp_path, FIRST, **plain)
    assert trained(tmp_path, SECOND, FIRST, **plain)


def test_a_round_begins_with_the_named_state_whatever_newer_ones_there_are(
    tmp_path: Path,
) -> None:
    trained(tmp_path, FIRST)
    trained(tmp_path, SECOND, FIRST)  # its update does not count
    third = bits(tmp_path, THIRD, FIRST)
    assert rounds(tmp_path) == [1, 3]
    trained(tmp_path / "other", FIRST)
    assert third == bits(tmp_path / "other", THIRD, FIRST)


def test_the_states_stay_that_an_earlier_checkpoint_names(tmp_path: Path) -> None:
    for before, now in ((None, FIRST), (FIRST, SECOND), (SECOND, THIRD)):
        trained(tmp_path, now, before)
    assert rounds(tmp_path) == [1, 2, 3]
    again = bits(tmp_path, SECOND, FIRST)
    trained(tmp_path / "other", FIRST)
    assert again == bits(tmp_path / "other", SECOND, FIRST)


def test_a_message_that_arrives_late_deletes_no_later_state(tmp_path: Path) -> None:
    trained(tmp_path, FIRST)
    trained(tmp_path, THIRD, FIRST)
    trained(tmp_path, SECOND, FIRST)
    assert trained(tmp_path, FOURTH, THIRD)


@pytest.mark.parametrize(("checkpoints", "left"), [(1, [3, 4]), (2, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_a_site_keeps_as_many_states_as_the_coordinator_has_checkpoints(
    tmp_path: Path, checkpoints: int, left: list[int]
) -> None:
    order = (None, FIRST, SECOND, THIRD, FOURTH)
    for before, now in pairwise(order):
        trained(tmp_path, now, before, **{"keep-checkpoints": checkpoints})
    assert rounds(tmp_path) == left


def test_a_round_that_is_repeated_writes_the_same_file(tmp_path: Path, log: Path) -> None:
    trained(tmp_path, FIRST)
    trained(tmp_path, SECOND, FIRST)
    before = [(path.name, path.read_bytes()) for path in kept(tmp_path)]
    next((tmp_path / "round").glob("*.reply.*")).unlink()
    trained(tmp_path, SECOND, FIRST)
    assert kinds(log).count("trained") == 3
    assert [(path.name, path.read_bytes()) for path in kept(tmp_path)] == before


@pytest.mark.parametrize("change", ["removed", "cut", "changed"])
def test_a_lost_state_is_told_and_the_site_can_begin_anew(
    tmp_path: Path, log: Path, change: str
) -> None:
    trained(tmp_path, FIRST)
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    if change == "removed":
        path.unlink()
    else:
        path.write_bytes(
            content[:-1] if change == "cut" else content[:-1] + bytes([content[-1] ^ 1])
        )
    lost = ask(tmp_path, SECOND, FIRST)
    assert cause(lost) is Cause.STATE_MISSING
    assert "has lost the state with which the round begins" in str(lost.reason)  # type: ignore[union-attr]
    assert "failed" in kinds(log)
    trained(tmp_path, SECOND)
    assert rounds(tmp_path) == [2]
    trained(tmp_path, THIRD, SECOND)


def test_a_state_that_cannot_be_restored_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, FIRST)
    monkeypatch.setattr(loop_state, "restore_optimizer", lambda *args: 1 / 0)
    lost = ask(tmp_path, SECOND, FIRST)
    assert cause(lost) is Cause.STATE_MISSING
    assert "ZeroDivisionError" in str(lost.reason)  # type: ignore[union-attr]
    assert trained(tmp_path, SECOND)


def test_an_update_is_not_sent_again_without_its_state(tmp_path: Path, log: Path) -> None:
    trained(tmp_path, FIRST)
    first = bits(tmp_path, SECOND, FIRST)
    assert bits(tmp_path, SECOND, FIRST) == first
    assert kinds(log)[-1] == "sent-again"
    state = kept(tmp_path)[-1]
    content = state.read_bytes()
    state.unlink()
    assert bits(tmp_path, SECOND, FIRST) == first
    assert kinds(log)[-1] == "trained"
    assert state.read_bytes() == content


def test_an_update_that_began_with_another_state_is_not_sent_again(
    tmp_path: Path, log: Path
) -> None:
    trained(tmp_path, FIRST)
    trained(tmp_path, SECOND, FIRST)
    trained(tmp_path, SECOND)
    assert kinds(log)[-1] == "trained"
    assert "sent-again" not in kinds(log)


def test_a_round_that_is_continued_needs_no_state_and_ends_with_the_same(
    tmp_path: Path, log: Path
) -> None:
    long = plan(round=2, local_epochs=3, lr_max=0.1, lr_min=0.1)
    for folder in ("cut", "whole"):
        trained(tmp_path / folder, FIRST)
    whole = bits(tmp_path / "whole", long, FIRST)

    class Stopped(RoundFiles):
        def write(self, saved: Saved) -> None:
            super().write(saved)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdc_flower.site.answers.RoundFiles", Stopped)
        with pytest.raises(KeyboardInterrupt):
            ask(tmp_path / "cut", long, FIRST)
    kept(tmp_path / "cut")[0].unlink()
    assert bits(tmp_path / "cut", long, FIRST) == whole
    assert "continued" in kinds(log)
    ends = [kept(tmp_path / folder)[-1].read_bytes() for folder in ("cut", "whole")]
    assert ends[0] == ends[1]


def test_a_state_that_cannot_be_written_costs_no_update(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(folder: Path, *args: Any) -> Path:
        raise cannot_write(folder, OSError(errno.ENOSPC, "No space left on device"))

    trained(tmp_path, FIRST)
    next((tmp_path / "round").glob("*.reply.*")).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("mdc_flower.site.own_files.seal", is_full)
        assert trained(tmp_path, FIRST)
    assert "state-not-written" in kinds(log)
    assert kept(tmp_path) == [], "an older state must not take its place"
    assert cause(ask(tmp_path, SECOND, FIRST)) is Cause.STATE_MISSING


def test_two_runs_do_not_use_or_delete_each_others_states(tmp_path: Path) -> None:
    trained(tmp_path, FIRST, run="1")
    assert cause(ask(tmp_path, SECOND, FIRST, run="2")) is Cause.STATE_MISSING
    trained(tmp_path, FIRST, run="2")
    assert len(kept(tmp_path)) == 2
    assert trained(tmp_path, SECOND, FIRST, run="1")


def test_old_states_of_other_runs_are_deleted(tmp_path: Path) -> None:
    trained(tmp_path, FIRST, run="1")
    (old,) = kept(tmp_path)
    long_ago = time.time() - states.FORGOTTEN_S - 60
    os.utime(old, (long_ago, long_ago))
    trained(tmp_path, FIRST, run="2")
    (new,) = kept(tmp_path)
    assert new.name.split(".")[0] == f"{2:020d}"


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "round").mkdir()
    other = tmp_path / "round" / "model.optimizer.safetensors"
    other.write_text("precious")
    for before, now in ((None, FIRST), (FIRST, SECOND)):
        trained(tmp_path, now, before)
    assert other.read_text() == "precious"


def test_a_site_without_a_folder_refuses_to_keep(tmp_path: Path) -> None:
    content = train_content(arrays_to_record(_initial()), FIRST, 100.0)
    Lineage(RUN).put_in(content)
    refused = answer(MessageType.TRAIN, content, KEEP, node(tmp_path) | {"state": ""})
    assert cause(refused) is Cause.CONFIG


def test_a_message_that_names_no_state_is_refused(tmp_path: Path) -> None:
    content = train_content(arrays_to_record(_initial()), FIRST, 100.0)
    refused = answer(MessageType.TRAIN, content, KEEP, node(tmp_path))
    assert cause(refused) is Cause.PLAN


def test_sites_keep_nothing_unless_told_to(tmp_path: Path) -> None:
    content = train_content(arrays_to_record(_initial()), FIRST, 100.0)
    Lineage(RUN).put_in(content)
    assert isinstance(answer(MessageType.TRAIN, content, KEYS, node(tmp_path)), RecordDict)
    assert kept(tmp_path) == []
