"""AttMask-High: the patches that cls attends to most are hidden (arXiv 2203.12719)."""

from ._ranked import High


class AttMaskHigh(High):
    """Ranked by attention."""

    scores = "attention"


MASKING = AttMaskHigh()
