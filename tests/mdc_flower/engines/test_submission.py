"""How a run that went through a SuperLink ended, by what its ServerApp left behind."""

from pathlib import Path
from typing import Any

import pytest

from mdc_flower.engines.submission import _run_error
from strategies.common.errors import ConfigError, EngineError, QuorumError, RunError, SiteInputError


@pytest.mark.parametrize(
    ("summary", "kind"),
    [
        ({"exit-status": 2, "error": "why"}, ConfigError),  # refused: it has no summary
        ({"status": "failed", "exit-status": 2, "error": "why"}, SiteInputError),
        ({"status": "stopped", "exit-status": 3, "error": "why"}, QuorumError),
        ({"status": "failed", "exit-status": 1, "restart": True, "error": "why"}, EngineError),
        ({"status": "failed", "exit-status": 1, "restart": False, "error": "why"}, RunError),
        ({}, EngineError),
    ],
)
def test_the_error_is_of_the_kind_that_the_run_run_error_with(
    summary: dict[str, Any], kind: type[Exception]
) -> None:
    error = _run_error(summary, "finished:failed", Path("engine.log"))
    assert type(error) is kind
    assert summary.get("error", "the run ended with status 'finished:failed'") in str(error)
    assert error.exit_code == summary.get("exit-status", 1)
