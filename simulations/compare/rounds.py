"""The rounds of an averaging arm as far as its config determines them."""

from collections.abc import Iterator

from mdc_flower.config import RunConfig
from strategies.method.local_work import WorkState, count_round


def certain_rounds(config: RunConfig) -> Iterator[WorkState]:
    """Yield the state before each round of a run in which the global model never settles.

    Only ILE depends on that, and it makes longer rounds once the model has settled: a real run
    then does at least as much work in as many rounds. For other rules the rounds are exact.
    """
    recipe = config.recipe()
    state = recipe.controller.start()
    while not recipe.horizon.finished(state):
        yield state
        state = recipe.controller.after_round(count_round(state, recipe.length(state)), None)


def certain_work(config: RunConfig) -> int:
    """Return the units of work that a run does in any case before it ends."""
    length = config.recipe().length
    return sum(length(state) for state in certain_rounds(config))
