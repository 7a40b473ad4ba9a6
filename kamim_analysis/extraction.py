"""Features of chosen layers and poolings of a frozen encoder, all in one pass over the pictures."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from rich.progress import track
from torch import Tensor, nn

from . import plugins, processes
from .data import Pictures, Unreadable
from .encoders import anatomy, evaluating, patch_tokens
from .errors import UserError
from .evaluation_set import ImageBatch, image_batches
from .models._anatomy import Anatomy
from .opening import OpenedModel
from .poolings._pooling import LayerTokens, Pooling
from .recorder import Kind, record
from .runtime import best_device, progress_console

POOLINGS = "kamim_analysis.poolings"
#: names that stand for what is kept unpooled: the patch tokens [N, C], and the weights of cls_attention [N]
PATCHES, CLS_WEIGHTS = "patches", "cls_weights"
Norm = Literal["none", "last", "all"]
"""Which layers' tokens go through the encoder's final norm before they are pooled. `last`: the last layer's alone, as
in timm's `forward_features`; earlier layers raw."""
Key = tuple[int, str]
"""Layer and pooling."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to take from each picture."""

    layers: tuple[int, ...]
    poolings: tuple[str, ...] = ("mean",)
    """Parameter-free poolings by name, or `PATCHES`, or `CLS_WEIGHTS`."""
    norm: Norm = "last"

    def normed(self, layer: int, last: int) -> bool:
        """Whether the final norm is applied to a layer."""
        return self.norm == "all" or (self.norm == "last" and layer == last)


@dataclass(frozen=True)
class Loading:
    """How pictures come in; `batch_size` may change features by rounding."""

    batch_size: int = 32
    workers: int = 2


@runtime_checkable
class Rows(Protocol):
    """Features of one layer and pooling that can be read a few pictures at a time; a tensor is one."""

    @property
    def shape(self) -> torch.Size:
        """[images, ...], as `Features.by_key` tells."""

    def __getitem__(self, positions: Int64[Tensor, " b"], /) -> Tensor:
        """Those of the pictures at these positions, in this order: [b, ...], float32."""


