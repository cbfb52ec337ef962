"""Counts the model bytes exchanged with each site in one exchange, across processes.

The bytes exchanged with a site are stored with its update. So a resumed run counts them too, and
its totals equal those of an uninterrupted run.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Message, RecordDict

from strategies.aggregation.averaging import Update
from strategies.exchange.records import records_of


@dataclass
class Traffic:
    """Model bytes of one round or recalibration, over all its attempts.

    Counts all models sent and received by this process, including rejected replies. Of an earlier
    process that died, only the bytes exchanged with sites whose updates are stored count: the other
    sites are asked again, and that request counts.

    Attributes
    ----------
    times : Counter of str
        Number of requests by this process to each site.
    sent_bytes, received_bytes : Counter of str
        Model bytes sent to and received from each site.
    """

    times: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    received_bytes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_updates(cls, kept: Iterable[Update]) -> "Traffic":
        """Return the traffic that an earlier process had for the stored updates."""
        traffic = cls()
        for update in kept:
            traffic.sent_bytes[update.site] = update.sent_bytes
            traffic.received_bytes[update.site] = update.received_bytes
        return traffic

    def send(self, site: str, content: RecordDict) -> None:
        """Count a request to a site."""
        self.times[site] += 1
        self.sent_bytes[site] += _model_bytes(content)

    def receive(self, site: str, reply: Message) -> None:
        """Count a site's reply."""
        if reply.has_content():
            self.received_bytes[site] += _model_bytes(reply.content)

    def record_in(self, update: Update) -> Update:
        """Return a copy of an update with the bytes exchanged with its site so far."""
        return replace(
            update,
            sent_bytes=self.sent_bytes[update.site],
            received_bytes=self.received_bytes[update.site],
        )

    def asked_again(self) -> list[str]:
        """Return the sites that were asked more than once."""
        return sorted(site for site, times in self.times.items() if times > 1)


def _model_bytes(content: RecordDict) -> int:
    return sum(arrays.count_bytes() for arrays in records_of(content, ArrayRecord).values())
