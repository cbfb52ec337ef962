"""Answer a message in this process: with the site's command if it has one, or with our own loop."""

from collections.abc import Callable, Mapping
from logging import ERROR

from flwr.app import Error, RecordDict

from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.console.site_log import site_event
from mdc_flower.site.error_replies import error_of, is_simulated
from strategies.common.log import log

Config = Mapping[str, bool | float | int | str]
"""A run config or node config as Flower delivers it."""

Handler = Callable[[RecordDict, RunConfig, SiteConfig], RecordDict]
"""Returns the content of the reply to a message's content."""


def answer(
    kind: str, content: RecordDict, run_config: Config, node_config: Config
) -> RecordDict | Error:
    """Return the content of the reply to a message, or the error that answering it raised.

    Flower reports an exception differently on each engine, and not at all in a deployment. The
    coordinator needs the reason to report which site failed and why.

    Parameters
    ----------
    kind
        Flower's type of the message.
    content
        The content of the message.
    run_config, node_config
        Flower's context of the message.
    """
    try:
        config, site = read_run_config(run_config), read_site_config(node_config)
        return _handlers(site)[kind](content, config, site)
    except Exception as error:
        log(ERROR, "%s failed", kind, exc_info=error)
        site_event("failed", message=kind, error=f"{type(error).__name__}: {error}")
        # The node config itself may be wrong, so it is not parsed here.
        return error_of(error, private=not is_simulated(node_config))


def _handlers(site: SiteConfig) -> Mapping[str, Handler]:
    """Return the handlers by type of message; only those of our own loop import PyTorch."""
    if site.command:
        from mdc_flower.site.own_loop import answers as own_loop

        return own_loop.HANDLERS
    from mdc_flower.site import answers

    return answers.HANDLERS
