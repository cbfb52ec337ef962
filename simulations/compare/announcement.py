"""What `mdc compare` says before it trains."""

import math
from collections.abc import Iterator, Sequence

from scipy import stats

from mdc_flower.reports.units import format_seconds
from simulations.compare.arm import Arm
from simulations.compare.comparison_file import Comparison
from simulations.compare.estimate import Estimate

ENOUGH_SEEDS = 5
"""Number of seeds from which a 95% interval is about as wide as the seeds are spread."""


def announced(
    comparison: Comparison, arms: Sequence[Arm], estimate: Estimate, workers: int
) -> Iterator[str]:
    """Yield lines about the arms, their candidates, the seeds and the time they will take."""
    for arm in arms:
        named = "" if arm.name == arm.key else f": {arm.name}"
        tried = f", {len(comparison.candidates(arm.key))} candidates" if comparison.tuning else ""
        yield f"  {arm.key}{named}{tried}"
    yield f"reported seeds: {_listed(comparison.seeds)}"
    if comparison.tuning:
        yield f"seeds for choosing candidates: {_listed(comparison.tuning.seeds)}"
    yield timed(estimate, workers)
    if warning := too_few_seeds(comparison.num_seeds):
        yield warning


def timed(estimate: Estimate, workers: int) -> str:
    """Return a line about the time."""
    left = estimate.num_jobs - estimate.num_finished
    if not left:
        return f"{estimate.num_jobs} jobs, all of them finished"
    done = f", {estimate.num_finished} of them finished" if estimate.num_finished else ""
    return (
        f"{estimate.num_jobs} jobs{done}: about {format_seconds(estimate.seconds)} with {workers} "
        f"{'worker' if workers == 1 else 'workers'} ({estimate.basis})"
    )


def too_few_seeds(count: int) -> str:
    """Return a warning about the width of intervals; empty if there are enough seeds."""
    if count >= ENOUGH_SEEDS:
        return ""
    enough = f"{_half_width(ENOUGH_SEEDS):.1f} with {ENOUGH_SEEDS}"
    if count == 1:
        return f"few seeds: 1 gives no interval; {ENOUGH_SEEDS} or more are recommended"
    return (
        f"few seeds: with {count}, the half-width of a 95% interval is {_half_width(count):.1f} "
        f"standard deviations of a seed; {enough}"
    )


def _half_width(count: int) -> float:
    """Return the half-width of Student's 95% interval of a mean, in standard deviations."""
    return float(stats.t.ppf(0.975, count - 1)) / math.sqrt(count)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
