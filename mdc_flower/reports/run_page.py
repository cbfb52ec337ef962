"""The report page of one run, finished or not, from the files in its run directory."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mdc_flower.common.shown_metrics import ShownMetric, drawn, selecting
from mdc_flower.console.live_view import describe_lr
from mdc_flower.reports.adapter_gaps import gap_pictures
from mdc_flower.reports.page import Page, Picture, Section
from mdc_flower.reports.participation import draw_participation
from mdc_flower.reports.run_figures import (
    MANY_POINTS,
    draw_bytes,
    draw_learning_rate,
    draw_local_work,
    draw_metric,
    draw_relative_change,
)
from mdc_flower.reports.run_files import RunFiles
from mdc_flower.reports.run_tables import (
    config_section,
    incident_tables,
    recall_tables,
    round_tables,
)
from mdc_flower.reports.series import (
    History,
    Series,
    completed,
    metric_series,
    recalibrated_series,
    sites_of,
    unit,
    work,
    work_done,
)
from mdc_flower.reports.units import format_bytes, format_seconds
from strategies.exchange.metrics import LOSS

STATUS_WORDS = {"running": "running, or died without writing a final status"}


def run_page(run: RunFiles) -> Page:
    """Return a run's page."""
    sites = sites_of(run.history, _known_sites(run))
    return Page(
        title=f"Run {run.name}",
        subtitle=_subtitle(run),
        highlights=_highlights(run, sites),
        facts=_facts(run, sites),
        sections=[
            Section(
                "Results",
                pictures=_metric_pictures(run),
                tables=recall_tables(run.history, run.summary.get("class-names", ())),
                text="" if run.history else "No round has finished yet.",
            ),
            Section(
                "Training and communication",
                pictures=_training_pictures(run)
                + gap_pictures(run.history)
                + _bytes_picture(run.history),
            ),
            Section(
                "Participation",
                pictures=_participation_picture(run.history, sites),
                tables=incident_tables(run.history),
            ),
            Section("Round by round", tables=round_tables(run.history, sites, run.metrics)),
            config_section(run.config),
        ],
    )


def _known_sites(run: RunFiles) -> set[str]:
    """Return the sites in summary and events; the summary has none while the run is in progress."""
    named = {site for event in run.events["run-started"] for site in event.get("sites", ())}
    named |= {site for event in run.events["round-started"] for site in event.get("sites", ())}
    return named | set(run.summary.get("sites", ()))


def _subtitle(run: RunFiles) -> str:
    keys = ("model", "dataset")
    model, data = (str(run.config.get(key, "")) for key in keys)
    # A contract is a long text, so show only its prefix.
    data = data.split(":", 1)[0] if data.startswith("contract:") else data
    return f"{model} on {data}" if model and data else ""


def _highlights(run: RunFiles, sites: Sequence[str]) -> list[tuple[str, str]]:
    lines = completed(run.history)
    # A finished run's summary also counts the bytes exchanged after the last round.
    exchanged = sum(
        run.summary.get(f"{way}-bytes", sum(line[f"{way}_bytes"] for line in lines))
        for way in ("sent", "received")
    )
    seconds = run.summary.get("seconds", sum(line["seconds"] for line in lines))
    done = sum(work_done(run.history)[-1:])
    return [
        ("status", str(run.summary.get("status", "unknown"))),
        *_final_score(run),
        ("rounds", str(len(run.history))),
        (unit(run.history), str(done)),
        ("sites", str(len(sites))),
        ("exchanged", format_bytes(exchanged)),
        ("wall time", format_seconds(seconds)),
    ]


def _final_score(run: RunFiles) -> list[tuple[str, str]]:
    """Return the newest model's score, on the coordinator's test set if it is known."""
    metric = selecting(run.metrics)
    for name in ("test", "validation"):
        # The summary's value is that of the final model, after all rounds.
        if (value := run.summary.get("final", {}).get(f"{name}-{metric.name}")) is not None:
            return [(f"{metric.words} ({name})", metric.with_unit(value))]
    curves = {curve.name: curve for curve in metric_series(run.history, metric.name)}
    for name in ("test", "validation", "sites, validation"):
        if name in curves:
            value = [value for value in curves[name].values if value == value][-1]
            return [(f"{metric.words} ({name})", metric.with_unit(value))]
    return []


def _facts(run: RunFiles, sites: Sequence[str]) -> list[tuple[str, str]]:
    summary = run.summary
    status = str(summary.get("status", "unknown"))
    averaged = dict(summary.get("averaged", {}))
    rows = [
        ("status", STATUS_WORDS.get(status, "")),
        ("exit status", str(summary.get("exit-status", ""))),
        ("error", str(summary.get("error") or "")),
        ("open round", _open_round(run)),
        ("started", _moment(summary.get("started"))),
        ("resumed", "\n".join(_resume(event) for event in run.events["run-resumed"])),
        ("seed", str(summary.get("seed", run.config.get("seed", "")))),
        ("sites", ", ".join(sites)),
        ("mean of the last models", _averaged(averaged, run.metrics)),
        (
            "BatchNorm statistics",
            _recalibrated(summary.get("recalibration", {}), run.metrics),
        ),
        ("mdc-flower", str(summary.get("version", ""))),
        ("mdc-flower at the sites", _site_versions(summary.get("versions", {}))),
        ("hardware at the sites", _machines(run)),
        ("partition", str(summary.get("partition", {}).get("sha256", ""))),
    ]
    return [(name, value) for name, value in rows if value]


def _open_round(run: RunFiles) -> str:
    """Return the round in progress, if any."""
    started = run.events["round-started"]
    if run.summary.get("status") != "running" or not started:
        return ""
    number = started[-1]["plan"]["round"]
    if run.history and number <= run.history[-1]["round"]:
        return ""
    return f"{number}, sent to {', '.join(started[-1]['sites']) or 'no site'}"


