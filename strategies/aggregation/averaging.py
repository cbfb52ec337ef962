"""Average updates into one model, in site order and block by block.

Sign convention of the whole project: the delta of an update is ``delta = local - global``. If the
weights sum to one, averaging models and averaging deltas are equivalent; this module averages
models.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.common.blocks import all_finite, blocks

Arrays = Mapping[str, NDArray[np.generic]]
Floats = NDArray[np.float64]

Then = Callable[[str, slice, Floats], Floats]
"""Takes the name of an array, a block of it and the mean of that block; see `weighted_mean`."""


@dataclass(frozen=True)
class Update:
    """One site's accepted contribution to a round.

    Attributes
    ----------
    site : str
        The site's name.
    num_examples : int
        Training examples at the site, > 0.
    arrays : Arrays
        The site's model after local training, by parameter or buffer name.
    metrics : Mapping[str, float | list of float]
        Metrics as the site has sent them: values, or sums; see `strategies.exchange.metrics`.
    pace : float
        Seconds from sending the model to receiving the reply, per unit of local work; 0 if not
        measured.
    sent_bytes, received_bytes : int
        Model bytes sent to and received from the site in this round until its reply was accepted;
        0 in updates stored by an earlier version.
    began_anew : bool
        Whether the site had lost its state of an earlier round and began this one without it.
    """

    site: str
    num_examples: int
    arrays: Arrays
    metrics: Mapping[str, float | list[float]]
    pace: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    began_anew: bool = False


Weighting = Callable[[Update], float]


def by_examples(update: Update) -> float:
    """Weight a site by its number of training examples (FedAvg)."""
    return float(update.num_examples)


def uniform(update: Update) -> float:
    """Weight every site equally."""
    return 1.0


WEIGHTINGS: dict[str, Weighting] = {"examples": by_examples, "uniform": uniform}


def capped(weights: Sequence[float], max_share: float) -> list[float]:
    """Return weights capped so that none is more than ``max_share`` of their sum.

    The largest weights are lowered to that share of the new sum; the others do not change. If there
    are too few weights to satisfy the cap, all weights are equal.

    Parameters
    ----------
    weights
        Weights, all above 0.
    max_share
        Largest share, in (0, 1]; 1 changes nothing.
    """
    if max_share >= 1.0:
        return list(weights)
    if len(weights) * max_share <= 1.0:
        return [1.0] * len(weights)
    heaviest_first, cap = sorted(weights, reverse=True), 0.0
    for lowered, weight in enumerate(heaviest_first):
        # Sum again: subtracting a huge weight from a running sum would lose the small ones.
        rest = math.fsum(heaviest_first[lowered:])
        cap = max_share * rest / (1.0 - lowered * max_share)
        if weight <= cap or (lowered + 1) * max_share >= 1.0:
            break
    return [min(weight, cap) for weight in weights]


def bounded(weighting: Weighting, updates: Sequence[Update], max_share: float) -> Weighting:
    """Return a weighting for these updates with every share capped; see `capped`."""
    weights = capped([weighting(update) for update in updates], max_share)
    of_site = {update.site: weight for update, weight in zip(updates, weights, strict=True)}
    return lambda update: of_site[update.site]


def in_site_order(updates: Iterable[Update]) -> list[Update]:
    """Return the updates sorted by site name, the order in which they are always averaged."""
    return sorted(updates, key=lambda update: update.site)


def weighted_mean(
    updates: Sequence[Update],
    weighting: Weighting,
    names: Iterable[str] | None = None,
    then: Then = lambda name, block, mean: mean,
) -> dict[str, NDArray[np.generic]]:
    """Return the weighted mean of updates; besides the result, blocks of arrays are in memory.

    The running mean ``mean += (array - mean) * weight / total`` reproduces a single update, or
    equal updates, bit for bit. Floating-point addition is not associative, so the result depends on
    the order of ``updates``; callers pass them in site order.

    Float arrays, including BatchNorm's running statistics, are accumulated in float64 and returned
    in their own dtype. Integer and boolean arrays (counters such as ``num_batches_tracked``) have
    no meaningful mean and are copied from the first update. So are arrays with values that are not
    finite: the gate accepts these only as constants, such as masks of ``-inf``.

    Parameters
    ----------
    updates
        Updates with the same arrays.
    weighting
        Returns the weight of an update.
    names
        The arrays to average, in the order of the result; by default all arrays of the first
        update.
    then
        Called with the name of each float array, a block of it, and the float64 mean of that block,
        before conversion to the array's dtype; returns the values to use instead.

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
        raise ValueError(f"the weights of the updates sum to {total}, expected a sum above 0")
    order = updates[0].arrays if names is None else names
    return {name: _mean(name, updates, weights, then) for name in order}


def _mean(
    name: str, updates: Sequence[Update], weights: Sequence[float], then: Then
) -> NDArray[np.generic]:
    first = updates[0].arrays[name]
    if not np.issubdtype(first.dtype, np.floating) or not all_finite(first):
        return first.copy()
    counted = [pair for pair in zip(updates, weights, strict=True) if pair[1] > 0.0]
    result = np.empty(first.shape, first.dtype)
    flat = result.reshape(-1)
    # Overflow gives infinity; the caller checks the result.
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks(flat.size):
            flat[block] = then(name, block, _mean_of_block(name, block, counted))
    return result


def _mean_of_block(name: str, block: slice, counted: Sequence[tuple[Update, float]]) -> Floats:
    update, total = counted[0]
    mean = update.arrays[name].reshape(-1)[block].astype(np.float64)
    step = np.empty_like(mean)
    for update, weight in counted[1:]:
        total += weight
        np.subtract(update.arrays[name].reshape(-1)[block], mean, out=step)
        step *= weight / total
        mean += step
    return mean
