"""What coordinator and sites must agree on about a job: names with values, compared by each site.

The coordinator's signature is in each message with a model, also that of an evaluation. A site with
another one refuses it before it trains, so it costs no training.
"""

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from strategies.common.errors import ConfigError
from strategies.exchange.records import records_of

SIGNATURE = "signature"


def with_signature(content: RecordDict, signature: Mapping[str, str]) -> RecordDict:
    """Add the coordinator's signature to a message, if there is one."""
    if signature:
        content[SIGNATURE] = ConfigRecord({**signature})
    return content


def check_signature(own: Mapping[str, str], content: RecordDict, where: str) -> None:
    """Check that a site's signature is the coordinator's, if the message has one.

    Raises
    ------
    ConfigError
        Naming the first difference, with both values.
    """
    if SIGNATURE not in records_of(content, ConfigRecord):
        return
    expected = records_of(content, ConfigRecord)[SIGNATURE]
    for name in sorted({*own, *expected}):
        if own.get(name) != expected.get(name):
            raise ConfigError(
                f"the job here differs from the coordinator's in {name!r}",
                where=where,
                got=own.get(name, "nothing"),
                expected=str(expected.get(name, "nothing")),
                hint="All sites need the same signature: the same metrics, and what the job gives "
                "as `signature`",
            )
