"""AttMask-Hint: as AttMask-High, with a few of the most attended patches revealed (arXiv 2203.12719)."""

from ._ranked import Hint


class AttMaskHint(Hint):
    """Ranked by attention."""

    scores = "attention"


MASKING = AttMaskHint()
