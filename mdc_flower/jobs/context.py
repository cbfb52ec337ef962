"""What a user's job function is told: for which site it builds a job, and by which config."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdc_flower.config import RunConfig
from strategies.common.seeds import derive_seed


@dataclass(frozen=True)
class JobContext:
    """Where a job will run.

    Attributes
    ----------
    config : RunConfig
        The run config. A job may use any of its keys, such as ``batch_size`` and ``seed``.
    site : str
        The site's name; empty at the coordinator.
    data : str
        The site's ``data``; if it has none, or at the coordinator, the run's ``dataset``.
    data_root : str
        The site's ``data-root``, or the run's.
    partition_id, num_partitions : int
        Number of a simulated site, from 0, and how many there are; -1 and 0 at a real site.
    """

    config: RunConfig
    site: str = ""
    data: str = ""
    data_root: str = ""
    partition_id: int = -1
    num_partitions: int = 0

    def rows(self, count: int) -> NDArray[np.int64]:
        """Return which of ``count`` examples belong to this site.

        A real site and the coordinator have all of them. Simulated sites share them: each example
        belongs to one site, chosen at random by the run's seed, and the sites' numbers of examples
        differ by at most 1.
        """
        if self.partition_id < 0:
            return np.arange(count)
        generator = np.random.default_rng(derive_seed(self.config.seed, "partition"))
        return np.sort(generator.permutation(count)[self.partition_id :: self.num_partitions])
