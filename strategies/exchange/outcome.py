"""What an exchange with the sites came to: who answered, who did not, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from strategies.exchange.causes import Cause


@dataclass(kw_only=True)
class Outcome:
    """The part of a record that every exchange with the sites has; see `RoundRecord`."""

    dropped: dict[str, str] = field(default_factory=dict)
    causes: dict[str, Cause] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)
    attempts: int = 1
    deadline_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0

    def drop(self, site: str, cause: Cause, reason: str, detail: str = "") -> None:
        """Record that a site's reply does not count."""
        self.dropped[site] = reason
        self.causes[site] = cause
        if detail:
            self.errors[site] = detail

    def forgive(self, site: str) -> None:
        """Record that a site's later reply counts; its earlier error is kept."""
        self.dropped.pop(site, None)
        self.causes.pop(site, None)


def reasons_by_site(dropped: Mapping[str, str], missing: Iterable[str]) -> dict[str, str]:
    """Return why each site gave no update, as text, by site."""
    return {**dropped, **{site: "not online" for site in missing if site not in dropped}}


def causes_by_site(causes: Mapping[str, Cause], missing: Iterable[str]) -> dict[str, Cause]:
    """Return why each site gave no update, as a code, by site."""
    return {**dict.fromkeys(missing, Cause.NOT_ONLINE), **causes}


def reasons(dropped: Mapping[str, str], missing: Iterable[str]) -> str:
    """Return why each site gave no update, in one line."""
    return "; ".join(
        f"{site}: {reason}" for site, reason in reasons_by_site(dropped, missing).items()
    )
