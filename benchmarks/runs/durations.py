"""Times as people write and read them."""

import re

_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds of "45s", "30m", "2h" or "1h30m". Raises ValueError otherwise."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds > 0:
        raise ValueError(f"--budget {text!r} is not a time: expected for instance 45s, 30m, 2h or 1h30m")
    return seconds


def duration(seconds: float) -> str:
    """About so long, in words."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 2 * 3600
        else f"{seconds / 3600:.1f} h"
    )
