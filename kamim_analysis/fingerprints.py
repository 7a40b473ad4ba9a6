"""What tells an encoder and a collection of pictures apart from others, whatever they are called and wherever they lie.

SHA-256 of everything that a feature depends on: the same numbers come of the same fingerprints, to the rounding of the
device, the batch size and the version of torch.
"""

import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .data import Pictures
from .opening import OpenedModel


def describe_encoder(opened: OpenedModel) -> dict[str, Any]:
    """Architecture, its arguments, the evaluation transform and the weights' fingerprint, as JSON gives them back."""
    named = {name: opened.provenance[name] for name in ("architecture", "model_args", "transform")}
    described: dict[str, Any] = json.loads(json.dumps(named, sort_keys=True, default=str))
    return described | {"weights": weights_fingerprint(opened.encoder)}


def weights_fingerprint(encoder: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of each entry of the state, and over each norm's epsilon.

    The epsilon changes the function, and is no argument of every timm model.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    for path, module in encoder.named_modules():
        if hasattr(module, "eps"):
            digest.update(f"{path} {module.eps!r}\n".encode())
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def pictures_fingerprint(pictures: Pictures) -> str:
    """SHA-256 over what marks each picture (`Pictures.stamp`) and over its label, in order.

    Nothing is decoded, so a file that another of the very same name and size in bytes has replaced is not noticed, nor
    are labels that are known only after reading.
    """
    labels = [] if pictures.labels is None else [int(label) for label in pictures.labels]
    return _digest(chain((pictures.stamp(i) for i in range(len(pictures))), map(str, labels)))


def indices_fingerprint(indices: Iterable[int]) -> str:
    """SHA-256 over which pictures were chosen."""
    return _digest(map(str, indices))


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
