"""How far the mean of the adapters is from the mean of what they do: python gap.py RUN-DIRECTORY.

A layer's adapters A and B add B A to its weights. The coordinator averages A and B apart, so it
gets mean(B) mean(A), not mean(B A). This script computes the difference from the sites' updates of
a run with `keep-updates = true`, as a share of mean(B A), for each layer and round.
"""

import sys
from pathlib import Path

import numpy as np

from strategies.storage.model_files import read_model

A, B = ".lora_A.", ".lora_B."


def gaps(updates, weights):
    """Return the gap of each layer.

    Parameters
    ----------
    updates : list of dict
        The sites' arrays by name, with A (rank, inputs) and B (outputs, rank).
    weights : list of float
        The weights of the sites in the mean.

    Returns
    -------
    dict
        ||mean(B A) - mean(B) mean(A)|| / ||mean(B A)|| by the name of the layer; Frobenius norms.
    """
    found = {}
    for name in sorted(updates[0]):
        if A in name:
            of_a = [update[name].astype(np.float64) for update in updates]
            of_b = [update[name.replace(A, B)].astype(np.float64) for update in updates]
            products = [b @ a for b, a in zip(of_b, of_a, strict=True)]
            mean = np.average(products, axis=0, weights=weights)
            apart = np.average(of_b, axis=0, weights=weights) @ np.average(
                of_a, axis=0, weights=weights
            )
            found[name.split(A)[0]] = float(np.linalg.norm(mean - apart) / np.linalg.norm(mean))
    return found


def gaps_of_round(folder):
    """Return the gap of each layer in a round, from the folder of its updates."""
    stored = [read_model(path) for path in sorted(folder.glob("*.safetensors"))]
    return gaps([arrays for arrays, _ in stored], [about["num-examples"] for _, about in stored])


if __name__ == "__main__":
    for folder in sorted((Path(sys.argv[1]) / "updates").iterdir()):
        for layer, gap in gaps_of_round(folder).items():
            print(f"{folder.name} {layer} {gap:.4f}")
