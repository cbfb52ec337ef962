"""The supervisor: which deaths of a run it mends, how often, and with what it starts again."""

from collections.abc import Callable

import pytest

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.supervisor import supervise
from strategies.common.errors import ConfigError, EngineError, QuorumError, RunError


class Launches:
    """A run that ends each time as it is told, and what it was started with."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.outcomes = list(outcomes)
        self.configs: list[RunConfig] = []
        self.told: list[tuple[BaseException, int, float]] = []

    def launch(self, config: RunConfig) -> None:
        self.configs.append(config)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def on_restart(self, error: Exception, number: int, pause_s: float) -> None:
        self.told.append((error, number, pause_s))

    def supervise(self, config: RunConfig, rounds_done: Callable[[], int] = lambda: 0) -> None:
        supervise(config, self.launch, self.on_restart, rounds_done)


CONFIG = read_run_config({"max-restarts": 3, "seed": 7})


def test_a_run_that_ends_well_is_started_once_as_it_is(no_pause: list[float]) -> None:
    run = Launches(None)
    run.supervise(CONFIG)
    assert run.configs == [CONFIG]
    assert (run.told, no_pause) == ([], [])


@pytest.mark.parametrize("death", [EngineError("the SuperLink died"), ZeroDivisionError("odd")])
def test_a_run_that_died_goes_on_after_a_pause(death: Exception, no_pause: list[float]) -> None:
    run = Launches(death, None)
    run.supervise(CONFIG)
    assert run.configs == [CONFIG, CONFIG.model_copy(update={"resume": True})]
    assert run.told == [(death, 1, 1.0)]
    assert no_pause == [1.0]


@pytest.mark.parametrize(
    "reason", [ConfigError("no"), QuorumError("no"), RunError("no"), KeyboardInterrupt()]
)
def test_what_a_restart_cannot_mend_is_raised_at_once(
    reason: BaseException, no_pause: list[float]
) -> None:
    run = Launches(EngineError("the SuperLink died"), reason)
    with pytest.raises(type(reason)) as caught:
        run.supervise(CONFIG)
    assert caught.value is reason
    assert len(run.configs) == 2
    assert no_pause == [1.0]


@pytest.mark.parametrize("max_restarts", [0, 1, 3])
def test_after_so_many_restarts_it_gives_up_with_the_last_reason(
    max_restarts: int, no_pause: list[float]
) -> None:
    deaths = [RuntimeError(f"death {number}") for number in range(max_restarts + 1)]
    run = Launches(*deaths)
    with pytest.raises(EngineError) as caught:
        run.supervise(read_run_config({"max-restarts": max_restarts}))
    assert caught.value.where == "max-restarts"
    assert f"died {max_restarts + 1} times " in str(caught.value)
    assert f"death {max_restarts}" in str(caught.value)
    assert caught.value.__cause__ is deaths[-1]
    assert len(run.configs) == max_restarts + 1
    assert no_pause == [1.0, 2.0, 4.0][:max_restarts]
    assert [told[0] for told in run.told] == deaths[:-1]


def test_restarts_count_anew_once_a_round_is_finished(no_pause: list[float]) -> None:
    run = Launches(*[EngineError("the SuperLink died")] * 9, None)
    run.supervise(CONFIG, lambda: 100 * (len(run.configs) // 3))
    # After every third death a hundred more rounds are done.
    assert [number for _, number, _ in run.told] == [1, 2, 1, 2, 3, 1, 2, 3, 1]
    assert no_pause == [1.0, 2.0, 1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]


def test_a_run_that_gets_no_further_is_given_up_whatever_it_had_done_before(
    no_pause: list[float],
) -> None:
    run = Launches(*[EngineError("the SuperLink died")] * 4)
    with pytest.raises(EngineError, match="died 4 times without finishing a round"):
        run.supervise(CONFIG, lambda: 400)
