"""The site as a user's script sees it: where its rounds come from."""

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from mdc_flower.site.own_loop import ranks
from mdc_flower.site.own_loop.protocol import EVALUATE, FIRST_ROUND
from mdc_flower.site.own_loop.round import Metrics, Round
from strategies.common.errors import ConfigError, MdcError

Evaluation = tuple[int, Metrics]
"""The number of validation examples, and the metrics on them."""

Evaluate = Callable[[Round], Evaluation]
"""Evaluates the model of a round."""

WAIT_S = 60.0
"""Ranks that wait for a round hear from rank 0 this often, in seconds."""


class Site:
    """The site that runs this script; a context manager.

    Parameters
    ----------
    evaluate : callable or None
        Gets a round, which it loads a model from; returns the number of validation examples, and
        the metrics on them. It is called when the coordinator asks for an evaluation. Without it,
        the site evaluates nothing.

    Raises
    ------
    ConfigError
        If no site has started this script.
    """

    def __init__(self, evaluate: Evaluate | None = None) -> None:
        if FIRST_ROUND not in os.environ:
            raise ConfigError(
                "no site has started this script",
                where="mdc_flower.site()",
                hint="Name the script in `command` of the site's kit.toml, and run "
                "`mdc site start KIT`",
            )
        self._evaluate = evaluate
        # The site writes lines to the standard input, which nothing else may read from now on:
        # neither a worker of a DataLoader nor a program that the script starts.
        self._input = os.dup(0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._read = b""

    def __enter__(self) -> "Site":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take no more rounds."""
        os.close(self._input)

    def rounds(self) -> Iterator[Round]:
        """Yield the rounds to train, at every rank, until the site needs this script no more.

        Raises
        ------
        MdcError
            If a round is not sent before the next one is asked for.
        """
        while (folder := self._next()) is not None:
            round = Round(Path(folder))
            if round.kind == EVALUATE:
                examples, metrics = self._evaluate(round) if self._evaluate else (0, {})
                round.report(examples, metrics)
                continue
            yield round
            if not round.is_sent:
                raise MdcError(
                    "the round ended without a model",
                    where=f"round {round.number}",
                    hint="Call round.send(...) before the next round",
                )

    def _next(self) -> str | None:
        """Return the next round's folder; None if there is none."""
        while True:
            # Short waits, because a broadcast that takes hours would be given up.
            line = ranks.from_rank_0(self._line() if ranks.rank() == 0 else None)
            if line is not None:
                return line.strip() or None

    def _line(self) -> str | None:
        """Return a line with its end, "" at the end of the input, None after `WAIT_S` seconds."""
        while b"\n" not in self._read:
            if not select.select([self._input], [], [], WAIT_S)[0]:
                return None
            if not (more := os.read(self._input, 4096)):
                return ""
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return os.fsdecode(line) + "\n"
