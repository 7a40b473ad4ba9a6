"""Logarithmic axes with numbers as they are said: 0.2, 5, 100."""

from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

# beyond two decades, ticks at 2 and 5 would crowd
_MANY_DECADES = 100


def plain_ticks(axis: Axis) -> None:
    """Ticks without exponents, at 1, 2 and 5 times the powers of ten where there are few of those; once data are in."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _MANY_DECADES * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
