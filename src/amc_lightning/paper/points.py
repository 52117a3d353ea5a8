"""Differences of error rates in words."""

from amc_lightning.paper.paired import Interval


def signed(points: float) -> str:
    """Return points with their sign and one decimal, and never as "-0.0".

    Example:
        >>> signed(6.275), signed(-0.04), signed(-1.25)
        ('+6.3', '0.0', '-1.2')
    """
    rounded = round(points, 1) + 0.0
    return f"{rounded:+.1f}" if rounded else "0.0"


def points_text(found: Interval) -> str:
    """Return points with their interval.

    Example:
        >>> points_text(Interval(6.275, 5.0, 7.5))
        '+6.3 (+5.0 to +7.5)'
    """
    return f"{signed(found.estimate)} ({signed(found.low)} to {signed(found.high)})"
