"""What a site's own people see of its work: events that never leave the site.

A message is worked on in a process of Flower's that ends with it; this file is what the command
at the site follows.
"""

import json
import os
import time
from logging import WARNING
from pathlib import Path
from typing import Any

from strategies.common.log import log

SITE_LOG = "MDC_SITE_LOG"
"""Environment variable with the absolute path of the site's event log; unset for none."""


def site_event(kind: str, **fields: Any) -> None:
    """Append one line to the site's event log, if there is one.

    A log that cannot be written costs the site its view, never a round; Flower's log says so.
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
