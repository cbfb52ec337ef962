"""Simulated sites must see the coordinator's data: otherwise test examples are trained on."""

from strategies.common.errors import DataError
from strategies.exchange.membership import Membership


def check_same_data(membership: Membership, own: str) -> None:
    """Refuse a run whose simulated sites see other data than the coordinator.

    Parameters
    ----------
    membership
        The sites with their cards.
    own
        Digest of the coordinator's data; empty if it is not known.

    Raises
    ------
    DataError
        Naming the sites.
    """
    others = sorted(
        card.name
        for card in membership.cards.values()
        if card.simulated and own and card.data_sha256 not in ("", own)
    )
    if others:
        raise DataError(
            "simulated sites see other data than the coordinator",
            where="dataset",
            got=", ".join(others),
            expected="the same data in every process",
            hint="A function that draws a split at random needs a fixed seed, such as "
            "train_test_split(..., random_state=0)",
        )
