"""Flower's SuperNode, which runs the installed app and refuses any other.

Started as ``python -m mdc_flower.federation.supernode`` with the options of ``flower-supernode``.
Flower verifies app bundles by signatures of its Hub; what is compared here are the files. The
check takes the place of Flower's own, so that the coordinator is answered as Flower answers.
"""

from collections.abc import Callable
from typing import Any

from flwr.app import Error
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode

from mdc_flower.federation.app_pin import difference
from mdc_flower.site_log import site_event


def pin_app() -> None:
    """Let Flower check every bundle, and check it by `difference`."""
    pull: Callable[..., Any] = flower._pull_and_store_message

    def pull_checked(*, get_fab: Callable[[str, int], Fab], **others: Any) -> Any:
        def marked(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            # Flower looks at a bundle only if its SuperLink says that it can be verified.
            fab.verifications["valid_license"] = "compared with the installed app"
            return fab

        return pull(get_fab=marked, **{**others, "trusted_entities": {"installed": "app"}})

    def is_installed(fab: Fab, trusted_entities: dict[str, str]) -> bool:
        reason = difference(fab.content)
        text = f"the site runs only the app that it has installed, and not this one: {reason}"
        flower.FAB_VERIFICATION_ERROR = Error(ErrorCode.INVALID_FAB, text)
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
