"""Bytes that averaging after every optimizer step would exchange, as a reference."""

import math

from mdc_flower.config import RunConfig
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.models.exchange import exchanged_names
from mdc_flower.models.tensors import tensors_of


def per_step_bytes(config: RunConfig) -> int:
    """Return the model bytes exchanged in both directions if sites average after every step.

    Assumes that the sites share the steps of a pass evenly, that every average transfers all
    exchanged arrays to and from each site, and that training makes ``epoch-budget`` passes.
    """
    task = load_run_task(config)
    model = task.new_model()
    tensors = tensors_of(model)
    model_bytes: int = sum(tensors[name].nbytes for name in exchanged_names(model, config.exchange))
    of_a_pass = task.pooled_job(config.num_sites).steps_per_epoch()
    steps = config.epoch_budget * math.ceil(of_a_pass / config.num_sites)
    return 2 * config.num_sites * model_bytes * steps
