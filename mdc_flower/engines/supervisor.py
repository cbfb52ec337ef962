"""Start a run again from its checkpoint when what carries it dies, a bounded number of times.

What counts are the deaths since a round was last finished: a run of weeks may see many, and only
one that gets no further is hopeless.
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
    """Launch a run; when it dies, wait and launch it again to go on where it was.

    Parameters
    ----------
    config
        The run config; ``max-restarts`` bounds the restarts in one round.
    launch
        Runs a config to its end; raises if the run does not finish.
    on_restart
        Told before each restart: what happened, which restart in this round it is, the pause in
        seconds.
    rounds_done
        Returns how many rounds the run has finished.

    Raises
    ------
    EngineError
        If the run died once more than it may be restarted, without finishing a round.
    MdcError
        If the run ended for a reason that a restart cannot mend.
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
