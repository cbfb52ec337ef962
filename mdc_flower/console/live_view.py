"""The live view of a run, read from its event log.

The log is a file in the run directory. So the view is the same for every engine, and a view that
dies does not affect the run.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mdc_flower.common.shown_metrics import (
    OF_A_CLASSIFICATION,
    ShownMetric,
    others,
    selecting,
    short_name,
    shown_metrics,
)
from mdc_flower.console.tail import Tail
from strategies.exchange.attendance import Awaited
from strategies.exchange.metrics import VALIDATION
from strategies.method.round_plan import epochs_of, units_of
from strategies.storage.run_directory import EVENTS, read_event


class RunState:
    """State of a run, built from its events."""

    def __init__(self) -> None:
        self.headline = "starting"
        self.sites: dict[str, str] = {}
        # By round, because the next round may start before a round's model is evaluated.
        self.seen_by: dict[int, frozenset[str]] = {}
        self.seen: frozenset[str] = frozenset()
        self.lost: dict[str, int] = {}
        self.expected = 0
        self.plan: Mapping[str, Any] = {}
        self.budget = 0  # in the units of the plans
        self.num_rounds = 0
        self.work_done = self.work_at_start = 0
        self.rounds_done = self.rounds_at_start = 0
        self.metrics: Sequence[ShownMetric] = OF_A_CLASSIFICATION
        self.scores = ""
        self.started = time.monotonic()
        self.first_round_at: float | None = None

    def apply(self, event: Mapping[str, Any]) -> str | None:
        """Apply one event; return the line to print for it, if any."""
        match event["event"]:
            case "waiting-for-sites":
                self.expected = event["expected"] or 0
                of = self.expected or "?"
                self.headline = f"waiting for sites: {len(event['online'])} of {of} online"
                if missing := event.get("missing"):
                    self.headline += f", not online: {', '.join(missing)}"
            case "warning":
                return f"warning: {event['text']}"
            case "sites-awaited":
                fields = {name: event[name] for name in Awaited.__dataclass_fields__}
                self.headline = str(Awaited(**fields))
                return self.headline
            case "run-started":
                self.budget, self.num_rounds = event["budget"], event["num_rounds"]
                self.metrics = shown_metrics(event.get("metrics"))
                self.sites = dict.fromkeys(event["sites"], "ready")
                self.seen |= set(self.sites)
                self.headline = "running"
                return f"{len(self.sites)} sites: {', '.join(self.sites)}"
            case "run-resumed":
                self.rounds_done, self.work_done = event["rounds_done"], event["work_done"]
                self.work_at_start, self.rounds_at_start = self.work_done, self.rounds_done
                self.first_round_at = None
                return f"resuming after round {self.rounds_done}" + _changes(event["changed"])
            case "round-retried":
                count = len(event["participants"])
                needed = event["quorum"]
                return f"round {event['round']}: {count} updates, {needed} needed; retrying"
            case "round-started":
                self.headline = "running"
                self.first_round_at = self.first_round_at or time.monotonic()
                self.plan = event["plan"]
                self.sites = dict.fromkeys(event["kept"], "done")
                self.sites |= dict.fromkeys(event["sites"], "training")
                away = sorted(self.seen - set(self.sites))
                self.seen |= set(self.sites)
                self.sites |= dict.fromkeys(away, "not online")
                self.seen_by[self.plan["round"]] = self.seen
            case "site-answered":
                why = event["dropped"]
                self.sites[event["site"]] = f"dropped: {why}" if why else "done"
                return f"round {event['round']}: {event['site']} dropped: {why}" if why else None
            case "round-finished":
                return self._finish_round(event)
            case "recalibration-started":
                self.headline = "recomputing the final model's BatchNorm statistics"
                self.sites |= dict.fromkeys(event["kept"], "done")
                self.sites |= dict.fromkeys(event["sites"], "computing statistics")
            case "statistics-answered":
                why = event["dropped"]
                self.sites[event["site"]] = f"dropped: {why}" if why else "done"
                return f"statistics: {event['site']} dropped: {why}" if why else None
            case "recalibrated":
                return (
                    f"statistics recomputed at {len(event['participants'])} sites, "
                    f"{self._evaluated(event)}, {event['seconds']:.1f} s"
                )
            case "run-ended":
                self.headline = event["status"]
        return None

    def _finish_round(self, event: Mapping[str, Any]) -> str:
        plan = event["plan"]
        # A resumed run has already counted a round whose model was not yet evaluated.
        if event["round"] > self.rounds_done:
            self.work_done += units_of(plan)
            self.rounds_done = event["round"]
        self.scores = _scores(event, self.metrics)
        outcome = "failed" if event["failed"] else self._evaluated(event)
        change = event["relative_change"]
        return (
            f"round {event['round']}: {self._took_part(event)}, "
            f"{describe_work(plan)}, lr {describe_lr(plan)}, {outcome}"
            + (f", relative change {change:.3f}" if change is not None else "")
            + f", {event['seconds']:.1f} s{self._time_left()}"
        )

    def _evaluated(self, event: Mapping[str, Any]) -> str:
        """Return the scores of a model as text, with the name of the metric."""
        scores = _scores(event, self.metrics)
        return f"{selecting(self.metrics).words}: {scores}" if scores else "not evaluated"

    def _took_part(self, event: Mapping[str, Any]) -> str:
        """Return how many sites took part in a round, which are new, and which are gone."""
        took_part, gone = event["participants"], event.get("missing", [])
        self.seen |= set(took_part)  # a site may have come in the middle of the round
        seen = self.seen_by.pop(event["round"], self.seen) | set(took_part)
        for site in seen:
            if site in took_part:
                self.lost.pop(site, None)
            else:
                self.lost.setdefault(site, event["round"])
        # If a site left before this view started, the round in which it left is not known.
        away = [f"lost in round {self.lost[s]}" if s in self.lost else "not online" for s in gone]
        text = f"{len(took_part)} of {max(len(seen | set(gone)), self.expected)} sites"
        # Logs of earlier versions lack the fields.
        joined = [f"{site} joined" for site in event.get("joined", [])]
        anew = [f"{site} began anew" for site in event.get("began_anew", [])]
        return ", ".join(
            [text, *joined, *anew, *(f"{s} {how}" for s, how in zip(gone, away, strict=True))]
        )

    def _time_left(self) -> str:
        """Return the estimated time left, from the work (or rounds) done and its time."""
        if self.first_round_at is None:
            return ""
        shares = [
            (done - start) / (total - start)
            for done, start, total in (
                (self.work_done, self.work_at_start, self.budget),
                (self.rounds_done, self.rounds_at_start, self.num_rounds),
            )
            if start < done and start < total
        ]
        if not shares or max(shares) >= 1:
            return ""
        spent = time.monotonic() - self.first_round_at
        return f", about {spent * (1 / max(shares) - 1):.0f} s left"

    def table(self) -> RenderableType:
        """Return the state as a panel for a terminal."""
        elapsed = time.monotonic() - self.started
        lines = [Text(f"{self.headline}, {elapsed:.0f} s{self._time_left()}")]
        if self.plan:
            lines.append(
                Text(
                    f"round {self.plan['round']}: {describe_work(self.plan)}, "
                    f"lr {describe_lr(self.plan)}   {self.scores}"
                )
            )
        grid = Table.grid(padding=(0, 2))
        for site, state in self.sites.items():
            grid.add_row(Text(site), Text(state))
        return Group(*lines, grid)


def _scores(event: Mapping[str, Any], metrics: Sequence[ShownMetric]) -> str:
    """Return a round's scores as text: first the coordinator's, then the sites'.

    The sites evaluate the model that a round starts from: the model of the round before. They
    evaluate the last round's model after that round.
    """
    found, first = event["evaluation"], selecting(metrics)
    texts = []
    for split in ("validation", "test"):
        value = found.get(f"{split}-{first.name}")
        if value is not None:
            beside = [
                f"{short_name(one, first)} {one.short(other)}"
                for one in others(metrics)
                if isinstance(other := found.get(f"{split}-{one.name}"), float)
            ]
            more = f" ({', '.join(beside)})" if beside else ""
            texts.append(f"{split} {first.short(value)}{more}")
    number = event["round"]
    for key, of in (("start_evaluation", number - 1), ("site_evaluation", number)):
        # Logs of earlier versions lack some of these fields.
        score = event.get(key, {}).get(VALIDATION + first.name)
        if score is not None:
            model = f"round {of}'s model" if of else "the initial model"
            texts.append(f"{first.short(score)} at the sites for {model}")
    return ", ".join(texts)


def _changes(changed: Mapping[str, Any]) -> str:
    texts = [f"{key} {old} -> {new}" for key, (old, new) in changed.items()]
    return f" with {', '.join(texts)}" if texts else ""


def describe_work(plan: Mapping[str, Any]) -> str:
    """Return a plan's local work as text."""
    unit = "step" if plan["local_steps"] else "epoch"
    count = plan["local_steps"] or epochs_of(plan)
    return f"{count} {unit}" + ("s" if count != 1 else "")


def describe_lr(plan: Mapping[str, Any]) -> str:
    """Return a plan's learning-rate range as text."""
    if plan["shape"] == "constant":
        return f"{plan['lr_max']:.3g}"
    return f"{plan['lr_max']:.3g} to {plan['lr_min']:.3g} {plan['shape']}"


class LiveView:
    """Follows a run directory in a thread while the ``with`` block runs.

    On a terminal it redraws a panel; elsewhere it prints one line per round. It does not repeat
    events that an earlier process logged.
    """

    def __init__(self, run_dir: Path, console: Console) -> None:
        self._events = Tail(run_dir / EVENTS)
        self._console = console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "LiveView":
        """Start to follow the run."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show the rest of the log, then stop."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        state = RunState()
        with Live(
            get_renderable=state.table,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            auto_refresh=self._console.is_terminal,
        ):
            while True:
                stopping = self._stop.is_set()
                self._show_new(state)
                if stopping:
                    return
                self._stop.wait(0.2)

    def _show_new(self, state: RunState) -> None:
        for line in self._events.new_lines():
            event = read_event(line)
            if event and (text := state.apply(event)):
                self._console.print(text, highlight=False, soft_wrap=True)
