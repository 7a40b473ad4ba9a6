"""AttMask-Low: the patches that cls attends to least are hidden (arXiv 2203.12719)."""

from ._ranked import Low


class AttMaskLow(Low):
    """Ranked by attention."""

    scores = "attention"


MASKING = AttMaskLow()
