"""Bytes that averaging after every optimizer step would exchange, as a reference."""

from mdc_flower.config import RunConfig
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.models.exchange import exchanged_names
from mdc_flower.models.tensors import tensors_of


def per_step_bytes(config: RunConfig) -> int:
    """Return the model bytes exchanged in both directions if sites average after every step.

    Assumes that the sites share the steps of a pass evenly, and that training uses the whole
    budget.
    """
    if config.unit == "steps":
        steps = config.budget
    else:
        of_a_pass = load_run_task(config).pooled_job(config.num_sites).steps_per_epoch()
        steps = config.epoch_budget * -(-of_a_pass // config.num_sites)
    return bytes_of_an_average(config) * steps


def bytes_of_an_average(config: RunConfig) -> int:
    """Return the model bytes of one average: all exchanged arrays to and from each site."""
    model = load_run_task(config).new_model()
    tensors = tensors_of(model)
    model_bytes: int = sum(tensors[name].nbytes for name in exchanged_names(model, config.exchange))
    return 2 * config.num_sites * model_bytes
