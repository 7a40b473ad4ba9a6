"""FAST corners (Rosten and Drummond, 2006): KAMIM's default."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ._detector import KeypointDetector
from ._drawing import Style

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FAST(KeypointDetector):
    """OpenCV's FAST. The KAMIM paper says 12 of 16 pixels; its public code takes OpenCV's default, 9 of 16."""

    threshold: int = 10
    """Least difference in gray level between the centre and the arc."""
    nonmax_suppression: bool = True
    """Keep a corner only where its score exceeds that of its eight neighbours."""
    arc: Literal["5_8", "7_12", "9_16"] = "9_16"
    """Length of the arc, of how many pixels on the circle."""

    whole_pixels: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def build(self) -> Any:
        """`cv2.FastFeatureDetector` with these parameters."""
        import cv2

        kind = getattr(cv2, f"FAST_FEATURE_DETECTOR_TYPE_{self.arc}")
        return cv2.FastFeatureDetector.create(self.threshold, self.nonmax_suppression, kind)

    def densities(self, images: "Tensor", style: Style, cell: int) -> "Tensor":
        """`density` of each of uint8 RGB pictures [B, 3, H, W], float32 [B, H / cell, W / cell], on their own device.

        Bit for bit that of OpenCV's corners. On a GPU it is compiled, which takes half a minute once.
        """
        from ..patches import block_mean
        from ._batched import corner_maps

        maps = corner_maps(
            images,
            threshold=self.threshold,
            nonmax_suppression=self.nonmax_suppression,
            arc=self.arc,
            style=style,
            compiled=images.is_cuda,
        )
        return block_mean(maps, cell)
