"""A federation of two sites, provisioned."""

from pathlib import Path

import pytest

from tests.mdc_flower.deployment.federations import TWO_SITES, Federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Return a federation whose sites, berlin and lisbon, have their kits."""
    federation = Federation(tmp_path)
    federation.provision(TWO_SITES)
    return federation
