"""The node config of a site's SuperNode, from its kit."""

from typing import Any

from mdc_flower.deployment.kits.kits import KIT, SiteKit

ROUND = "round"
"""The folder in ``state`` for the files of the current round."""


def node_config(kit: SiteKit, num_examples: int = 0) -> dict[str, Any]:
    """Return the node config for a kit's SuperNode.

    ``num_examples`` is the number of training examples in its data set; 0 if they were not
    counted.
    """
    config = {
        "site": kit.site,
        "command": kit.command,
        "command-folder": str(kit.folder) if kit.command else "",
        "data": kit.data,
        "data-root": kit.data_root,
        "vocabulary": kit.vocabulary_path,
        "input-column": kit.input_column,
        "label-column": kit.label_column,
        "group-column": kit.group_column,
        "hf-subset": kit.hf_subset,
        "hf-test-split": kit.hf_test_split,
        "device": kit.device,
        "threads": kit.threads,
        "micro-batch-size": kit.micro_batch_size,
        "contract": str(kit.folder / KIT) if kit.contract else "",
        "job": kit.job,
        "min-examples": kit.min_examples,
        "max-examples": kit.max_examples,
        "num-examples": num_examples,
        "metrics": ",".join(kit.metrics),
        "modules": ",".join(kit.modules),
        "state": str(kit.state / ROUND),
        **kit.launch.to_flower(),
    }
    if kit.partition_id >= 0:
        config |= {"partition-id": kit.partition_id, "num-partitions": kit.num_partitions}
    return config
