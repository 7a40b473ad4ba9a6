"""What an analysis offers to the one-pass suite."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from kamim_analysis.models._anatomy import Anatomy, Block
from kamim_analysis.reconstruction import MaskSettings, Reconstructs
from kamim_analysis.results import Row, Samples, rows_by_head, rows_of

Site = Literal["attention", "patch_attention", "tokens", "attention_input", "attention_output", "after_attention"]
"""What hooks hand over: `attention` [B, heads, T, T] over all tokens, `patch_attention` [B, heads, N, N] over patches,
rows summing to one; the others [B, T, C]."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model under analysis and the circumstances."""

    label: str
    anatomy: Anatomy
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    encoder: Any = None
    """The timm model, for analyses that need further passes."""
    masked_model: Reconstructs | None = None
    masking: MaskSettings = field(default_factory=MaskSettings)
    classes: int | None = None
    pooling: str = "mean"
    seed: int = 0

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.anatomy.blocks)

    def generator(self, index: int) -> torch.Generator:
        """What is drawn for an image depends on the seed and its number alone."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + index)

    def block(self, layer: int) -> Block:
        """The block whose output is `layer`; layer 0, the embedding, lies on the first block's grid."""
        return self.anatomy.blocks[max(layer - 1, 0)]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a forward pass leaves when it is done."""

    images: Float[Tensor, "b 3 y x"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]
    features: Float[Tensor, "b d"]
    """One vector for each image: pooled tokens of the last layer after the encoder's final norm."""


class Findings:
    """The numbers of one analysis with their intervals, each image's own values, and arrays for what is not a number.

    No dataclass and no tuple: torchmetrics would walk through those, row by row.
    """

    def __init__(self, analysis: str, arrays: dict[str, NDArray[Any]] | None = None, *, protocol: str = "") -> None:
        self.analysis, self.arrays, self.protocol = analysis, arrays or {}, protocol
        #: why there is nothing to tell of these images; empty where there is
        self.absent = ""
        self.rows: list[Row] = []
        #: [images] by analysis, statistic and layer: what a comparison of two models on the same images pairs
        self.samples: Samples = {}

    def add(
        self, statistic: str, values: NDArray[np.floating] | NDArray[np.bool_], layers: Sequence[int | None]
    ) -> None:
        """Each image's number or whether it is right, at each layer, [images, layers]: rows of means with intervals."""
        self.rows += rows_of(self.analysis, statistic, values, layers=layers, protocol=self.protocol)
        for i, layer in enumerate(layers):
            self.samples[self.analysis, statistic, layer] = values[:, i].astype(np.float32)

    def add_by_head(
        self, statistic: str, values: Sequence[NDArray[np.floating]], layers: Sequence[int] | None = None
    ) -> None:
        """Each image's number at each head, [images, heads] for each layer: rows of heads and of their mean.

        `layers`: 1, 2, ... unless given.
        """
        layers = layers or range(1, len(values) + 1)
        self.rows += rows_by_head(self.analysis, statistic, values, layers)
        for layer, by_head in zip(layers, values, strict=True):
            self.samples[self.analysis, statistic, layer] = by_head.mean(1).astype(np.float32)


class Analysis(Metric, ABC):
    """An analysis of one model, fed batch by batch; its states are per image, so processes merge by concatenation.

    During the forward pass `observe` is called for every site the analysis wants; after it `update` closes the batch.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset()
    #: the npz file that its arrays go to
    FILE: ClassVar[str] = "tokens"
    WANTS_BANK: ClassVar[bool] = False
    #: images that it looks at: the first, which are drawn at random; None for all
    MOST: ClassVar[int | None] = None

    full_state_update = False

    def __init__(self, subject: Subject) -> None:
        # the suite says when: an analysis of the first process alone must not wait for the others
        super().__init__(sync_on_compute=False)
        self.subject = subject

    def add_lists(self, *names: str) -> None:
        """States that grow by concatenation along the image axis, in this process and across processes."""
        for name in names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def append(self, name: str, values: Shaped[Tensor, "b ..."]) -> None:
        """Add this batch's part to a state.

        Parts are merged as a binary counter carries, so that a state is a handful of tensors however many batches:
        small ones kept among large temporaries would leave holes that grow the process by hundreds of megabytes.
        """
        parts = cast(list[Tensor], getattr(self, name))
        parts.append(values)
        while len(parts) > 1 and len(parts[-2]) <= len(parts[-1]):
            parts[-2:] = [torch.cat(parts[-2:])]

    def count(self, name: str) -> int:
        """Images in a state so far."""
        state: list[Tensor] | Tensor = getattr(self, name)
        return len(state) if isinstance(state, Tensor) else sum(map(len, state))

    def collected(self, name: str) -> Shaped[Tensor, "i ..."]:
        """A whole state on the CPU, after torchmetrics' synchronisation too, which makes one tensor of a list.

        The batch that reaches `MOST` may go beyond, and each process has seen so many: they are left out here.
        """
        whole: Tensor = dim_zero_cat(getattr(self, name))
        return whole[: self.MOST].cpu()

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Why this model cannot be analysed so; None if it can."""
        del subject
        return None

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """Layers of a site to be observed: all, unless an analysis needs fewer."""
        return range(0 if site == "tokens" else 1, self.subject.layers + 1)

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Take what a hook hands over, reduce it, let it go. Windowed attention comes in several parts."""

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Close a batch."""

    def update_bank(self, features: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> None:
        """Take features of training images, if `WANTS_BANK`."""

    @abstractmethod
    def compute(self) -> Findings:
        """The numbers over all images."""


class PerImage(Analysis):
    """An analysis whose numbers are a vector of each image at each layer, [B, ...] from one site."""

    LEAST_LAYER: ClassVar[int] = 1

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending: dict[str, list[Tensor]] = {}
        self.add_lists(*self.keys())

    def keys(self) -> list[str]:
        """Names of the states, in order: one for each layer here."""
        return [f"layer{i}" for i in range(self.LEAST_LAYER, self.subject.layers + 1)]

    def put(self, key: str, values: Float[Tensor, "b ..."]) -> None:
        """Hold numbers of this batch's images until it is closed."""
        self._pending.setdefault(key, []).append(values)

    def update(self, batch: Batch) -> None:
        """Move this batch's numbers to the states. Raises RuntimeError when a site stayed silent."""
        silent = [key for key in self.keys() if sum(map(len, self._pending.get(key, []))) != len(batch.images)]
        if silent:
            raise RuntimeError(f"{type(self).__name__} did not see {', '.join(silent)} of every image")
        for key, parts in self._pending.items():
            self.append(key, torch.cat(parts))
        self._pending = {}

    def values(self, key: str) -> NDArray[np.float64]:
        """All images' numbers of one state, [images, ...]."""
        return as_array(self.collected(key))


def only_single_patches(subject: Subject) -> str | None:
    """Why nothing between patches can be said of a model whose layers all have one; None where some have more."""
    most = max(block.grid.area for block in subject.anatomy.blocks)
    return "its pictures are of a single patch" if most < 2 else None


def as_array(values: Shaped[Tensor, "..."]) -> NDArray[np.float64]:
    """A tensor as an array for statistics."""
    array: NDArray[np.float64] = values.double().numpy()
    return array
