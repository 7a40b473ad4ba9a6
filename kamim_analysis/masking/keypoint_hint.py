"""AttMask-Hint by keypoint density in place of attention: keypoint_high with a few of the densest revealed."""

from ._ranked import Hint


class KeypointHint(Hint):
    """Ranked by keypoint density."""

    scores = "keypoints"


MASKING = KeypointHint()
