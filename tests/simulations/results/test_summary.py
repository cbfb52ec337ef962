"""The summary of several comparisons."""

import pytest

from simulations.results.outcome import Outcome
from simulations.results.result_files import Results
from simulations.results.summary import summary_table, summary_tables
from strategies.common.errors import DataError
from tests.simulations.made_up import ERRORS, MEGABYTE, error_point, outcome, results

ARMS = ("co-learning", "centralized")
EXCHANGED = {"exchanges": 4, "sent_bytes": MEGABYTE, "received_bytes": 3 * MEGABYTE}


def test_a_summary_is_of_one_metric() -> None:
    made = {key: {1: Outcome([error_point(2, 3.0)])} for key in ARMS}
    regression = results(made, metrics=ERRORS)
    text = summary_table([regression])
    assert "centralized" in text
    assert "| minus centralized |" in text
    assert text.splitlines()[-1] == (
        "Test rmse in m (lower is better); differences are co-learning minus the other arm, in m, "
        "below 0 is better; one seed, so no intervals."
    )
    shares = of_arms(*ARMS)
    with pytest.raises(DataError, match="do not have the same metric") as caught:
        summary_table([regression, shares])
    assert caught.value.got == "rmse, m, accuracy, %"
    assert summary_tables([regression, shares, regression]) == "\n".join(
        [summary_table([regression, regression]), summary_table([shares])]
    )


def of_arms(*keys: str, seeds: tuple[int, ...] = (1, 2)) -> Results:
    """Return results in which centralized reaches 0.75, co-learning 0.5, FedAvg 0.25 always."""
    reached = {"fedavg": 0.25, "co-learning": 0.5, "annealed-co-learning": 0.6, "centralized": 0.75}
    return results(
        {key: {seed: outcome((2, reached[key]), **EXCHANGED) for seed in seeds} for key in keys}
    )


def test_a_summarys_yardstick_is_centralized_wherever_it_stands() -> None:
    head, _, line, *_ = summary_table([of_arms("fedavg", "co-learning", "centralized")]).split("\n")
    assert head == (
        "| data | seeds | centralized | co-learning | minus centralized | minus fedavg | exchanges "
        "| share of per-step bytes, % |"
    )
    # -0.25 and +0.25, with each seed: above 0, co-learning is better.
    assert line == (
        "| title | 2 | 75.00 ± 0.00 | 50.00 ± 0.00 | -25.00 ± 0.00 | +25.00 ± 0.00 | 4 | 0.40 |"
    )


def test_the_arm_under_study_is_the_first_that_all_have() -> None:
    both = of_arms("centralized", "co-learning", "annealed-co-learning")
    heads = [summary_table(each).split(" | ")[3] for each in ([both], [both, of_arms(*ARMS)])]
    assert heads == ["annealed-co-learning", "co-learning"]


@pytest.mark.parametrize("arms", [("fedavg",), ("other", "fedavg")])
def test_a_summary_of_comparisons_with_less_than_two_arms_in_common_is_refused(
    arms: tuple[str, ...],
) -> None:
    less = results({arm: {1: outcome((2, 0.5))} for arm in arms}, name="less")
    with pytest.raises(DataError, match="needs two arms that all comparisons have") as caught:
        summary_table([of_arms("fedavg", "co-learning"), less])
    assert (caught.value.where, caught.value.got) == ("title, less", "fedavg")


def test_a_summary_speaks_of_intervals_only_where_there_are_any() -> None:
    many, one = of_arms(*ARMS), of_arms(*ARMS, seeds=(1,))
    notes = [summary_table(each).splitlines()[-1] for each in ([one], [many], [many, one])]
    assert notes[0] == (
        "Test accuracy in percent; differences are co-learning minus the other arm, in points; one "
        "seed, so no intervals."
    )
    assert notes[1].endswith("minus the other arm, in points, paired by seed.")
    assert notes[2].endswith("paired by seed; no interval for a single seed.")
    assert "±" not in summary_table([one])
