"""Many updates to one model, in site order, one array in memory at a time.

The sign convention of the whole project: an update's ``delta = local - global``. Averaging
models and averaging deltas are the same thing when the weights sum to one; this module
averages models.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Update:
    """One site's accepted contribution to a round.

    Attributes
    ----------
    site : str
        The site's name.
    num_examples : int
        Training examples the site holds, > 0.
    arrays : Arrays
        The site's model after its local training, by parameter or buffer name.
    metrics : Mapping[str, float]
        What the site reported about its training.
    pace : float
        Seconds from the sending of the model to the reply's arrival, for a unit of local work;
        0 where that was not measured.
    sent_bytes, received_bytes : int
        Model bytes to and from the site in this round until its reply was accepted; 0 where an
        earlier version did not write them down.
    """

    site: str
    num_examples: int
    arrays: Arrays
    metrics: Mapping[str, float]
    pace: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0


Weighting = Callable[[Update], float]


def by_examples(update: Update) -> float:
    """Weigh a site by the number of its training examples (FedAvg)."""
    return float(update.num_examples)


def uniform(update: Update) -> float:
    """Weigh every site the same."""
    return 1.0


WEIGHTINGS: dict[str, Weighting] = {"examples": by_examples, "uniform": uniform}


def capped(weights: Sequence[float], max_share: float) -> list[float]:
    """Return weights of which none is more than a share of their sum.

    The heaviest are lowered to that share of what the sum is then, and no other is changed. Too few
    to keep to it weigh all the same.

    Parameters
    ----------
    weights
        All above 0.
    max_share
        In (0, 1]; 1 changes nothing.
    """
    if max_share >= 1.0:
        return list(weights)
    if len(weights) * max_share <= 1.0:
        return [1.0] * len(weights)
    heaviest_first, cap = sorted(weights, reverse=True), 0.0
    for lowered, weight in enumerate(heaviest_first):
        # Summed anew: what is left of a sum from which a huge weight is taken may be nothing.
        rest = math.fsum(heaviest_first[lowered:])
        cap = max_share * rest / (1.0 - lowered * max_share)
        if weight <= cap or (lowered + 1) * max_share >= 1.0:
            break
    return [min(weight, cap) for weight in weights]


def bounded(weighting: Weighting, updates: Sequence[Update], max_share: float) -> Weighting:
    """Return a weighting of these updates in which none has more than a share; see `capped`."""
    weights = capped([weighting(update) for update in updates], max_share)
    of_site = {update.site: weight for update, weight in zip(updates, weights, strict=True)}
    return lambda update: of_site[update.site]


def in_site_order(updates: Iterable[Update]) -> list[Update]:
    """Return the updates sorted by site name: the one order in which they are ever folded."""
    return sorted(updates, key=lambda update: update.site)


def weighted_mean(
    updates: Sequence[Update],
    weighting: Weighting,
    names: Iterable[str] | None = None,
    then: Callable[[str, NDArray[np.float64]], NDArray[np.float64]] = lambda name, mean: mean,
) -> dict[str, NDArray[np.generic]]:
    """Fold updates into their weighted mean, one array of one update in memory at a time.

    The mean is carried along, ``mean += (array - mean) * weight / total``, so that equal
    updates, or a single one, give that very model to the bit. Floating-point addition is not
    associative: the result depends on the order of ``updates``, and callers pass them in site
    order. Float arrays, BatchNorm's running statistics among them, are accumulated in float64
    and returned in their own dtype. Integer and boolean arrays (counters such as
    ``num_batches_tracked``) have no meaningful mean: they are taken from the first update. So are
    arrays that are not finite there, which are constants, such as masks of ``-inf``: no other ones
    get through the reply gate.

    Parameters
    ----------
    updates
        All with the same arrays.
    weighting
        Weight of each.
    names
        The arrays to average, in the order of the result; all of the first update's by default.
    then
        Called with the name and the mean of each float array before that gets its own dtype;
        returns what takes its place.

    Raises
    ------
    ValueError
        If there is no update, or if the weights sum to zero.
    """
    if not updates:
        raise ValueError("no update to average")
    weights = [weighting(update) for update in updates]
    total = sum(weights)
    if total <= 0.0:
        raise ValueError(f"the weights of the updates sum to {total}, not to more than 0")
    order = updates[0].arrays if names is None else names
    return {name: _mean(name, updates, weights, then) for name in order}


def _mean(
    name: str,
    updates: Sequence[Update],
    weights: Sequence[float],
    then: Callable[[str, NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.generic]:
    first = updates[0].arrays[name]
    if not np.issubdtype(first.dtype, np.floating) or not np.isfinite(first).all():
        return first.copy()
    counted = [pair for pair in zip(updates, weights, strict=True) if pair[1] > 0.0]
    update, total = counted[0]
    mean = update.arrays[name].astype(np.float64)
    for update, weight in counted[1:]:
        total += weight
        mean += (update.arrays[name].astype(np.float64) - mean) * (weight / total)
    # What overflows is infinite then, and is found by whoever judges the result.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(then(name, mean), dtype=first.dtype)
