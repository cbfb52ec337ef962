"""Pool the BatchNorm statistics of several sites into statistics of all their data.

A layer has a mean and a variance for each channel. Averaging variances is wrong if the sites' means
differ: the variance of a mixture is the mean of the variances plus the variance of the means.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.averaging import Floats, Update, Weighting, weighted_mean

Layers = Mapping[str, str]
"""Maps the name of each layer's mean to the name of its variance."""


def pooled_statistics(
    updates: Sequence[Update], weighting: Weighting, layers: Layers
) -> dict[str, NDArray[np.generic]]:
    """Pool the sites' statistics by the law of total variance, in the given order.

    With weights ``p_i`` that sum to one, ``m = sum p_i m_i`` and
    ``v = sum p_i (v_i + (m_i - m)^2)``. This equals ``sum p_i (v_i + m_i^2) - m^2`` but avoids
    cancellation: it is never below 0, and a single site, or equal sites, give the site's statistics
    bit for bit. Computed in float64; each array is returned in its own dtype.

    Parameters
    ----------
    updates
        The sites' statistics, in site order; at least one.
    weighting
        Weight of each site.
    layers
        Names of means and variances.
    """
    weights = np.array([weighting(update) for update in updates], np.float64)

    def variance_of_means(mean_name: str) -> NDArray[np.float64]:
        means = np.stack([update.arrays[mean_name].astype(np.float64) for update in updates])
        # Relative to the first site's mean, so that equal means have exactly zero variance.
        apart = means - means[0]
        centre = np.average(apart, axis=0, weights=weights)
        return np.asarray(np.average(np.square(apart - centre), axis=0, weights=weights))

    between = {variance: variance_of_means(mean) for mean, variance in layers.items()}

    def add_between(name: str, block: slice, mean: Floats) -> Floats:
        return mean + between[name].reshape(-1)[block] if name in between else mean

    names = [name for pair in layers.items() for name in pair]
    return weighted_mean(
        updates,
        weighting,
        names,
        add_between,
    )
