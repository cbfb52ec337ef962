"""Start a run again from its checkpoint when what carries it dies, a bounded number of times."""

import time
from collections.abc import Callable

from mdc_flower.config import RunConfig
from strategies.errors import EngineError, MdcError

FIRST_PAUSE_S = 1.0
"""Pause before the first restart, in seconds; it doubles each time."""


def supervise(
    config: RunConfig,
    launch: Callable[[RunConfig], None],
    on_restart: Callable[[Exception, int, float], None],
) -> None:
    """Launch a run; when it dies, wait and launch it again to go on where it was.

    Parameters
    ----------
    config
        The run config; ``max-restarts`` bounds the restarts.
    launch
        Runs a config to its end; raises if the run does not finish.
    on_restart
        Told before each restart: what happened, which restart this is, the pause in seconds.

    Raises
    ------
    EngineError
        If the run died once more than it may be restarted.
    MdcError
        If the run ended for a reason that a restart cannot mend.
    """
    restarts = 0
    while True:
        try:
            launch(config)
            return
        except Exception as error:
            if isinstance(error, MdcError) and not isinstance(error, EngineError):
                raise
            if restarts == config.max_restarts:
                raise EngineError(
                    f"the run died {restarts + 1} times: {error}",
                    where="max-restarts",
                    got=config.max_restarts,
                ) from error
            restarts += 1
            pause_s = FIRST_PAUSE_S * 2 ** (restarts - 1)
            on_restart(error, restarts, pause_s)
            time.sleep(pause_s)
            config = config.model_copy(update={"resume": True})
