"""AttMask-Low by keypoint density in place of attention: the patches with fewest keypoints are hidden."""

from ._ranked import Low


class KeypointLow(Low):
    """Ranked by keypoint density."""

    scores = "keypoints"


MASKING = KeypointLow()
