"""Masks of a batch, from what each picture's worker drew and from scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from kamim_analysis.masking._masking import Amount, Masking
from kamim_analysis.models._anatomy import Anatomy
from kamim_analysis.patches import divide
from kamim_analysis.shapes import Grid

from .views import keypoint_density

if TYPE_CHECKING:
    from .objectives._masked import Masked

SCORES = "mask_scores"


class MaskDraws:
    """What the mask of a crop needs, as further entries of its sample.

    The strategy's own draws, in a data worker, and where it ranks by keypoints their density in each patch of the crop,
    `mask_scores` [N].
    """

    def __init__(self, settings: "Masked", grid: Grid, patch_size: int) -> None:
        self.settings, self.grid, self.patch_size = settings, grid, patch_size
        self.strategy, self.amount = settings.strategy(), settings.amount()
        with torch.random.fork_rng(devices=[]):  # what cannot be is refused before any worker starts
            self()

    def __call__(self) -> dict[str, Tensor]:
        """Draws from torch's global random state."""
        return self.strategy.draw(self.grid, self.patch_size, self.amount)

    def slots(self, crops: Mapping[str, Tensor]) -> Int[Tensor, " hidden"]:
        """Of a batch of crops and their draws, the slots that `hidden_places` fills: as many as patches are hidden.

        A CPU knows how many before there are scores, and a GPU that finds out makes the CPU wait.
        """
        any_scores = torch.zeros(len(crops["image"]), self.grid.area)
        hidden = self.strategy.mask(crops, any_scores).flatten(1).sum(1, keepdim=True)
        return (torch.arange(self.grid.area) < hidden).flatten().nonzero()[:, 0]

    def scores(self, images: UInt8[Tensor, "*b 3 y x"]) -> dict[str, Tensor]:
        """Of a crop or of a batch, what is ranked by."""
        if self.strategy.scores != "keypoints":
            return {}
        detector, style = self.settings.detector, self.settings.map_style
        return {SCORES: keypoint_density(images, detector, style, self.patch_size).flatten(-2)}


def draws_for(settings: "Masked", body: Anatomy) -> MaskDraws:
    """The draws for an encoder. SimMIM's units are made of the patches that the mask token replaces; all else chooses
    among those of the last layer, which are scored and predicted (Swin's are eight of the former wide)."""
    if settings.masking == "random_blocks":
        return MaskDraws(settings, divide(body.image_size, body.mask_patch, what="patch size"), body.mask_patch)
    return MaskDraws(settings, body.blocks[-1].grid, body.stride)


def masks_of(
    strategy: Masking, batch: Mapping[str, Tensor], attention: Float[Tensor, "b n"] | None = None
) -> Bool[Tensor, "b gy gx"]:
    """The masks of a batch of samples that `MaskDraws` added to; `attention` where the strategy ranks by it."""
    return strategy.mask(batch, batch.get(SCORES) if strategy.scores == "keypoints" else attention)


def hidden_places(mask: Bool[Tensor, "b n"], slots: Int[Tensor, " hidden"]) -> Int[Tensor, " hidden"]:
    """Indices of the hidden patches in the flattened mask, in its order, found without waiting for a GPU.

    `slots` are those of as many hidden patches in each row as the mask hides there, once each row has its hidden
    patches first.

    >>> hidden_places(torch.tensor([[False, True, True], [True, False, False]]), torch.tensor([0, 1, 3]))
    tensor([1, 2, 3])
    """
    rows, patches = mask.shape
    order = mask.byte().argsort(dim=1, descending=True, stable=True)
    first = patches * torch.arange(rows, device=mask.device)
    return (order + first[:, None]).flatten().index_select(0, slots)


def count_hidden(strategy: Masking, grid: Grid, patch_size: int, amount: Amount) -> int:
    """Patches that a strategy hides, which hides as many of every picture: found by asking it for one mask."""
    with torch.random.fork_rng(devices=[]):
        drawn = {name: value[None] for name, value in strategy.draw(grid, patch_size, amount).items()}
    return int(strategy.mask(drawn, torch.zeros(1, grid.area)).sum())
