"""From a decoded picture to a training sample, in a data worker or partly on the device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import cv2
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor
from torchvision.transforms import v2

from kamim_analysis.encoders import anatomy
from kamim_analysis.evaluation_set import middle
from kamim_analysis.keypoints._detector import Detector
from kamim_analysis.keypoints._drawing import Style
from kamim_analysis.patches import divide
from kamim_analysis.shapes import Size

from .crop import Crop, WorkerCrop
from .device_crop import DeviceCrop
from .device_decode import JPEG
from .objectives._classification import Classification
from .recipe import Data
from .start import evaluation_transform

if TYPE_CHECKING:
    from .masks import MaskDraws


class View(ABC):
    """Makes a training sample of a picture in a data worker, and what only the device makes of a batch of samples."""

    takes_files: bool = False
    """Whether JPEGs may come as they are, for the device to decode."""

    @abstractmethod
    def __call__(self, picture: UInt8[ndarray, "y x 3"]) -> dict[str, Any]:
        """Named tensors of a picture, in a data worker; torch's global random state gives whatever is drawn."""

    def join(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Samples side by side, in a data worker, with what only all of them tell; draws nothing."""
        return batch

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch that the objective gets of samples side by side, on their device; draws nothing."""
        return batch


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop and flips."""

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    horizontal_flip: float
    vertical_flip: float
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = False
    device_size: int | None = None
    """Where the device crops: side of the square that workers squeeze pictures to."""
    decode_on_device: bool = False
    """Whether the device decodes JPEGs too."""

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
            data.device_size if data.device_augment else None,
            data.decode_on_device,
        )

    def build(self, image_size: int) -> Any:
        """torchvision's transform of uint8 [3, H, W]."""
        flips = [v2.RandomHorizontalFlip(self.horizontal_flip), v2.RandomVerticalFlip(self.vertical_flip)]
        return v2.Compose([self._resized_crop(image_size), *flips])

    def crop(self, image_size: int) -> Crop:
        """The same where the recipe wants it, in the worker or on the device."""
        if self.device_size is None:
            return WorkerCrop(self.build(image_size))
        flips = (self.horizontal_flip, self.vertical_flip)
        return DeviceCrop(self._resized_crop(image_size), flips, self.device_size, self.decode_on_device)

    def _resized_crop(self, image_size: int) -> v2.RandomResizedCrop:
        return v2.RandomResizedCrop(
            image_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            interpolation=v2.InterpolationMode(self.interpolation),
            antialias=self.antialias,
        )


class CropView(View):
    """An augmented crop, uint8 `image` [3, S, S], with what is drawn for it and what is measured on it.

    Drawing is the worker's, after the crop's own draws; measuring happens where the crop is cut, of one picture in the
    worker or of a batch on the device.
    """

    def __init__(self, crop: Crop) -> None:
        self.crop, self.takes_files = crop, crop.takes_files

    def draw(self) -> dict[str, Tensor]:
        """Further entries of a sample, from torch's global random state."""
        return {}

    def measure(self, cropped: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Entries that follow from the crop and the draws of a sample, or of a batch."""
        return {}

    def __call__(self, picture: UInt8[ndarray, "y x 3"] | JPEG) -> dict[str, Any]:
        """Crop, flip, draw."""
        sample = self.crop(picture) | self.draw()
        return sample if self.crop.on_device else sample | self.measure(sample)

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Crop, flip and measure what the worker has not."""
        if not self.crop.on_device:
            return batch
        batch = self.crop.finish(batch)
        return batch | self.measure(batch)


class MaskedView(CropView):
    """An augmented crop and what masks it: drawn after the crop, scored on the crop."""

    def __init__(self, augmentation: Augmentation, image_size: int, masks: "MaskDraws") -> None:
        super().__init__(augmentation.crop(image_size))
        self.size, self.masks = Size(image_size, image_size), masks

    def draw(self) -> dict[str, Tensor]:
        """What the strategy draws."""
        return self.masks()

    def measure(self, cropped: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The patches' scores, where keypoints rank them."""
        return self.masks.scores(cropped["image"])


def keypoint_density(
    images: UInt8[Tensor, "*b 3 y x"], detector: Detector, style: Style, cell: int
) -> Float[Tensor, "*b gy gx"]:
    """The detector's density of the very pixels that the model will see, for each cell of `cell` pixels: of an image in
    the worker, of a batch on its device."""
    if images.ndim == 4:
        return detector.densities(images, style, cell)
    pixels = cv2.merge([*images.numpy()])  # [3, S, S] to [S, S, 3], four times as fast as torch's copy
    return torch.from_numpy(detector.density(pixels, style, cell))


class KeypointView(CropView):
    """Another view's sample with the `density` of keypoints on its crop, one number for each weight patch."""

    def __init__(self, view: CropView, detector: Detector, style: Style, weight_patch: int) -> None:
        super().__init__(view.crop)
        self.view, self.detector, self.style, self.weight_patch = view, detector, style, weight_patch
        if isinstance(view, MaskedView):
            divide(view.size, weight_patch, what="weight patch size")

    def draw(self) -> dict[str, Tensor]:
        """The other view's draws."""
        return self.view.draw()

    def measure(self, cropped: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the other view measures, and the density."""
        density = keypoint_density(cropped["image"], self.detector, self.style, self.weight_patch)
        return self.view.measure(cropped) | {"density": density}


class LabelledView(CropView):
    """A picture for a classifier, uint8 `image` [3, S, S], augmented as the settings say."""

    def __init__(self, settings: Classification, augmentation: Augmentation, encoder: Any) -> None:
        size = anatomy(encoder).image_size
        crops: dict[str, Callable[[], Crop]] = {
            "paper": lambda: WorkerCrop(_paper(settings, size)),
            "crop": lambda: replace(augmentation, antialias=True).crop(size.height),
            "none": lambda: WorkerCrop(
                v2.Compose([v2.ToPILImage(), middle, evaluation_transform(encoder, normalize=False)])
            ),
        }
        super().__init__(crops[settings.augmentation]())


def _paper(settings: Classification, size: Size) -> Any:
    """The order and the squeezing of KAMIM's code; its normalisation comes later and leaves erased pixels black."""
    return v2.Compose(
        [
            v2.Resize(tuple(size), antialias=False),
            v2.TrivialAugmentWide(),
            v2.RandomErasing(settings.erasing, scale=settings.erasing_scale, ratio=settings.erasing_ratio),
        ]
    )
