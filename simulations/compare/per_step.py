"""What the simplest way to train one model at many sites would exchange: an average a step."""

from mdc_flower.config import RunConfig
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.batches import steps_per_epoch
from mdc_flower.training.task import load_task


def per_step_bytes(config: RunConfig) -> int:
    """Return the model bytes, both ways, of all sites that average after each optimizer step.

    The sites share the examples of a pass evenly, a batch each a step, and every average moves the
    whole model to and from each of them, for the passes of ``epoch-budget``.
    """
    task = load_task(config)
    num_examples = len(task.coordinator_data(config.num_sites).pooled)
    model_bytes: int = sum(tensor.nbytes for tensor in tensors_of(task.new_model()).values())
    steps = config.epoch_budget * steps_per_epoch(
        num_examples, config.batch_size * config.num_sites
    )
    return 2 * config.num_sites * model_bytes * steps
