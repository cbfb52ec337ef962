"""What a person sees of a run: events in, lines or a panel out."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mdc_flower.console.live_view import LiveView, RunState, describe_lr, describe_work
from strategies.storage.run_directory import EVENTS
from tests.mdc_flower.examples import plan

ORDERS = plan(local_epochs=2, lr_max=0.1, lr_min=0.025, shape="exponential").model_dump()
STARTED = {"event": "run-started", "sites": ["north", "south"], "budget": 8, "num_rounds": 0}
ROUND = {"event": "round-started", "plan": ORDERS, "sites": ["north", "south"], "kept": []}
RESUMED = {
    "event": "run-resumed",
    "rounds_done": 3,
    "work_done": 6,
    "changed": {},
    "version": ["0.1", "0.1"],
}


def answered(site: str, dropped: str | None = None) -> dict[str, Any]:
    return {"event": "site-answered", "round": 1, "site": site, "dropped": dropped}


def finished(**changes: Any) -> dict[str, Any]:
    event = {
        "event": "round-finished",
        "round": 1,
        "plan": ORDERS,
        "participants": {"north": {}, "south": {}},
        "failed": False,
        "evaluation": {
            "validation-accuracy": 0.5,
            "validation-loss": 1.0,
            "test-accuracy": 0.51234,
            "test-loss": 1.0,
        },
        "relative_change": 0.1234,
        "seconds": 1.26,
    }
    return event | changes


def lines_of(*events: dict[str, Any]) -> list[str]:
    state = RunState()
    return [line for event in events if (line := state.apply(event)) is not None]


def test_balanced_accuracy_stands_beside_accuracy() -> None:
    scores = {"test-accuracy": 0.98, "test-balanced-accuracy": 0.5, "test-recall": [1.0, 0.0]}
    (_, first) = lines_of(STARTED, ROUND, finished(evaluation=scores))
    assert "accuracy: test 0.9800 (balanced 0.5000), relative" in first


def test_a_run_prints_a_line_at_its_start_and_one_per_round() -> None:
    start, first = lines_of(STARTED, ROUND, answered("north"), answered("south"), finished())
    assert start == "2 sites: north, south"
    assert first.startswith(
        "round 1: 2 of 2 sites, 2 epochs, lr 0.1 to 0.025 exponential, "
        "accuracy: validation 0.5000, test 0.5123, relative change 0.123, 1.3 s"
    )


def sites(accuracy: float | None) -> dict[str, float]:
    shared = {} if accuracy is None else {"validation-accuracy": accuracy}
    return {"num-validation-examples": 4, "validation-loss": 1.0, **shared}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ", not evaluated, relative"),
        (
            {"start_evaluation": sites(0.87654), "site_evaluation": {}},
            ", accuracy: 0.8765 at the sites for the initial model, relative",
        ),
        (
            {"start_evaluation": sites(0.5), "site_evaluation": sites(0.75)},
            ", accuracy: 0.5000 at the sites for the initial model, "
            "0.7500 at the sites for round 1's model, relative",
        ),
        # The accuracy is kept back by every site.
        ({"start_evaluation": sites(None), "site_evaluation": {}}, ", not evaluated, relative"),
        (
            {"evaluation": {"test-accuracy": 0.25}, "start_evaluation": sites(0.0)},
            ", accuracy: test 0.2500, 0.0000 at the sites for the initial model, relative",
        ),
    ],
    ids=["nothing", "before", "last", "kept-back", "beside-the-coordinators"],
)
def test_where_the_coordinator_has_no_data_the_sites_accuracy_is_shown(
    changes: dict[str, Any], shown: str
) -> None:
    assert shown in lines_of(STARTED, ROUND, finished(**{"evaluation": {}, **changes}))[1]


def test_the_panel_shows_the_sites_accuracy_while_the_next_round_goes_on() -> None:
    state = RunState()
    event = finished(evaluation={}, start_evaluation=sites(0.5), site_evaluation={})
    for one in (STARTED, ROUND, event, ROUND):
        state.apply(one)
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(state.table())
    assert "exponential   0.5000 at the sites for the initial model" in console.export_text()


def test_a_dropped_reply_is_a_line_with_its_site_and_the_reason() -> None:
    assert lines_of(STARTED, ROUND, answered("south", "the site failed: disk full"))[1:] == [
        "round 1: south dropped: the site failed: disk full"
    ]


def test_a_failed_round_says_so() -> None:
    event = finished(failed=True, participants={}, evaluation={}, relative_change=None)
    line = lines_of(STARTED, ROUND, event)[1]
    assert line.startswith("round 1: 0 of 2 sites, 2 epochs, lr 0.1 to 0.025 exponential, failed")
    assert "relative change" not in line


def lines_of_rounds(*rounds: tuple[list[str], list[str], list[str]]) -> list[str]:
    """Return the lines of rounds, each of sites asked, sites that took part, and missing ones."""
    events = [STARTED]
    for number, (asked, took_part, missing) in enumerate(rounds, start=1):
        changes = {"participants": {site: {} for site in took_part}, "missing": missing}
        events += [{**ROUND, "sites": asked}, finished(round=number, **changes)]
    return [line.split(", 2 epochs")[0] for line in lines_of(*events)[1:]]


def test_the_line_counts_lost_sites_and_names_the_round_of_the_loss() -> None:
    both, north = ["north", "south"], ["north"]
    lines = lines_of_rounds(
        (both, both, []), (both, north, []), (north, north, ["south"]), (both, both, [])
    )
    assert lines == [
        "round 1: 2 of 2 sites",
        "round 2: 1 of 2 sites",
        "round 3: 1 of 2 sites, south lost in round 2",
        "round 4: 2 of 2 sites",
    ]


def test_a_site_that_is_lost_again_is_lost_since_then() -> None:
    both, north = ["north", "south"], ["north"]
    *_, last = lines_of_rounds((both, north, []), (both, both, []), (north, north, ["south"]))
    assert last == "round 3: 1 of 2 sites, south lost in round 3"


def test_a_site_that_was_lost_before_a_resume_is_not_online() -> None:
    both = ["north", "south"]
    (line,) = lines_of_rounds((both, both, ["east"]))
    assert line == "round 1: 2 of 3 sites, east not online"


def test_a_site_that_has_never_come_is_named_and_one_without_a_name_is_counted() -> None:
    state = RunState()
    waiting = {"event": "waiting-for-sites", "online": ["north", "south"], "expected": 4}
    state.apply({**waiting, "missing": ["east"]})
    assert state.headline == "waiting for sites: 2 of 4 online, not online: east"
    for event in (STARTED, ROUND):
        state.apply(event)
    both: dict[str, Any] = {"north": {}, "south": {}}
    line = state.apply(finished(round=1, participants=both, missing=["east"]))
    assert line is not None
    assert line.startswith("round 1: 2 of 4 sites, east not online, ")


def test_a_newcomer_is_named_in_the_line_of_its_first_round() -> None:
    state = RunState()
    for event in (STARTED, ROUND):
        state.apply(event)
    three: dict[str, Any] = {"north": {}, "south": {}, "east": {}}
    line = state.apply(finished(round=2, participants=three, missing=[], joined=["east"]))
    assert line is not None
    assert line.startswith("round 2: 3 of 3 sites, east joined, ")


def test_a_lost_site_stays_in_the_panel() -> None:
    state = RunState()
    for event in (STARTED, ROUND, {**ROUND, "sites": ["north"]}):
        state.apply(event)
    assert state.sites == {"north": "training", "south": "not online"}


def test_awaited_sites_are_a_line_and_the_headline_until_the_round_starts() -> None:
    state = RunState()
    awaited = {"missing": ["south"], "num_here": 1, "quorum": 2, "left_s": 86400.0}
    text = "waiting up to 24.0 h for south: only 1 of the 2 required sites are available"
    state.apply(STARTED)
    assert state.apply({"event": "sites-awaited", "time": 1.0, **awaited}) == text
    assert state.headline == text
    state.apply(ROUND)
    assert state.headline == "running"


def test_a_warning_is_a_line() -> None:
    assert lines_of({"event": "warning", "text": "no key"}) == ["warning: no key"]


def test_a_repeated_round_is_a_line_with_its_updates_and_its_quorum() -> None:
    event = finished(event="round-retried", participants={"north": {}}, quorum=2)
    assert lines_of(STARTED, ROUND, event)[1:] == ["round 1: 1 updates, 2 needed; retrying"]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "resuming after round 3"),
        (
            {"epoch-budget": [8, 12], "min-sites": [0, 1]},
            "resuming after round 3 with epoch-budget 8 -> 12, min-sites 0 -> 1",
        ),
    ],
)
def test_a_resumed_run_names_its_round_and_the_changed_keys(
    changed: dict[str, Any], line: str
) -> None:
    assert lines_of(STARTED, RESUMED | {"changed": changed})[1:] == [line]


@pytest.mark.parametrize(
    ("event", "headline"),
    [
        (
            {"event": "waiting-for-sites", "online": ["a"], "expected": 3},
            "waiting for sites: 1 of 3 online",
        ),
        (
            {"event": "waiting-for-sites", "online": [], "expected": None},
            "waiting for sites: 0 of ? online",
        ),
        (STARTED, "running"),
        ({"event": "run-ended", "status": "failed", "error": "RunError: no"}, "failed"),
        ({"event": "of-a-later-version"}, "starting"),
    ],
)
def test_the_headline_says_where_a_run_stands(event: dict[str, Any], headline: str) -> None:
    state = RunState()
    assert state.headline == "starting"
    state.apply(event)
    assert state.headline == headline


def test_each_sites_state_is_followed() -> None:
    state = RunState()
    seen = []
    for event in (STARTED, ROUND, answered("north"), answered("south", "late"), ROUND):
        state.apply(event)
        seen.append(dict(state.sites))
    assert seen == [
        {"north": "ready", "south": "ready"},
        {"north": "training", "south": "training"},
        {"north": "done", "south": "training"},
        {"north": "done", "south": "dropped: late"},
        {"north": "training", "south": "training"},
    ]


def test_a_site_whose_update_is_stored_is_done_when_the_round_starts() -> None:
    state = RunState()
    state.apply(STARTED)
    state.apply(ROUND | {"sites": ["south"], "kept": ["north"]})
    assert state.sites == {"north": "done", "south": "training"}


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: seconds)


# Two epochs of a budget of 8 took 30 s: six more take 90 s. One round of 3 took 30 s: two more
# take 60 s. With both limits the one that ends the run first counts. At the end, none is left.
@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"budget": 8, "num_rounds": 0}, ", about 90 s left"),
        ({"budget": 0, "num_rounds": 3}, ", about 60 s left"),
        ({"budget": 8, "num_rounds": 3}, ", about 60 s left"),
        ({"budget": 2, "num_rounds": 0}, ""),
        ({"budget": 0, "num_rounds": 1}, ""),
    ],
)
def test_the_time_left_is_estimated_from_the_work_that_is_done(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], left: str
) -> None:
    state = RunState()
    at(monkeypatch, 100.0)
    state.apply(STARTED | limits)
    state.apply(ROUND)
    at(monkeypatch, 130.0)
    line = state.apply(finished())
    assert line is not None
    assert line.endswith(f"1.3 s{left}")


def test_a_run_in_steps_says_steps_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    state, orders = RunState(), plan(local_steps=10).model_dump()
    at(monkeypatch, 100.0)
    state.apply(STARTED | {"budget": 30})
    state.apply(ROUND | {"plan": orders})
    at(monkeypatch, 130.0)
    line = state.apply(finished(plan=orders))
    assert line is not None
    assert ", 10 steps, lr 1," in line
    assert line.endswith(", about 60 s left"), "10 of 30 steps took 30 s"


# The run goes on after 6 epochs of 10, in 3 rounds of 6. Two more epochs, in one round, took
# 30 s: the two epochs that are left take 30 s, the two rounds 60 s. Counted from the beginning,
# 8 of 10 epochs would have taken 30 s, and 7.5 s would be left.
@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"budget": 10, "num_rounds": 0}, ", about 30 s left"),
        ({"budget": 0, "num_rounds": 6}, ", about 60 s left"),
        ({"budget": 10, "num_rounds": 6}, ", about 30 s left"),
        ({"budget": 8, "num_rounds": 6}, ""),
    ],
)
def test_the_time_left_of_a_run_that_goes_on_counts_from_where_it_was(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], left: str
) -> None:
    state = RunState()
    at(monkeypatch, 100.0)
    for event in (STARTED | limits, RESUMED, ROUND):
        state.apply(event)
    at(monkeypatch, 130.0)
    line = state.apply(finished(round=4))
    assert line is not None
    assert line.endswith(f"1.3 s{left}")


def test_after_a_restart_only_the_time_since_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two epochs took 30 s before; after a long pause, two took 60 s, and four of ten are left.
    state, times = RunState(), [100.0, 130.0, 1000.0, 1060.0]
    started = STARTED | {"budget": 10}
    resumed = RESUMED | {"rounds_done": 2, "work_done": 4}
    lines = []
    for event in (started, ROUND, finished(round=2), started, resumed, ROUND, finished(round=3)):
        if event["event"] in ("round-started", "round-finished"):
            at(monkeypatch, times.pop(0))
        lines.append(state.apply(event))
    assert str(lines[-1]).endswith("1.3 s, about 120 s left")


def test_a_round_may_finish_after_the_next_has_started() -> None:
    later = ROUND | {"plan": ORDERS | {"round": 2}, "sites": ["north"]}
    lines = lines_of(
        STARTED, ROUND, later, finished(), finished(round=2, participants={"north": {}})
    )
    assert [line.split(", ")[0] for line in lines[1:]] == [
        "round 1: 2 of 2 sites",
        "round 2: 1 of 2 sites",
    ]


def test_a_round_that_is_evaluated_when_the_run_goes_on_is_counted_once() -> None:
    state = RunState()
    for event in (STARTED, RESUMED, finished(round=3)):
        state.apply(event)
    assert (state.rounds_done, state.work_done) == (3, 6)
    state.apply(finished(round=4))
    assert (state.rounds_done, state.work_done) == (4, 8)


@pytest.mark.parametrize(
    ("orders", "work", "rate"),
    [
        ({"local_epochs": 1}, "1 epoch", "1"),
        ({"local_epochs": 5, "lr_max": 0.05, "lr_min": 0.0}, "5 epochs", "0.05"),
        ({"local_steps": 1}, "1 step", "1"),
        ({"local_epochs": 0, "local_parts": 95}, "0.095 epochs", "1"),
        ({"local_steps": 100, "shape": "cosine", "lr_min": 0.0}, "100 steps", "1 to 0 cosine"),
        ({"shape": "linear", "lr_max": 1 / 3, "lr_min": 1e-5}, "1 epoch", "0.333 to 1e-05 linear"),
    ],
)
def test_a_plan_in_words(orders: dict[str, Any], work: str, rate: str) -> None:
    fields = plan(**orders).model_dump()
    assert (describe_work(fields), describe_lr(fields)) == (work, rate)


def test_the_panel_shows_the_round_and_every_site() -> None:
    state = RunState()
    for event in (STARTED, ROUND, answered("north"), answered("south", "[red] is no markup")):
        state.apply(event)
    console = Console(file=io.StringIO(), width=100)
    console.print(state.table())
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "running" in text
    assert "round 1: 2 epochs, lr 0.1 to 0.025 exponential" in text
    assert ["north", "done"] in [line.split() for line in text.splitlines()]
    assert "dropped: [red] is no markup" in text


# Following the log


def plain_console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=40), text


def write(path: Path, *events: dict[str, Any], end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(event) + end for event in events))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, for as long as a machine under load may need."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def test_without_a_terminal_each_round_is_one_line(tmp_path: Path) -> None:
    console, text = plain_console()
    with LiveView(tmp_path, console):
        write(tmp_path / EVENTS, STARTED, ROUND, answered("north"), finished())
    first, second = text.getvalue().splitlines()
    assert first == "2 sites: north, south"
    assert second.startswith("round 1: 2 of 2 sites")
    assert "\x1b" not in text.getvalue()


def test_lines_appear_while_the_run_goes_on(tmp_path: Path) -> None:
    console, text = plain_console()
    with LiveView(tmp_path, console):
        write(tmp_path / EVENTS, STARTED)
        wait_until(lambda: "2 sites" in text.getvalue())
        write(tmp_path / EVENTS, ROUND, finished())
        wait_until(lambda: "round 1" in text.getvalue())
    assert len(text.getvalue().splitlines()) == 2


def test_events_of_an_earlier_process_are_not_shown_again(tmp_path: Path) -> None:
    console, text = plain_console()
    write(tmp_path / EVENTS, STARTED, ROUND, finished())
    with LiveView(tmp_path, console):
        write(tmp_path / EVENTS, STARTED, RESUMED)
    assert text.getvalue().splitlines() == ["2 sites: north, south", "resuming after round 3"]


def test_a_half_written_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    console, text = plain_console()
    log, line = tmp_path / EVENTS, json.dumps(finished())
    with LiveView(tmp_path, console):
        write(log, STARTED, ROUND)
        with log.open("a") as file:
            file.write(line[:30])
        wait_until(lambda: "2 sites" in text.getvalue())
        assert "round 1" not in text.getvalue()
        with log.open("a") as file:
            file.write(line[30:] + "\n")
    assert text.getvalue().count("round 1") == 1


def test_what_a_run_left_half_written_is_not_shown(tmp_path: Path) -> None:
    console, text = plain_console()
    with LiveView(tmp_path, console):
        write(tmp_path / EVENTS, STARTED)
        write(tmp_path / EVENTS, finished(), end="")
    assert text.getvalue().splitlines() == ["2 sites: north, south"]


def test_a_run_that_never_began_shows_nothing(tmp_path: Path) -> None:
    console, text = plain_console()
    with LiveView(tmp_path / "nowhere", console):
        pass
    assert text.getvalue() == ""


def test_the_rest_of_the_log_is_shown_also_when_the_run_failed(tmp_path: Path) -> None:
    console, text = plain_console()

    def fail() -> None:
        with LiveView(tmp_path, console):
            write(tmp_path / EVENTS, STARTED, ROUND, answered("north", "the site failed"))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert "round 1: north dropped: the site failed" in text.getvalue()


def test_on_a_terminal_the_panel_is_drawn_and_gone_at_the_end(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with LiveView(tmp_path, console):
        write(tmp_path / EVENTS, STARTED, ROUND, answered("north"))
        wait_until(lambda: "training" in text.getvalue())
    assert "north" in text.getvalue()
    assert text.getvalue().endswith("\x1b[2K")  # the last thing is that a line is erased
