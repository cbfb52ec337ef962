"""Rounds in which sites begin with what they kept: drops, repeats, deaths and losses."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from strategies.common.errors import StateMissingError
from strategies.exchange.causes import error_code
from strategies.exchange.lineage import Lineage, lineage_of
from strategies.exchange.membership import Membership
from strategies.exchange.messages import arrays_to_record
from strategies.method.local_work import Fixed
from strategies.method.recipes import fedavg
from strategies.round_loop import RoundLoop
from strategies.storage.position import Position
from strategies.storage.run_directory import GLOBAL_MODEL, read_history, run_directory
from tests.strategies.fakes import (
    Fault,
    LinearSite,
    dies_at,
    grid_of,
    raises,
    sends_nan,
    times,
)

RUN = "4711"
ROUNDS = 5
INITIAL = {"w": np.linspace(-1, 1, 33, dtype=np.float32) / 3}


@dataclass
class KeepingSite(LinearSite):
    """A site whose step grows with its state: how often it has trained in rounds that counted.

    Attributes
    ----------
    states
        Its state after each round, by plan id. It survives the coordinator.
    told
        The lineage in each train message.
    """

    states: dict[str, int] = field(default_factory=dict)
    told: list[Lineage] = field(default_factory=list)

    def _train(self, message: Message) -> Message | None:
        lineage = lineage_of(message.content)
        self.told.append(lineage)
        if lineage.state_from and lineage.state_from not in self.states:
            error = StateMissingError("gone")
            return Message(Error(error_code(error), str(error)), reply_to=message)
        state = self.states.get(lineage.state_from, 0) + 1
        moved = replace(self, step=self.step * state)
        reply = LinearSite._train(moved, message)
        self.states[moved.plans[-1].plan_id] = state
        return reply


def sites(**faults: Mapping[int, Fault]) -> list[KeepingSite]:
    steps = {"a": 0.1, "b": 0.2, "c": 0.3}
    return [KeepingSite(n, s, 3, faults=dict(faults.get(n, {}))) for n, s in steps.items()]


def lead(folder: Path, federation: list[KeepingSite], min_sites: int = 1, **options: Any) -> None:
    """Lead the run in a folder from its newest checkpoint to its end."""
    with run_directory(folder, {}, resume=True) as directory:
        position = directory.begin(INITIAL, Position(INITIAL, Fixed(1).start()), {})
        strategy = RoundLoop(
            fedavg(ROUNDS, 1, 0.1),
            Membership(),
            seed=7,
            trainable=frozenset(INITIAL),
            observers=[directory],
            updates=directory.updates,
            position=position,
            state_run=RUN,
            min_sites=min_sites,
            **options,
        )
        strategy.start(grid_of(*federation), arrays_to_record(position.arrays), timeout=60.0)


def model(folder: Path) -> bytes:
    return (folder / GLOBAL_MODEL).read_bytes()


def plan_ids(folder: Path) -> list[str]:
    return [line["plan"]["plan_id"] for line in read_history(folder)]


def test_a_round_begins_with_the_state_of_the_round_before(tmp_path: Path) -> None:
    federation = sites()
    lead(tmp_path, federation)
    named = ["", *plan_ids(tmp_path)[:-1]]
    for site in federation:
        assert site.told == [Lineage(RUN, plan_id) for plan_id in named]
        assert list(site.states.values()) == [1, 2, 3, 4, 5]
    assert all(line["began_anew"] == [] for line in read_history(tmp_path))


def test_the_state_of_a_round_that_did_not_count_is_never_named(tmp_path: Path) -> None:
    federation = sites(b={2: sends_nan, 3: sends_nan})
    lead(tmp_path, federation)
    ids = plan_ids(tmp_path)
    # Asked twice in each round in which its reply is unfit.
    assert [one.state_from for one in federation[1].told] == [
        "", ids[0], ids[0], ids[0], ids[0], ids[0], ids[3],
    ]  # fmt: skip
    assert [federation[1].states[plan_id] for plan_id in ids] == [1, 2, 2, 2, 3]
    assert [federation[0].states[plan_id] for plan_id in ids] == [1, 2, 3, 4, 5]


def test_a_round_that_is_repeated_begins_with_the_same_state(tmp_path: Path) -> None:
    federation = sites(c={3: times(2, raises)})
    lead(tmp_path, federation, min_sites=3)
    lead(tmp_path / "whole", whole := sites())
    assert model(tmp_path) == model(tmp_path / "whole")
    assert read_history(tmp_path)[2]["attempts"] == 2
    assert [site.states for site in federation] == [site.states for site in whole]


DEATHS = [
    ("exchange.gathering", "sending", {"round": 3}),
    ("exchange.gathering", "accepted", {"round": 3, "count": 1}),
    ("exchange.gathering", "accepted", {"round": 3, "count": 2}),
    ("exchange.gathering", "folding", {"round": 3}),
    ("storage.checkpoints", "checkpoint-model-written", {"round": 3}),
    ("storage.run_directory", "round-folded", {"round": 3}),
    ("storage.run_directory", "checkpoint-written", {"round": 3}),
    ("storage.run_directory", "round-finished", {"round": 3}),
]


@pytest.mark.parametrize(("module", "point", "where"), DEATHS, ids=str)
@pytest.mark.parametrize("dropped", [False, True], ids=["all-count", "one-dropped-before"])
def test_a_resumed_run_names_the_same_states_whatever_newer_ones_there_are(
    tmp_path: Path, module: str, point: str, where: dict[str, int], dropped: bool
) -> None:
    faults = {"b": {2: raises}} if dropped else {}
    whole, cut = sites(**faults), sites(**faults)
    lead(tmp_path / "whole", whole)
    with dies_at(module, point, **where):
        lead(tmp_path / "cut", cut)
    lead(tmp_path / "cut", cut)
    assert model(tmp_path / "cut") == model(tmp_path / "whole")
    assert plan_ids(tmp_path / "cut") == plan_ids(tmp_path / "whole")
    assert [site.states for site in cut] == [site.states for site in whole]
    assert all(line["began_anew"] == [] for line in read_history(tmp_path / "cut"))


def test_from_an_earlier_checkpoint_earlier_states_are_named(tmp_path: Path) -> None:
    whole, cut = sites(), sites()
    lead(tmp_path / "whole", whole)
    with dies_at("exchange.gathering", "accepted", round=4, count=1):
        lead(tmp_path / "cut", cut)
    newest = max((tmp_path / "cut" / "checkpoints").glob("000003.*.json"))
    newest.write_bytes(newest.read_bytes()[:-9])
    lead(tmp_path / "cut", cut)
    assert model(tmp_path / "cut") == model(tmp_path / "whole")
    assert [one.state_from for one in cut[0].told[3:5]] == plan_ids(tmp_path / "cut")[2:0:-1]


class LosesItsDisk(KeepingSite):
    """Loses its states when the round ``loses_in`` begins."""

    loses_in = 3
    lost = False

    def _train(self, message: Message) -> Message | None:
        if int(message.metadata.group_id) == self.loses_in and not self.lost:
            self.lost = True
            self.states.clear()
        return super()._train(message)


def with_loss(**faults: Mapping[int, Fault]) -> list[KeepingSite]:
    a, b, c = sites(**faults)
    return [a, LosesItsDisk("b", b.step, 3, faults=b.faults), c]


def test_a_site_that_has_lost_its_state_begins_anew_and_the_round_loses_nothing(
    tmp_path: Path,
) -> None:
    federation = with_loss()
    lead(tmp_path, federation)
    lead(tmp_path / "whole", sites())
    ids, lines = plan_ids(tmp_path), read_history(tmp_path)
    assert [one.state_from for one in federation[1].told] == [
        "", ids[0], ids[1], "", ids[2], ids[3],
    ]  # fmt: skip
    assert [line["began_anew"] for line in lines] == [[], [], ["b"], [], []]
    assert [sorted(line["participants"]) for line in lines] == [["a", "b", "c"]] * ROUNDS
    assert [line["dropped"] for line in lines] == [{}] * ROUNDS
    assert "gone" in lines[2]["errors"]["b"]
    assert [federation[1].states[plan_id] for plan_id in ids[2:]] == [1, 2, 3]
    assert ids == plan_ids(tmp_path / "whole"), "the plan knows nothing of states"


def test_a_site_may_fail_as_often_after_a_loss_as_before_it(tmp_path: Path) -> None:
    lead(tmp_path, with_loss(b={3: times(1, raises)}))
    assert read_history(tmp_path)[2]["began_anew"] == ["b"]


def test_after_a_loss_and_a_failed_round_the_site_is_asked_for_its_state_again(
    tmp_path: Path,
) -> None:
    federation = with_loss(b={3: raises})
    lead(tmp_path, federation)
    lines, ids = read_history(tmp_path), plan_ids(tmp_path)
    assert [line["began_anew"] for line in lines] == [[], [], [], ["b"], []]
    assert [one.state_from for one in federation[1].told[2:]] == [
        ids[1], "", "", ids[1], "", ids[3],
    ]  # fmt: skip


def test_a_site_that_only_says_that_its_state_is_lost_is_dropped(tmp_path: Path) -> None:
    class Liar(KeepingSite):
        def _train(self, message: Message) -> Message | None:
            self.told.append(lineage_of(message.content))
            error = StateMissingError("gone")
            return Message(Error(error_code(error), str(error)), reply_to=message)

    liar = Liar("b", 0.2, 3)
    a, _, c = sites()
    lead(tmp_path, [a, liar, c])
    assert len(liar.told) == 2 * ROUNDS
    assert read_history(tmp_path)[0]["causes"] == {"b": "state-missing"}


@pytest.mark.parametrize(("module", "point", "where"), DEATHS, ids=str)
def test_a_loss_is_recorded_once_whenever_the_coordinator_dies(
    tmp_path: Path, module: str, point: str, where: dict[str, int]
) -> None:
    whole, cut = with_loss(), with_loss()
    lead(tmp_path / "whole", whole)
    with dies_at(module, point, **where):
        lead(tmp_path / "cut", cut)
    lead(tmp_path / "cut", cut)
    assert model(tmp_path / "cut") == model(tmp_path / "whole")
    began = [line["began_anew"] for line in read_history(tmp_path / "cut")]
    assert began == [[], [], ["b"], [], []]
