"""Several crops of one picture, in a data worker: two large ones that are masked, and small ones that are not."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor
from torchvision.transforms import v2

from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.patches import divide

from .masks import draws_for
from .views import Augmentation, View, keypoint_density

if TYPE_CHECKING:
    from .objectives.attmask import AttMask

# the chances that the two global crops, and each local one, are blurred (DINO, arXiv 2104.14294, after BYOL)
_BLURRED = (1.0, 0.1)
_LOCAL_BLURRED = 0.5
_SOLARISED = 0.2
# reaches three standard deviations at the widest blur
_KERNEL = 13


class GaussianBlur:
    """A blur of 0.1 to 2 pixels' standard deviation, drawn evenly, with some chance.

    Edge pixels are repeated outwards, as Pillow does, with which the public code blurs; the kernel is the Gaussian's
    own, where Pillow approximates it by boxes: a photograph's pixels differ by half a grey level in the mean.
    torchvision's blur, of two dimensions at once, takes 17 times as long at 224 px.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: UInt8[Tensor, "3 y x"]) -> UInt8[Tensor, "3 y x"]:
        """The image, blurred or as it is."""
        if not torch.rand(()) < self.probability:
            return image
        deviation = float(torch.empty(()).uniform_(0.1, 2.0))
        pixels = cv2.merge([*image.numpy()])
        cv2.GaussianBlur(pixels, (_KERNEL, _KERNEL), deviation, dst=pixels, borderType=cv2.BORDER_REPLICATE)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def colour_augmented(crop: Any, blurred: float, solarised: float = 0.0) -> Any:
    """A crop with iBOT's changes of colour (as DINO's): jitter, grey, blur, and solarisation."""
    return v2.Compose(
        [
            crop,
            v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            GaussianBlur(blurred),
            *([v2.RandomSolarize(threshold=128, p=solarised)] if solarised else []),
        ]
    )


class MultiCropView(View):
    """Two global crops, uint8 `image` [2, 3, S, S], what their masks need, and n uint8 `local` ones [n, 3, s, s].

    Masks are drawn for each global crop, and stand stacked like the crops; so does the keypoints' `density` [2, h, w]
    of weight patches where it weights the loss. Without local crops there is no `local`. A batch has `hidden_slots`.
    """

    def __init__(self, settings: "AttMask", augmentation: Augmentation, encoder: Any) -> None:
        self.settings = settings
        body = anatomy(encoder)
        if settings.local_crops and settings.local_size % body.mask_patch:
            raise UserError(
                f"objective.local_size {settings.local_size} is no multiple of the patch size {body.mask_patch}"
            )
        if settings.keypoint_weights:
            divide(body.image_size, settings.weight_patch, what="weight patch size")
        crop = augmentation.build(body.image_size.height)
        first, second = _BLURRED
        self.global_crops = (colour_augmented(crop, first), colour_augmented(crop, second, _SOLARISED))
        local = replace(augmentation, crop_scale=settings.local_scale).build(settings.local_size)
        self.local_crop = colour_augmented(local, _LOCAL_BLURRED)
        self.masks = draws_for(settings, body)

    def __call__(self, picture: UInt8[ndarray, "y x 3"]) -> dict[str, Tensor]:
        """Crop, change colours, draw masks."""
        pixels = torch.from_numpy(picture).permute(2, 0, 1)
        samples = [self._with_draws(crop(pixels)) for crop in self.global_crops]
        sample = {name: torch.stack([one[name] for one in samples]) for name in samples[0]}
        if self.settings.local_crops:
            sample["local"] = torch.stack([self.local_crop(pixels) for _ in range(self.settings.local_crops)])
        return sample

    def join(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`hidden_slots` [hidden patches of all crops], which says on the CPU how many the masks hide."""
        crops = {name: values.flatten(0, 1) for name, values in batch.items() if values.ndim > 1}
        return batch | {"hidden_slots": self.masks.slots(crops)}

    def _with_draws(self, image: UInt8[Tensor, "3 y x"]) -> dict[str, Tensor]:
        sample = {"image": image} | self.masks() | self.masks.scores(image)
        if self.settings.keypoint_weights:
            detector, style = self.settings.detector, self.settings.map_style
            sample["density"] = keypoint_density(image, detector, style, self.settings.weight_patch)
        return sample
