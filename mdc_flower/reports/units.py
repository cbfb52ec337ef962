"""Human-readable numbers: bytes, seconds, percentages."""

import math

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def byte_scale(largest: float) -> tuple[float, str]:
    """Return the divisor, a power of 1000, and the unit that suit values up to ``largest``."""
    power = 0
    while largest >= 1000 ** (power + 1) and power + 1 < len(BYTE_UNITS):
        power += 1
    return float(1000**power), BYTE_UNITS[power]


def format_bytes(count: float) -> str:
    """Return a number of bytes, such as ``16.7 MB``."""
    scale, name = byte_scale(count)
    return f"{count / scale:.1f} {name}" if scale > 1 else f"{count:.0f} {name}"


def format_seconds(seconds: float) -> str:
    """Return a duration, such as ``3.9 s``, ``2 min 05 s`` or ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_percent(share: float | None, digits: int = 2) -> str:
    """Return a share in percent, such as ``98.70 %``; empty for None or NaN."""
    if share is None or math.isnan(share):
        return ""
    return f"{100 * share:.{digits}f} %"


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits; empty for None or NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"
