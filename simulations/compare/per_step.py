"""Bytes that averaging after every optimizer step would exchange, as a reference."""

from mdc_flower.config import RunConfig
from mdc_flower.jobs.task import load_task
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.batches import steps_per_epoch


def per_step_bytes(config: RunConfig) -> int:
    """Return the model bytes exchanged in both directions if sites average after every step.

    Assumes that the sites share the examples of a pass evenly, with one batch per site and step,
    that every average transfers the whole model to and from each site, and that training makes
    ``epoch-budget`` passes.
    """
    task = load_task(config)
    num_examples = len(task.coordinator_data(config.num_sites).pooled)
    model_bytes: int = sum(tensor.nbytes for tensor in tensors_of(task.new_model()).values())
    steps = config.epoch_budget * steps_per_epoch(
        num_examples, config.batch_size * config.num_sites
    )
    return 2 * config.num_sites * model_bytes * steps
