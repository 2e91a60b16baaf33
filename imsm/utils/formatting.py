"""Sizes and durations as text."""

_BYTE_UNITS = (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1))


def format_bytes(size: float | None) -> str:
    """Return a number of bytes in decimal units, e.g. "16.06 GB"; "–" for None."""
    if size is None:
        return "–"
    for unit, factor, digits in _BYTE_UNITS:
        if size >= factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size:.0f} B"


def format_duration(seconds: float | None) -> str:
    """Return seconds as "1h 02m", "3m 04s" or "5s"; "–" for None."""
    if seconds is None:
        return "–"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"
