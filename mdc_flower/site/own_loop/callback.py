"""What the callbacks for trainers have in common."""

from mdc_flower.site.own_loop.round import Round


class RoundRates:
    """Notes the learning rates of a round.

    Parameters
    ----------
    round : Round
        The round to train.

    Attributes
    ----------
    rates : list of float
        The rate of each step so far, of the first parameter group.
    """

    def __init__(self, round: Round) -> None:
        self.round = round
        self.rates: list[float] = []
        round.rates = self.rates
