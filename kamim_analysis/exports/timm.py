"""timm's layout on the hub, for any encoder: `timm.create_model("local-dir:DIR", pretrained=True)`.

config.json is written here and not by `timm.models.save_for_hf`, which copies licence, tag and crop of the weights
that timm itself publishes under the architecture's name, whatever weights it is given.
"""

from typing import Any

from torch import nn

from .. import encoders
from ..opening import OpenedModel
from ..swin_merging import at_stage_end
from ._exported import FOLDER, Exported, evaluation, ours, token_order

_LOADING = f'timm.create_model("local-dir:{FOLDER}", pretrained=True)'
_USAGE = f"""\
import timm
import torch
from PIL import Image

model = {_LOADING}.eval()
%stransform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
picture = Image.open("picture.jpg").convert("RGB")
with torch.no_grad():
    tokens = model.forward_features(transform(picture)[None])  # %s
"""
_SET_EPS = """\
for name, module in model.named_modules():
    if isinstance(module, torch.nn.LayerNorm)%s:
        module.eps = %s  # timm has no argument for it
"""


def export(opened: OpenedModel) -> Exported:
    """The encoder; mask token and head of a masked image model have no place in timm's layout."""
    arguments = _arguments(opened.encoder)
    eps, setting = _unexpected_eps(opened.encoder, arguments)
    notes = []
    if opened.masked_model is not None:
        notes.append("the encoder alone: timm's layout has no place for mask token and reconstruction head")
    if eps is not None:
        notes.append(f"timm builds LayerNorms with another epsilon than these weights' {eps}: set it after loading")
    return Exported(
        library="timm",
        tensors=at_stage_end(opened.encoder.state_dict()),
        configs={"config.json": _config(opened, arguments) | ours(opened, layer_norm_eps=eps)},
        loading=_LOADING,
        from_hub='timm.create_model("hf-hub:OWNER/NAME", pretrained=True)',
        usage=_USAGE % (setting, token_order(opened)),
        notes=tuple(notes),
    )


def _arguments(encoder: Any) -> dict[str, Any]:
    """All that timm needs to build the encoder, its image size included."""
    size = encoders.anatomy(encoder).image_size
    side = size.height if size.height == size.width else list(size)
    given = {name: value for name, value in encoder.model_args.items() if value is not None}
    return {"img_size": side} | given


def _config(opened: OpenedModel, arguments: dict[str, Any]) -> dict[str, Any]:
    encoder = opened.encoder
    adapting = ("fixed_input_size", "pool_size", "first_conv", "classifier")
    return {
        "architecture": encoder.architecture.split(".")[0],
        "num_classes": 0,
        "num_features": encoder.num_features,
        "model_args": arguments,
        # what timm asks of it when other channels or a classifier are wanted, and how pictures are prepared: no more
        "pretrained_cfg": {key: encoder.pretrained_cfg.get(key) for key in adapting}
        | evaluation(opened)
        | {"num_classes": 0},
    }


def _unexpected_eps(encoder: Any, arguments: dict[str, Any]) -> tuple[float | None, str]:
    """The epsilon of the LayerNorms where timm would build another, and the lines that set it; None where not."""
    wanted = _layer_norm_eps(encoder)
    built = _layer_norm_eps(encoders.build_empty(encoder.architecture, arguments))
    differing = {name for name in wanted if wanted[name] != built[name]}
    if not differing:
        return None, ""
    eps = max(wanted[name] for name in differing)
    # Swin's embedding and merging norms keep torch's own
    others = sorted({".".join(name.split(".")[-2:]) for name in wanted.keys() - differing})
    return eps, _SET_EPS % (f" and not name.endswith({tuple(others)})" if others else "", eps)


def _layer_norm_eps(module: nn.Module) -> dict[str, float]:
    return {name: norm.eps for name, norm in module.named_modules() if isinstance(norm, nn.LayerNorm)}
