"""The picture of how far averaged adapters are from what the sites' adapters do (LoRA)."""

import numpy as np
from matplotlib.figure import Figure

from mdc_flower.reports.page import Picture
from mdc_flower.reports.plotting import DARK, MIDDLE, LineEnd, finish, label_ends
from mdc_flower.reports.series import History, completed


def gap_pictures(history: History) -> list[Picture]:
    """Return the gaps of the averaged adapters over the rounds; nothing without adapters."""
    known = [
        (line["round"], line["adapter_gaps"])
        for line in completed(history)
        if line["adapter_gaps"] and None not in line["adapter_gaps"].values()
    ]
    if not known:
        return []
    last = known[-1][1]
    worst = max(last, key=lambda layer: last[layer])
    return [
        Picture(
            "adapter-gap",
            "Gap of the averaged adapters",
            _draw([number for number, _ in known], [[*gaps.values()] for _, gaps in known]),
            f"In round {known[-1][0]}: {np.mean([*last.values()]):.3g} as the mean of {len(last)} "
            f"layers, at most {last[worst]:.3g}, in {worst}.",
            "A and B of an adapter are averaged apart: norm of mean(B A) - mean(B) mean(A), "
            "divided by that of mean(B A). 0 if all sites have the same A.",
        )
    ]


def _draw(rounds: list[int], gaps: list[list[float]]) -> Figure:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    ends = []
    for name, values, color in (
        ("largest", [max(of) for of in gaps], MIDDLE),
        ("mean of the layers", [float(np.mean(of)) for of in gaps], DARK),
    ):
        axes.plot(rounds, values, color=color, marker="o", markersize=4)
        ends.append(LineEnd(rounds[-1], values[-1], name, color))
    axes.set(xlabel="round", ylabel="gap", ylim=(0, 1.1 * max(map(max, gaps)) or 1))
    label_ends(axes, ends)
    finish(axes)
    return figure
