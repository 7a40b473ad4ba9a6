"""AttMask-High by keypoint density in place of attention: the patches with most keypoints are hidden."""

from ._ranked import High


class KeypointHigh(High):
    """Ranked by keypoint density."""

    scores = "keypoints"


MASKING = KeypointHigh()