@dataclass(frozen=True)
class Features:
    """What was taken of the pictures that could be read, in their order."""

    indices: Int64[Tensor, " i"]
    """Numbers of the pictures in their data."""
    labels: Int64[Tensor, " i"]
    by_key: Mapping[Key, Shaped[Tensor, "i ..."]]
    """[images, C] for poolings, [images, N, C] for `PATCHES`, [images, N] for `CLS_WEIGHTS`; float32 on the CPU.

    Those of a store are read when they are asked for, and not kept.
    """
    stored: Mapping[Key, Rows] | None = None
    """The same, where they lie in a store."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, key: Key) -> Rows:
        """Features to be read in batches: `rows(key)[positions]`. Of a store, no more than those is ever in memory."""
        return (self.stored or self.by_key)[key]


def resolve_layers(chosen: Sequence[int] | Literal["all"], encoder: nn.Module) -> tuple[int, ...]:
    """Layers by number, 0 the embedding; negative ones count from the last, "all" is every one.

    Raises UserError for a layer that does not exist.
    """
    last = len(anatomy(encoder).blocks)
    if chosen == "all":
        return tuple(range(last + 1))
    found = [layer + last + 1 if layer < 0 else layer for layer in chosen]
    for asked, layer in zip(chosen, found, strict=True):
        if not 0 <= layer <= last:
            raise UserError(f"layer {asked} does not exist: this encoder has layers 0 (the embedding) to {last}")
    return tuple(dict.fromkeys(found))


@cache
def pooling_class(name: str) -> type[Pooling]:
    """The pooling of a name. Raises UserError for an unknown one."""
    module = plugins.load(POOLINGS, name, "pooling")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Pooling) and value.__module__ == module.__name__
    )
    return found


def parameter_free() -> list[str]:
    """Names of the poolings that learn nothing."""
    return [name for name in plugins.names(POOLINGS) if not pooling_class(name).LEARNED]


def default_poolings(encoder: nn.Module) -> list[str]:
    """The parameter-free poolings that an encoder offers, less those that need attention, which slows the pass."""
    has_cls = anatomy(encoder).has_cls
    classes = {name: pooling_class(name) for name in parameter_free()}
    return [name for name, one in classes.items() if not one.NEEDS_ATTENTION and (has_cls or not one.NEEDS_CLS)]


class Extractor:
    """Callable on normalised images [B, 3, H, W]: features on their device by layer and pooling.

    Raises UserError for a pooling that the encoder does not offer, and for a final norm that does not fit a layer.
    """

    def __init__(self, encoder: Any, wanted: Wanted) -> None:
        self.encoder, self.wanted = encoder, wanted
        self.body: Anatomy = anatomy(encoder)
        self.last = len(self.body.blocks)
        if wanted.norm == "all" and getattr(encoder, "norm", None) is None:
            raise UserError("this encoder has no final norm to apply to earlier layers; take --norm last")
        for name in wanted.poolings:
            self._check(name)
        #: in the order in which they are computed
        self.keys: list[Key] = [
            (layer, name) for layer in wanted.layers for name in wanted.poolings if self._offers(layer, name)
        ]
        self._taken: dict[Key, Tensor] = {}
        self._cls_attention: dict[int, Tensor] = {}

    def _check(self, name: str) -> None:
        if _needs_cls(name) and not self.body.has_cls:
            raise UserError(f"this encoder has no cls token, which {name!r} needs; use --pooling mean")
        if name not in (PATCHES, CLS_WEIGHTS) and pooling_class(name).LEARNED:
            raise UserError(f"pooling {name!r} is learned; parameter-free are {', '.join(parameter_free())}")

    def _offers(self, layer: int, name: str) -> bool:
        """The embedding has no attention; encoders whose cls joins late have none before."""
        if _needs_cls(name) and not self._prefix(layer):
            return False
        return layer > 0 or not _needs_attention(name)

    def _prefix(self, layer: int) -> int:
        return self.body.blocks[max(layer - 1, 0)].prefix_tokens

    def __call__(self, images: Float[Tensor, "b 3 y x"]) -> dict[Key, Tensor]:
        """One forward pass, hooks only within it."""
        self._taken = {}
        # what forward_features returns of the last layer is after the final norm already
        hooked = [i for i in self.wanted.layers if i != self.last or self.wanted.norm == "none"]
        attention = sorted({layer for layer, name in self.keys if _needs_attention(name)})
        with (
            evaluating(self.encoder),
            record(self.encoder, attention=attention, tokens=hooked, sink=self._hear),
        ):
            tokens = self.encoder.forward_features(images)
        if self.last in self.wanted.layers and self.last not in hooked:
            self._take(self.last, tokens)
        self._cls_attention = {}
        return {key: self._taken[key] for key in self.keys}

    def _hear(self, kind: Kind, layer: int, values: Tensor) -> None:
        if kind == "attention":
            of_patches = values[:, :, 0, self._prefix(layer) :].float().mean(1)
            self._cls_attention[layer] = of_patches / of_patches.sum(1, keepdim=True)
            return
        if self.wanted.normed(layer, self.last):
            if values.shape[-1] != self.body.width:
                raise UserError(f"layer {layer} is narrower than the final norm; take --norm last for this encoder")
            values = self.encoder.norm(values)
        self._take(layer, values)

    def _take(self, layer: int, tokens: Tensor) -> None:
        prefix = self._prefix(layer)
        patches = patch_tokens(tokens, prefix).float()
        # a copy: a view would keep all tokens of the layer in memory for as long as the feature is kept
        cls = tokens[:, 0].float().clone() if prefix and self.body.has_cls else None
        grid = self.body.blocks[max(layer - 1, 0)].grid
        given = LayerTokens(patches, grid, cls, self._cls_attention.pop(layer, None))
        for key in self.keys:
            if key[0] == layer:
                self._taken[key] = _pooled(given, key[1])


def _needs_cls(name: str) -> bool:
    return name == CLS_WEIGHTS or (name != PATCHES and pooling_class(name).NEEDS_CLS)


def _needs_attention(name: str) -> bool:
    return name == CLS_WEIGHTS or (name != PATCHES and pooling_class(name).NEEDS_ATTENTION)


def _pooled(layer: LayerTokens, name: str) -> Tensor:
    if name == PATCHES:
        return layer.patches
    if name == CLS_WEIGHTS:
        assert layer.cls_attention is not None
        return layer.cls_attention
    pooled: Tensor = _pooling(name, layer.patches.shape[-1])(layer)
    return pooled


@cache
def _pooling(name: str, width: int) -> Pooling:
    return pooling_class(name)(width)


def batches_of(
    opened: OpenedModel,
    pictures: Pictures,
    indices: Sequence[int],
    unreadable: Unreadable,
    loading: Loading,
    what: str,
) -> Generator[ImageBatch, None, None]:
    """Batches of the pictures at `indices`, with a progress bar."""
    batches = image_batches(
        pictures, indices, opened.transform, unreadable, batch_size=loading.batch_size, workers=loading.workers
    )
    total = -(-len(indices) // loading.batch_size)
    description, quiet = f"{opened.label}: {what}", not processes.is_first()
    # once a second: where all cores compute, rich's ten times would cost some percent of the rate
    yield from track(
        batches, description, total=total, console=progress_console(), disable=quiet,
        refresh_per_second=1, update_period=1.0,
    )  # fmt: skip


def extract(
    opened: OpenedModel,
    pictures: Pictures,
    indices: Sequence[int],
    wanted: Wanted,
    unreadable: Unreadable,
    loading: Loading,
    what: str = "features",
) -> Features:
    """Features of the pictures at `indices`, in memory; those of all processes in each.

    Raises UserError for features that are not finite, naming layer and picture.
    """
    device = best_device()
    extractor = Extractor(opened.encoder.to(device), wanted)
    indices = processes.own(indices, loading.batch_size)
    kept: dict[Key, list[Tensor]] = {key: [] for key in extractor.keys}
    numbers, labels = [], []
    # closed at once after an error, so that the progress bar ends before the error is told
    with closing(batches_of(opened, pictures, indices, unreadable, loading, what)) as batches:
        for batch in batches:
            features = extractor(batch.images.to(device, non_blocking=True))
            check_finite(features, batch.indices, pictures, opened.label)
            for key, values in features.items():
                kept[key].append(values.cpu())
            numbers.append(batch.indices)
            labels.append(batch.labels)
    if not labels:
        raise UserError(f"none of the {len(indices)} images of {pictures.name} could be read")
    by_key = {key: processes.gathered(torch.cat(parts)) for key, parts in kept.items()}
    return Features(processes.gathered(torch.cat(numbers)), processes.gathered(torch.cat(labels)), by_key)


def check_finite(features: Mapping[Key, Tensor], indices: Int64[Tensor, " b"], pictures: Pictures, label: str) -> None:
    """Raise UserError for the first feature that is NaN or infinite."""
    finite = {key: values.flatten(1).isfinite().all(1) for key, values in features.items()}
    if not finite or bool(torch.stack(list(finite.values())).all()):  # a single wait for the device
        return
    for (layer, name), good in finite.items():
        if not good.all():
            image = pictures.identity(int(indices[int(good.logical_not().nonzero()[0])]))
            raise UserError(
                f"{label}: layer {layer} ({name}) of image {image!r} is not finite (NaN or infinity); are its weights "
                "damaged?"
            )
