"""From a decoded picture to a training sample, in a data worker."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from kamim_analysis.encoders import anatomy
from kamim_analysis.keypoints._detector import Detector
from kamim_analysis.keypoints._drawing import Style
from kamim_analysis.patches import divide
from kamim_analysis.shapes import Size

from .objectives._classification import Classification
from .recipe import Data
from .start import evaluation_transform

View = Callable[[UInt8[ndarray, "y x 3"]], dict[str, Tensor]]
"""A view makes named tensors of a picture, with torch's global random state for whatever it draws."""


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop and flips."""

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    horizontal_flip: float
    vertical_flip: float
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = False

    @classmethod
    def of(cls, data: Data) -> "Augmentation":
        """What a recipe asks for."""
        return cls(
            data.crop_scale,
            data.crop_ratio,
            data.horizontal_flip,
            data.vertical_flip,
            data.interpolation,
            data.antialias,
        )

    def build(self, image_size: int) -> Any:
        """torchvision's transform of uint8 [3, H, W]."""
        return v2.Compose(
            [
                v2.RandomResizedCrop(
                    image_size,
                    scale=self.crop_scale,
                    ratio=self.crop_ratio,
                    interpolation=v2.InterpolationMode(self.interpolation),
                    antialias=self.antialias,
                ),
                v2.RandomHorizontalFlip(self.horizontal_flip),
                v2.RandomVerticalFlip(self.vertical_flip),
            ]
        )


class MaskedView:
    """An augmented crop, uint8 `image` [3, S, S], and what masks it: drawn after the crop, from the crop."""

    def __init__(
        self, augmentation: Augmentation, image_size: int, draw_mask: Callable[[Tensor], dict[str, Tensor]]
    ) -> None:
        self.size = Size(image_size, image_size)
        self.augment, self.draw_mask = augmentation.build(image_size), draw_mask

    def __call__(self, picture: UInt8[ndarray, "y x 3"]) -> dict[str, Tensor]:
        """Crop, flip, mask."""
        image = self.augment(torch.from_numpy(picture).permute(2, 0, 1))
        return {"image": image, **self.draw_mask(image)}


def keypoint_density(
    image: UInt8[Tensor, "3 y x"], detector: Detector, style: Style, cell: int
) -> Float[Tensor, "gy gx"]:
    """The detector's density of the very pixels that the model will see, for each cell of `cell` pixels."""
    pixels = cv2.merge([*image.numpy()])  # [3, S, S] to [S, S, 3], four times as fast as torch's copy
    return torch.from_numpy(detector.density(pixels, style, cell))


class KeypointView:
    """Another view's sample with the `density` of keypoints on its crop, one number for each weight patch."""

    def __init__(self, view: View, detector: Detector, style: Style, weight_patch: int) -> None:
        self.view, self.detector, self.style, self.weight_patch = view, detector, style, weight_patch
        if isinstance(view, MaskedView):
            divide(view.size, weight_patch, what="weight patch size")

    def __call__(self, picture: UInt8[ndarray, "y x 3"]) -> dict[str, Tensor]:
        """Crop, mask, density."""
        sample = self.view(picture)
        return sample | {"density": keypoint_density(sample["image"], self.detector, self.style, self.weight_patch)}


class LabelledView:
    """A picture for a classifier, uint8 `image` [3, S, S], augmented as the settings say."""

    def __init__(self, settings: Classification, augmentation: Augmentation, encoder: Any) -> None:
        size = anatomy(encoder).image_size
        self.transform: Any = {
            "paper": lambda: _paper(settings, size),
            "crop": lambda: replace(augmentation, antialias=True).build(size.height),
            "none": lambda: evaluation_transform(encoder, normalize=False),
        }[settings.augmentation]()
        self.takes_pillow = settings.augmentation == "none"

    def __call__(self, picture: UInt8[ndarray, "y x 3"]) -> dict[str, Tensor]:
        """Resize and augment."""
        if self.takes_pillow:
            return {"image": self.transform(Image.fromarray(picture))}
        return {"image": self.transform(torch.from_numpy(picture).permute(2, 0, 1))}


def _paper(settings: Classification, size: Size) -> Any:
    """The order and the squeezing of KAMIM's code; its normalisation comes later and leaves erased pixels black."""
    return v2.Compose(
        [
            v2.Resize(tuple(size), antialias=False),
            v2.TrivialAugmentWide(),
            v2.RandomErasing(settings.erasing, scale=settings.erasing_scale, ratio=settings.erasing_ratio),
        ]
    )
