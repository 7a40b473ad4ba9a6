"""Attention maps: what one patch of a picture attends to (KAMIM, figure 5)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ._analysis import Analysis, Batch, Findings, Site, Subject

QUESTION = "What does a given patch attend to?"
HOW_TO_READ = "Bright patches receive more of the centre patch's attention; 1 is uniform attention."
SOURCE = "KAMIM, figure 5"
COST = "inside the hooks, of a few pictures"
BY_DEFAULT = True
_IMAGES = 4


class AttentionMaps(Analysis):
    """The last layer's patch-to-patch attention of the first four images, every head and query."""

    SITES: ClassVar[frozenset[Site]] = frozenset({"patch_attention"})
    FILE: ClassVar[str] = "attention"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending: list[Tensor] = []
        self.add_lists("maps", "pixels")

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """The last layer."""
        return [self.subject.layers] if site in self.SITES else []

    def _room(self) -> int:
        return _IMAGES - self.count("pixels")

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Keep the first images' attention; half precision is enough for a picture."""
        kept = sum(map(len, self._pending))
        if site in self.SITES and layer == self.subject.layers and self._room() > kept:
            self._pending.append(values[: self._room() - kept].half())

    def update(self, batch: Batch) -> None:
        """Close a batch."""
        room = self._room()
        if room > 0:
            self.append("maps", torch.cat(self._pending))
            self.append("pixels", to_pixels(batch.images[:room], self.subject))
        self._pending = []

    def compute(self) -> Findings:
        """Arrays `maps` [images, heads, N, N] and `pixels`, the pictures, uint8 [images, H, W, 3]."""
        arrays = {name: self.collected(name)[:_IMAGES].numpy() for name in ("maps", "pixels")}
        return Findings("attention_maps", arrays)


def to_pixels(images: Tensor, subject: Subject) -> Tensor:
    """Normalised images [B, 3, H, W] as pictures, uint8 [B, H, W, 3]."""
    shape = (1, 3, 1, 1)
    mean, std = images.new_tensor(subject.mean).view(shape), images.new_tensor(subject.std).view(shape)
    return ((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
