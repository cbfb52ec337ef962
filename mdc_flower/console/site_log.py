"""The site's event log: what the site's operators see. Its events never leave the site.

The process that answers a message writes this log: the site's worker, or Flower's process for the
message. The command at the site follows it.
"""

import json
import os
import time
from logging import WARNING
from pathlib import Path
from typing import Any

from strategies.common.log import log

SITE_LOG = "MDC_SITE_LOG"
"""Environment variable with the absolute path of the site's event log; unset for no log."""


def site_event(kind: str, **fields: Any) -> None:
    """Append one line to the site's event log, if there is one.

    If the log cannot be written, a warning goes to Flower's log and the round continues.
    """
    path = os.environ.get(SITE_LOG)
    if not path:
        return
    line = json.dumps({"event": kind, "time": round(time.time(), 3), **fields}) + "\n"
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        log(WARNING, "the site's event log cannot be written: %s", error)
