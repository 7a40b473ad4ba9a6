"""AKAZE keypoints (Alcantarilla et al., 2013): extrema of the Hessian over a non-linear scale space."""

from dataclasses import dataclass
from typing import Any, Literal

from ._detector import KeypointDetector, contributed

_DIFFUSIVITIES = ("perona_malik_1", "perona_malik_2", "weickert", "charbonnier")


@dataclass(frozen=True, kw_only=True)
class AKAZE(KeypointDetector):
    """OpenCV's AKAZE with OpenCV's defaults; the settings of its descriptor are left out, since none is computed.

    It keeps 28.5 pixels from the border: pictures below 59 px have no keypoints, and those of 64 px next to none.
    """

    threshold: float = 0.001
    """Least response of a keypoint."""
    octaves: int = 4
    """Octaves of the scale space; OpenCV leaves out those that are too small, at 192 px all but the first two."""
    octave_layers: int = 4
    """Layers of each octave."""
    diffusivity: Literal["perona_malik_1", "perona_malik_2", "weickert", "charbonnier"] = "perona_malik_2"
    """How the diffusion slows down at edges."""

    def build(self) -> Any:
        """`cv2.AKAZE` with these parameters; the order of the diffusivities is that of OpenCV's numbers."""
        return contributed("AKAZE").create(
            threshold=self.threshold,
            nOctaves=self.octaves,
            nOctaveLayers=self.octave_layers,
            diffusivity=_DIFFUSIVITIES.index(self.diffusivity),
        )
