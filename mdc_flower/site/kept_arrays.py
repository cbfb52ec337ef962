"""`KeptArrays`: the arrays of the model that stay at the site, from round to round."""

from collections.abc import Sequence

from torch import nn

from mdc_flower.site.state import KEPT, NamedState, SiteState, missing
from mdc_flower.training.arrays import load_arrays
from strategies.aggregation.averaging import Arrays


class KeptArrays:
    """Loads a site's own arrays into a model, and writes them after a round.

    Parameters
    ----------
    state : NamedState
        The state that the message names.
    """

    def __init__(self, state: NamedState) -> None:
        self._state = state

    def load(self, model: nn.Module, names: Sequence[str]) -> None:
        """Overwrite the site's own arrays in a new model, unless the site begins anew.

        Raises
        ------
        StateMissingError
            If they are not here, or do not fit the model.
        """
        if self._state.begins_anew:
            return
        stored = self._state.read(KEPT)
        try:
            load_arrays(model, stored, names)
        except Exception as error:  # whatever is in the file, the site must not fail for good
            raise missing(f"it cannot be restored: {type(error).__name__}: {error}") from error

    def save(self, arrays: Arrays) -> None:
        """Write the arrays after a round; nothing after an evaluation."""
        if isinstance(self._state, SiteState):
            self._state.write(KEPT, arrays, {})
