"""Flower's SuperNode, which runs the installed app and refuses any other.

Started as ``python -m mdc_flower.deployment.site.supernode`` with ``flower-supernode``'s options.
Flower verifies app bundles by signatures of its Hub; what is compared here are the files. The
check takes the place of Flower's own, so that the coordinator is answered as Flower answers. There
is no public hook for that, so this file imports private modules of Flower.
"""

from collections.abc import Callable
from typing import Any

from flwr.app import Error
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode

from mdc_flower.console.site_log import site_event
from mdc_flower.deployment.site.app_pin import difference, is_own_name
from strategies.exchange.causes import FlowerError

LICENSED = "valid_license"
"""What Flower wants to see in a bundle before it asks whether the bundle is verified."""

REFUSED = "refused"


def pin_app() -> None:
    """Let Flower check every bundle, and check it by `difference`.

    Raises
    ------
    AttributeError
        If this Flower checks bundles elsewhere.
    """
    pull: Callable[..., Any] = flower._pull_and_store_message
    for replaced in ("_verify_fab", "FAB_VERIFICATION_ERROR"):
        getattr(flower, replaced)

    def pull_checked(
        *, get_run: Callable[[int], Run], get_fab: Callable[[str, int], Fab], **others: Any
    ) -> Any:
        runs: dict[int, Run] = {}

        def remembered(run_id: int) -> Run:
            runs[run_id] = get_run(run_id)
            return runs[run_id]

        def judged(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            fab.verifications = {LICENSED: "compared with the installed app"}
            reason = difference(fab.content)
            if reason is None and not is_own_name(runs[run_id].fab_id, runs[run_id].fab_version):
                reason = "the run calls it by another name"
            if reason is not None:
                # Nothing is left that could run, even if a Flower did not ask `is_installed`.
                fab.content = b""
                fab.verifications[REFUSED] = reason
            return fab

        asked = {**others, "trusted_entities": {"installed": "app"}}
        return pull(get_run=remembered, get_fab=judged, **asked)

    def is_installed(fab: Fab, trusted_entities: dict[str, str]) -> bool:
        reason = fab.verifications.get(REFUSED)
        text = f"the site runs only the app that it has installed, and not this one: {reason}"
        flower.FAB_VERIFICATION_ERROR = Error(FlowerError.INVALID_APP, text)
        if reason is not None:
            site_event("app-refused", reason=reason)
        return reason is None

    vars(flower).update(_pull_and_store_message=pull_checked, _verify_fab=is_installed)


def main() -> None:
    """Run the SuperNode with the options on the command line."""
    pin_app()
    flower_supernode()


if __name__ == "__main__":
    main()
