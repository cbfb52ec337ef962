"""What every test of the package needs: isolation from the machine."""

from tests.isolation import cache, offline, one_thread

__all__ = ["cache", "offline", "one_thread"]
