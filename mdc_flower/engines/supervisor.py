"""Restart a run from its checkpoint when its engine dies, a limited number of times.

The limit counts only the deaths since the last finished round: a run of weeks may die often, but
only a run that makes no progress is given up.
"""

import time
from collections.abc import Callable

from mdc_flower.config import RunConfig
from strategies.common.errors import EngineError, MdcError

FIRST_PAUSE_S = 1.0
"""Pause before the first restart, in seconds; it doubles each time."""


def supervise(
    config: RunConfig,
    launch: Callable[[RunConfig], None],
    on_restart: Callable[[Exception, int, float], None],
    rounds_done: Callable[[], int] = lambda: 0,
) -> None:
    """Launch a run; when it dies, wait, then resume it.

    Parameters
    ----------
    config
        The run config; ``max-restarts`` limits the restarts within one round.
    launch
        Runs a config to its end; raises if the run does not finish.
    on_restart
        Called before each restart with the error, the number of the restart in this round, and
        the pause in seconds.
    rounds_done
        Returns how many rounds the run has finished.

    Raises
    ------
    EngineError
        If the run died more than ``max-restarts`` times without finishing a round.
    MdcError
        If the run ended for a reason that a restart cannot fix.
    """
    restarts, done = 0, rounds_done()
    while True:
        try:
            launch(config)
            return
        except Exception as error:
            if isinstance(error, MdcError) and not isinstance(error, EngineError):
                raise
            before, done = done, rounds_done()
            if done > before:
                restarts = 0
            if restarts == config.max_restarts:
                raise EngineError(
                    f"the run died {restarts + 1} times without finishing a round: {error}",
                    where="max-restarts",
                    got=config.max_restarts,
                ) from error
            restarts += 1
            pause_s = FIRST_PAUSE_S * 2 ** (restarts - 1)
            on_restart(error, restarts, pause_s)
            time.sleep(pause_s)
            config = config.model_copy(update={"resume": True})
