"""What has gone to each site and come from it in one exchange, whichever process saw it.

What was exchanged with a site is kept with its update. So a run that goes on counts it, and the
totals are those of a run that nothing has disturbed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from flwr.app import Message, RecordDict

from strategies.aggregation.averaging import Update


@dataclass
class Traffic:
    """Model bytes of one round, or one recalibration, in all its attempts.

    Counted are all models to and from the sites that this process asks, replies that do not count
    included. Of an earlier process that died, only what it exchanged with the sites whose updates
    are kept: a site whose update was still missing is asked again, and that ask counts.

    Attributes
    ----------
    times : Counter of str
        How often this process has asked each site.
    sent_bytes, received_bytes : Counter of str
        Model bytes to and from each site.
    """

    times: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    received_bytes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, kept: Iterable[Update]) -> "Traffic":
        """Return what an earlier process exchanged for the updates that are kept."""
        traffic = cls()
        for update in kept:
            traffic.sent_bytes[update.site] = update.sent_bytes
            traffic.received_bytes[update.site] = update.received_bytes
        return traffic

    def send(self, site: str, content: RecordDict) -> None:
        """Take note that a site is asked."""
        self.times[site] += 1
        self.sent_bytes[site] += _model_bytes(content)

    def receive(self, site: str, reply: Message) -> None:
        """Take note of a site's reply."""
        if reply.has_content():
            self.received_bytes[site] += _model_bytes(reply.content)

    def noted_on(self, update: Update) -> Update:
        """Return an update that says what was exchanged with its site so far."""
        return replace(
            update,
            sent_bytes=self.sent_bytes[update.site],
            received_bytes=self.received_bytes[update.site],
        )

    def asked_again(self) -> list[str]:
        """Return the sites that were asked more than once."""
        return sorted(site for site, times in self.times.items() if times > 1)


def _model_bytes(content: RecordDict) -> int:
    return sum(arrays.count_bytes() for arrays in content.array_records.values())
