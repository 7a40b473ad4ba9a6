"""The papers' names of what a manifest tells by its own: methods, encoders, data sets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._caption import architecture


class Sizes(NamedTuple):
    """How many classes a data set has, and how many pictures in its training and its validation split."""

    classes: int
    train: int
    test: int


#: methods by their names, letters and digits alone: class names of objectives and labels of models
METHODS = {
    "simmim": "SimMIM",
    "kamim": "KAMIM",
    "passsimmim": "PASS (SimMIM)",
    "dino": "DINO",
    "mst": "MST",
    "ibot": "iBOT",
    "attmaskhigh": "iBOT+AttMask-High",
    "ibotattmaskhigh": "iBOT+AttMask-High",
    "attmaskhint": "iBOT+AttMask-Hint",
    "ibotattmaskhint": "iBOT+AttMask-Hint",
    "attmasklow": "iBOT+AttMask-Low",
    "ibotattmasklow": "iBOT+AttMask-Low",
    "latentmim": "Latent MIM",
    "mae": "MAE",
}
# a directory or data set of this name, letters and digits alone, is taken for it where its number of classes agrees
_DATA = {
    "imagenet": "ImageNet-1k", "imagenet1k": "ImageNet-1k", "in1k": "ImageNet-1k", "imagenet2012": "ImageNet-1k",
    "ilsvrc2012": "ImageNet-1k", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "places365": "Places365",
    "inaturalist": "iNat-21", "inat21": "iNat-21", "inat2021": "iNat-21", "inaturalist2021": "iNat-21",
}  # fmt: skip
#: of the data sets that the papers use; a number of fewer pictures is another number
SIZES = {
    "ImageNet-1k": Sizes(1000, 1_281_167, 50_000),
    "CIFAR-10": Sizes(10, 50_000, 10_000),
    "CIFAR-100": Sizes(100, 50_000, 10_000),
    "iNat-21": Sizes(10_000, 2_686_843, 100_000),
    "Places365": Sizes(365, 1_803_460, 36_500),
}
_WORDNET = re.compile(r"n\d{8}")
_VIT = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
_VIT_LETTER = {(192, 12): "T", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
_SWIN = {"tiny": (96, (2, 2, 6, 2)), "small": (96, (2, 2, 18, 2)), "base": (128, (2, 2, 18, 2))}


def letters(text: str) -> str:
    """Letters and digits alone, in small letters: what is compared of names.

    >>> letters("iBOT + AttMask-High")
    'ibotattmaskhigh'
    """
    return re.sub(r"[^a-z0-9]", "", text.lower())


def method_of_label(label: str, encoder: str) -> str | None:
    """The method whose name a label is, alone or with the model's own encoder behind it; else None.

    >>> method_of_label("kamim", "ViT-B"), method_of_label("KAMIM ViT-B/16", "ViT-B")
    ('KAMIM', 'KAMIM')
    >>> method_of_label("KAMIM ViT-B", "ViT-S"), method_of_label("my KAMIM", "ViT-B")
    (None, None)
    """
    name = letters(label)
    endings = ("", letters(encoder), letters(f"{encoder}/16"))
    return next((METHODS[name.removesuffix(end)] for end in endings if name.removesuffix(end) in METHODS), None)


def encoder(entry: Mapping[str, Any]) -> str:
    """The papers' name of a plain ViT or Swin; a ViT of other sizes by these; others as figures call them.

    >>> encoder({"architecture": "vit_base_patch16_224", "model_args": {"img_size": 192}})
    'ViT-B'
    >>> encoder({"architecture": "vit_base_patch16_224", "model_args": {"embed_dim": 96, "depth": 8}})
    'ViT of 96 channels and 8 layers'
    >>> encoder({"architecture": "swin_base_patch4_window7_224"})
    'Swin-B'
    """
    name, arguments = str(entry["architecture"]), entry.get("model_args") or {}
    vit = re.match(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch\d+", name)
    if vit:
        width, depth = _VIT[vit[1]]
        sizes = int(arguments.get("embed_dim", width)), int(arguments.get("depth", depth))
        return (
            f"ViT-{_VIT_LETTER[sizes]}" if sizes in _VIT_LETTER else "ViT of {} channels and {} layers".format(*sizes)
        )
    swin = re.match(r"swin_(tiny|small|base)_patch4", name)
    if swin:
        width, depths = _SWIN[swin[1]]
        if (arguments.get("embed_dim", width), tuple(arguments.get("depths", depths))) == (width, depths):
            return f"Swin-{swin[1][0].upper()}"
    return architecture(entry)


def data_set(source: str, classes: Sequence[str] | None = None) -> str:
    """The papers' name of a data set; a directory's own name, or what else `--data` was, where it is none of theirs.

    A data set's name counts only with its number of classes; a thousand WordNet numbers are ImageNet-1k's anywhere.

    >>> data_set("torch/imagenet"), data_set("/data/imagenet", ["cat", "dog"])
    ('ImageNet-1k', 'imagenet')
    """
    parts = [part for part in source.replace("\\", "/").split("/") if part]
    short = parts[-1] if parts else source
    known = _DATA.get(letters(short))
    if known and (classes is None or len(classes) == SIZES[known].classes):
        return known
    if classes and len(classes) == SIZES["ImageNet-1k"].classes and all(map(_WORDNET.fullmatch, classes)):
        return f"ImageNet-1k ({short})"
    return short
