"""Flower's SuperNode, restricted to the installed app, with a SuperExec that starts it quickly.

Start it as ``python -m mdc_flower.deployment.site.supernode`` with the options of
``flower-supernode``. Flower verifies app bundles by signatures of its Hub. This module replaces
that check by a comparison of files, so the coordinator gets Flower's usual reply. There is no
public hook for this, so this file imports private modules of Flower.
"""

import subprocess
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from flwr.app import Error
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode

from mdc_flower.console.site_log import site_event
from mdc_flower.deployment.site import superexec
from mdc_flower.deployment.site.app_pin import difference, is_own_name
from strategies.exchange.causes import FlowerError

LICENSED = "valid_license"
"""Key that Flower requires among a bundle's verifications before it verifies the bundle."""

REFUSED = "refused"


def pin_app() -> None:
    """Make Flower check every bundle with `difference`.

    Raises
    ------
    AttributeError
        If this version of Flower checks bundles elsewhere.
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
                reason = "the run gives it another name or version"
            if reason is not None:
                # Empty the bundle, so that it cannot run even if Flower skips `is_installed`.
                fab.content = b""
                fab.verifications[REFUSED] = reason
            return fab

        asked = {**others, "trusted_entities": {"installed": "app"}}
        return pull(get_run=remembered, get_fab=judged, **asked)

    def is_installed(fab: Fab, trusted_entities: dict[str, str]) -> bool:
        reason = fab.verifications.get(REFUSED)
        text = f"the site runs only its installed app and refuses this one: {reason}"
        flower.FAB_VERIFICATION_ERROR = Error(FlowerError.INVALID_APP, text)
        if reason is not None:
            site_event("app-refused", reason=reason)
        return reason is None

    vars(flower).update(_pull_and_store_message=pull_checked, _verify_fab=is_installed)


def start_apps_quickly() -> None:
    """Make Flower start our SuperExec.

    Raises
    ------
    AttributeError
        If this version of Flower starts its SuperExec elsewhere.
    """

    def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*superexec.COMMAND, *command[1:]])

    getattr(flower, "subprocess")  # noqa: B009
    vars(flower).update(subprocess=SimpleNamespace(Popen=start))


def main() -> None:
    """Run the SuperNode with the options on the command line."""
    pin_app()
    start_apps_quickly()
    flower_supernode()


if __name__ == "__main__":
    main()
