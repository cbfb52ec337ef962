"""Means of the sites' metrics, weighted by numbers of examples."""

from collections.abc import Mapping

from strategies.aggregation.averaging import capped
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION, VALIDATION_METRICS

BySite = Mapping[str, Mapping[str, float]]


def mean_metrics(by_site: BySite) -> dict[str, float]:
    """Return the means of the training metrics, weighted by examples, and the sum of examples."""
    trained = {
        site: {name: value for name, value in metrics.items() if name not in VALIDATION_METRICS}
        for site, metrics in by_site.items()
    }
    return _weighted(trained, NUM_EXAMPLES)


def mean_validation(by_site: BySite, max_share: float = 1.0) -> dict[str, float]:
    """Return the same for the validation metrics, over the sites that send them.

    No site has more than ``max_share`` of the sum of the weights; see `capped`.
    """
    validated = {
        site: {name: value for name, value in metrics.items() if name in VALIDATION_METRICS}
        for site, metrics in by_site.items()
        if NUM_VALIDATION in metrics
    }
    return _weighted(validated, NUM_VALIDATION, max_share)


def _weighted(by_site: BySite, weight: str, max_share: float = 1.0) -> dict[str, float]:
    """Return each metric's mean over the sites that send it, and the sum of the counts."""
    means: dict[str, float] = {}
    for name in sorted({name for metrics in by_site.values() for name in metrics} - {weight}):
        sharing = [m for m in by_site.values() if name in m]
        weights = capped([m[weight] for m in sharing], max_share)
        shared = [(w, m[name]) for w, m in zip(weights, sharing, strict=True)]
        means[name] = sum(w * value for w, value in shared) / sum(w for w, _ in shared)
    total = sum(metrics[weight] for metrics in by_site.values())
    return {weight: total, **means} if by_site else {}
