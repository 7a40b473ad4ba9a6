"""transformers' ViT and Swin, for encoders that they hold exactly, with mask token and reconstruction head.

Written without transformers, in the names that its files have had since version 4 and that version 5 reads too.
"""

from dataclasses import asdict
from types import ModuleType
from typing import Any

from torch import Tensor

from ..checkpoints._layout import rename
from ..encoders import anatomy
from ..errors import UserError, some
from ..opening import OpenedModel
from ..reconstruction import MaskedImageModel
from ..swin_merging import at_stage_end
from . import _huggingface_swin, _huggingface_vit
from ._exported import FOLDER, Exported, evaluation, ours, token_order
from ._huggingface import unfused

_KINDS = (_huggingface_vit, _huggingface_swin)
# Pillow's numbers of filters
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_ENCODER = f'AutoModel.from_pretrained("{FOLDER}", add_pooling_layer=False)'
_MASKED = f'AutoModelForMaskedImageModeling.from_pretrained("{FOLDER}")'
_USAGE = f"""\
import torch
from PIL import Image
from transformers import AutoImageProcessor, %s

processor = AutoImageProcessor.from_pretrained("{FOLDER}")
model = %s.eval()
pixels = processor(Image.open("picture.jpg"), return_tensors="pt").pixel_values
with torch.no_grad():
    tokens = model.base_model(pixels).last_hidden_state  # %s
"""
_RECONSTRUCTION = """\
    hidden = torch.rand(1, %d) < %s  # which patches of %d px are hidden from it
    predicted = model(pixels, bool_masked_pos=hidden).reconstruction
"""


def export(opened: OpenedModel) -> Exported:
    """As `...ForMaskedImageModeling` where the model has SimMIM's head, else as the bare encoder.

    Raises UserError for an encoder that transformers' two classes cannot hold exactly.
    """
    kind = _kind(opened)
    masked = opened.masked_model if isinstance(opened.masked_model, MaskedImageModel) else None
    how = evaluation(opened)
    loading = _ENCODER if masked is None else _MASKED
    usage = _USAGE % (loading.split(".")[0], loading, token_order(opened))
    return Exported(
        library="transformers",
        tensors=_tensors(opened.encoder, kind, masked),
        configs={"config.json": _config(opened, kind, masked), "preprocessor_config.json": _preprocessing(how)},
        loading=loading,
        from_hub=loading.replace(FOLDER, "OWNER/NAME"),
        usage=usage + (_reconstruction(opened) if masked is not None else ""),
        notes=_notes(opened, how["crop_mode"]),
    )


def _kind(opened: OpenedModel) -> ModuleType:
    """Which of transformers' models holds the encoder. Raises UserError that names what does not fit."""
    encoder = opened.encoder
    kind = next((kind for kind in _KINDS if kind.matches(encoder)), None)
    if kind is None:
        name = f"{type(encoder).__name__} ({encoder.architecture})"
        what = f"it is timm's {name}, neither the plain VisionTransformer nor SwinTransformer"
    else:
        misfits = [misfit for misfit, there in kind.misfits(encoder).items() if there]
        misfits = misfits or rename(unfused(kind.weights(encoder)), kind.RULES).unknown
        if not misfits:
            return kind
        what = f"it has {some(misfits)}"
    raise UserError(
        f"{opened.label!r} does not fit transformers' ViT or Swin: {what}; use --format timm, for any encoder"
    )


def _tensors(encoder: Any, kind: ModuleType, masked: MaskedImageModel | None) -> dict[str, Tensor]:
    tensors = rename(unfused(at_stage_end(kind.weights(encoder))), kind.RULES).state
    if masked is None:
        return tensors
    head = {f"decoder.{name}": value for name, value in masked.decoder.state_dict().items()}
    token = {"embeddings.mask_token": masked.mask_token[None, None]}
    return {f"{kind.MODEL_TYPE}.{name}": value for name, value in (token | tensors).items()} | head


def _notes(opened: OpenedModel, crop_mode: str) -> tuple[str, ...]:
    """What these files do not hold."""
    notes = []
    if opened.masked_model is not None and not isinstance(opened.masked_model, MaskedImageModel):
        notes.append("the encoder alone: this form has no place for the decoder of a masked autoencoder")
    if crop_mode == "border":
        notes.append("the image processor crops pictures that timm's transform would pad")
    return tuple(notes)


def _config(opened: OpenedModel, kind: ModuleType, masked: MaskedImageModel | None) -> dict[str, Any]:
    body = anatomy(opened.encoder)
    purpose = "Model" if masked is None else "ForMaskedImageModeling"
    masking = asdict(opened.masking) if masked is not None else None
    return {
        "architectures": [kind.NAME + purpose],
        "model_type": kind.MODEL_TYPE,
        "image_size": body.image_size.height,
        "patch_size": body.mask_patch,
        "num_channels": opened.encoder.patch_embed.proj.in_channels,
        "hidden_act": "gelu",
        "encoder_stride": body.stride,
        **kind.config(opened.encoder),
        **ours(opened, masking=masking),
    }


def _preprocessing(how: dict[str, Any]) -> dict[str, Any]:
    """timm's evaluation in the words of an image processor of transformers that resizes and crops as timm does.

    ViT's own would squeeze each picture into a square. What remains: rounding, and an odd margin's extra pixel is cut
    off the other side. The last two words are timm's: transformers keeps them unread, we read them again.
    """
    side = how["input_size"][-1]
    resized = int(side / how["crop_pct"])
    squash = how["crop_mode"] == "squash"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resized, "width": resized} if squash else {"shortest_edge": resized},
        "resample": _RESAMPLE.get(how["interpolation"], _RESAMPLE["bicubic"]),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how["mean"]),
        "image_std": list(how["std"]),
        "crop_pct": how["crop_pct"],
        "crop_mode": how["crop_mode"],
    }


def _reconstruction(opened: OpenedModel) -> str:
    body = anatomy(opened.encoder)
    return _RECONSTRUCTION % (
        (body.image_size.height // body.mask_patch) ** 2,
        opened.masking.ratio,
        body.mask_patch,
    )
