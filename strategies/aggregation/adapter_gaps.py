"""How far the mean of adapters is from the mean of what they do.

An adapter adds the product B A of two small matrices to a layer (LoRA). Sites send A and B, which
are averaged apart, and mean(B) mean(A) is not mean(B A). The difference is the covariance of B and
A over the sites: it is zero if all have the same A, or the same B.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.averaging import Update, Weighting

Matrix = NDArray[np.float64]

_A = re.compile(r"\blora(_embedding)?_A\b")


def pairs_of(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the names of A and B of each layer, by the name of the layer.

    They are recognized by the names that peft gives them: ``LAYER.lora_A.default.weight`` and the
    same with ``lora_B``; for embeddings ``lora_embedding_A`` and ``lora_embedding_B``.
    """
    pairs = {}
    for name in sorted(names):
        partner = _A.sub(r"lora\1_B", name)
        if partner != name and partner in names:
            layer = _A.sub("", name).replace("..", ".").removesuffix(".weight").strip(".")
            pairs[layer.removesuffix(".default") or name] = name, partner
    return pairs


def adapter_gaps(updates: Sequence[Update], weighting: Weighting) -> dict[str, float]:
    """Return the gap of each layer with an adapter; empty if there is none.

    Only one layer's matrices are in memory at a time, and no product of the layer's size.

    Parameters
    ----------
    updates
        Updates with the same arrays: A of shape (rank, inputs, ...), B (outputs, rank, ...).
    weighting
        Returns the weight of an update.

    Returns
    -------
    dict
        ``||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||`` by the name of the layer; Frobenius
        norms, in float64. 0 if the products are all zero.
    """
    if not updates:
        return {}
    weights = [weighting(update) for update in updates]
    sites = [update.arrays for update in updates]
    return {
        layer: _gap(sites, a, b, weights)
        for layer, (a, b) in pairs_of(list(sites[0])).items()
        if _fit(sites[0][a].shape, sites[0][b].shape)
    }


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Return whether matrices of these shapes are multiplied as B A."""
    return len(a) > 1 and len(b) > 1 and a[0] == b[1] and all(size == 1 for size in b[2:])


def _gap(
    sites: Sequence[Mapping[str, NDArray[np.generic]]], a: str, b: str, weights: Sequence[float]
) -> float:
    rights = [_rows(arrays[a]) for arrays in sites]
    rank = len(rights[0])
    lefts = [_rows(arrays[b]).reshape(-1, rank) for arrays in sites]
    right, left = _mean(rights, weights), _mean(lefts, weights)
    apart = _norm([one - left for one in lefts], [one - right for one in rights], weights)
    whole = _norm(lefts, rights, weights)
    return apart / whole if apart else 0.0


def _rows(array: NDArray[np.generic]) -> Matrix:
    return array.reshape(len(array), -1).astype(np.float64)


def _mean(matrices: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    """Return the weighted mean; of equal matrices exactly their value."""
    mean, total = matrices[0].copy(), weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total += weight
        if total:
            mean += (matrix - mean) * (weight / total)
    return mean


def _norm(lefts: Sequence[Matrix], rights: Sequence[Matrix], weights: Sequence[float]) -> float:
    """Return the norm of the weighted mean of the products, without computing a product."""
    total = sum(weights)
    scaled = [left * (weight / total) for left, weight in zip(lefts, weights, strict=True)]
    # A matrix has the norm of its R in the QR decomposition, whose size is that of the ranks.
    tall, wide = _triangle(np.hstack(scaled)), _triangle(np.vstack(rights).T)
    return float(np.linalg.norm(tall @ wide.T))


def _triangle(matrix: Matrix) -> Matrix:
    """Return R of the QR decomposition."""
    return cast("Matrix", np.linalg.qr(matrix, mode="r"))