def _resume(event: Mapping[str, Any]) -> str:
    changed = ", ".join(
        f"{key} {old} → {new}" for key, (old, new) in event.get("changed", {}).items()
    )
    text = f"{_moment(event.get('time'))}, after round {event.get('rounds_done', '?')}"
    return text + (f", with {changed}" if changed else "")


def _averaged(averaged: Mapping[str, Any], metrics: Sequence[ShownMetric]) -> str:
    if not averaged:
        return ""
    text = f"of rounds {', '.join(map(str, averaged.get('rounds', ())))}"
    return "; ".join([text, *_scores(averaged, metrics)])


def _recalibrated(told: Mapping[str, Any], metrics: Sequence[ShownMetric]) -> str:
    if not told:
        return ""
    scores = {**told.get("site_evaluation", {}), **told.get("evaluation", {})}
    return "; ".join(["recomputed after the last round", *_scores(scores, metrics)])


def _scores(found: Mapping[str, Any], metrics: Sequence[ShownMetric]) -> list[str]:
    by_name = {one.name: one for one in metrics if one.name != LOSS.name}
    return [
        f"{key.replace('-', ' ')} {by_name[name].with_unit(value)}"
        for key, value in found.items()
        if isinstance(value, float) and (name := key.partition("-")[2]) in by_name
    ]


def _site_versions(versions: Mapping[str, str]) -> str:
    by_version: dict[str, list[str]] = {}
    for site, version in versions.items():
        by_version.setdefault(str(version), []).append(site)
    if len(by_version) == 1:
        return next(iter(by_version))
    return "\n".join(f"{version}: {', '.join(names)}" for version, names in by_version.items())


def _machines(run: RunFiles) -> str:
    """Return the sites' hardware; a site that changed its machine appears with each of them."""
    told = [event.get("machines", {}) for event in run.events["run-started"]]
    told += [line.get("machines", {}) for line in run.history]
    by_machine: dict[str, set[str]] = {}
    for machines in told:
        for site, machine in machines.items():
            by_machine.setdefault(machine, set()).add(site)
    return "\n".join(
        f"{machine}: {', '.join(sites_of([], sites))}" for machine, sites in by_machine.items()
    )


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _metric_pictures(run: RunFiles) -> list[Picture]:
    history, recalibration = run.history, run.summary.get("recalibration", {})
    return [
        Picture(
            metric.name,
            f"{metric.words.capitalize()} of the global model",
            draw_metric(history, metric, recalibration),
            " ".join(_in_words(curve, unit(history)) for curve in curves),
            f"mean per example, in {metric.unit}" if metric.unit not in ("", "%") else "",
        )
        for metric in drawn(run.metrics)
        if (
            curves := metric_series(history, metric.name)
            + recalibrated_series(history, recalibration, metric.name)
        )
    ]


def _in_words(curve: Series, of: str) -> str:
    known = [
        (done, value)
        for done, value in zip(curve.done, curve.values, strict=True)
        if value == value
    ]
    (first, start), (last, end) = known[0], known[-1]
    if len(known) == 1:
        return f"{curve.name}: {start:.4g} after {first} {of}."
    return f"{curve.name}: from {start:.4g} after {first} to {end:.4g} after {last} {of}."


def _training_pictures(run: RunFiles) -> list[Picture]:
    history = run.history
    if not history:
        return []
    ile = run.config.get("epochs") == "ile"
    threshold = run.config.get("ile-epsilon") if ile else None
    pictures = [
        Picture(
            "learning-rate",
            "Learning rate",
            draw_learning_rate(history),
            f"Round {history[0]['round']}: {describe_lr(history[0]['plan'])}; round "
            f"{history[-1]['round']}: {describe_lr(history[-1]['plan'])}.",
            "Dotted lines mark the ends of rounds." if len(history) <= MANY_POINTS else "",
        ),
        Picture(
            "local-work",
            f"{unit(history).capitalize()} of each round",
            draw_local_work(history),
            f"From {work(history[0])} in the first round to {work(history[-1])} in the last.",
        ),
    ]
    changes = [line["relative_change"] for line in completed(history)]
    known = [change for change in changes if change]
    if known:
        pictures.append(
            Picture(
                "relative-change",
                "Relative change of the global model",
                draw_relative_change(history, threshold),
                f"From {known[0]:.3g} in the first round to {known[-1]:.3g} in the last.",
                "Norm of a round's change divided by the norm of the model it started from, over "
                "all trainable parameters; logarithmic axis.",
            )
        )
    return pictures


def _participation_picture(history: History, sites: Sequence[str]) -> list[Picture]:
    if not (history and sites):
        return []
    lines = completed(history)
    full = sum(len(line["participants"]) == len(sites) for line in lines)
    return [
        Picture(
            "participation",
            "Sites by round",
            draw_participation(history, sites),
            f"All {len(sites)} sites took part in {full} of {len(lines)} rounds. The table below "
            "lists what went wrong in the other rounds.",
            wide=True,
        )
    ]


def _bytes_picture(history: History) -> list[Picture]:
    lines = completed(history)
    sent = sum(line["sent_bytes"] for line in lines)
    received = sum(line["received_bytes"] for line in lines)
    if not sent + received:
        return []
    return [
        Picture(
            "bytes",
            "Model bytes of each round",
            draw_bytes(history),
            f"Total: {format_bytes(sent)} sent to the sites and {format_bytes(received)} received "
            "from them.",
            f"Total: {format_bytes(sent)} sent, {format_bytes(received)} received, including "
            "dropped replies.",
        )
    ]
