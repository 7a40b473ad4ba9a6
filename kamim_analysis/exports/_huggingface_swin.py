"""timm's `SwinTransformer` as transformers' Swin."""

from typing import Any

from torch import nn

from ..checkpoints._layout import Rules, State, mlp_ratio
from ._huggingface import block_misfits, block_rules, image_misfits

MODEL_TYPE, NAME = "swin", "Swin"
_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_THEIRS = r"encoder.layers.\1.blocks.\2."
RULES: Rules = (
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(weight|bias)", r"embeddings.norm.\1"),
    *block_rules(_BLOCK, _THEIRS, "self"),
    (rf"{_BLOCK}attn\.(relative_position_(?:bias_table|index))", rf"{_THEIRS}attention.self.\3"),
    (r"(layers\.\d+\.downsample\.(?:norm\.(?:weight|bias)|reduction\.weight))", r"encoder.\1"),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
)
# of the norms in transformers' patch embedding and patch merging, whatever the config says
_FIXED_EPS = 1e-5


def matches(encoder: nn.Module) -> bool:
    """Whether it is the first Swin, not its second version."""
    from timm.models.swin_transformer import SwinTransformer

    return type(encoder) is SwinTransformer


def weights(encoder: nn.Module) -> State:
    """With the index of relative positions, which version 4 of transformers misses aloud and version 5 passes over."""
    index = "relative_position_index"
    return encoder.state_dict() | {name: value for name, value in encoder.named_buffers() if name.endswith(index)}


def misfits(encoder: Any) -> dict[str, bool]:
    """What transformers' Swin cannot hold, by what is said of it; True where it is the case."""
    from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention

    blocks = [block for stage in encoder.layers for block in stage.blocks]
    embedding = [norm.eps for name, norm in _norms(encoder).items() if ".blocks." not in name and name != "norm"]
    others = {norm.eps for name, norm in _norms(encoder).items() if ".blocks." in name or name == "norm"}
    windows = {window for block in blocks for window in block.window_size}
    return {
        "widths that do not double from stage to stage": not _doubles(encoder),
        "windows that differ or are not square": len(windows) > 1,
        "grids that windows do not tile": any(side % window for block in blocks for side, window in _sides(block)),
        "windows shifted where one holds the whole grid": not all(_shifts_as_theirs(stage) for stage in encoder.layers),
        "MLPs whose ratio differs between stages": not _is_ratio(_ratio(encoder), blocks),
        "LayerNorms of several epsilons": len(others) > 1,
        f"an epsilon other than {_FIXED_EPS} where patches are embedded and merged": {*embedding} != {_FIXED_EPS},
        **image_misfits(encoder),
        **block_misfits(blocks, SwinTransformerBlock, WindowAttention),
    }


def _norms(encoder: nn.Module) -> dict[str, nn.LayerNorm]:
    return {name: norm for name, norm in encoder.named_modules() if isinstance(norm, nn.LayerNorm)}


def _doubles(encoder: Any) -> bool:
    return all(stage.blocks[0].dim == encoder.layers[0].blocks[0].dim * 2**i for i, stage in enumerate(encoder.layers))


def _sides(block: Any) -> list[tuple[int, int]]:
    return [*zip(block.input_resolution, block.window_size, strict=True)]


def _shifts_as_theirs(stage: Any) -> bool:
    """Every other block, by half a window, unless one window holds the whole grid."""
    return all(
        shift == (0 if i % 2 == 0 or side <= window else window // 2)
        for i, block in enumerate(stage.blocks)
        for shift, (side, window) in zip(block.shift_size, _sides(block), strict=True)
    )


def _ratio(encoder: Any) -> float:
    """Hidden width over width, as a plain number where one gives the hidden width of all stages."""
    last = encoder.layers[-1].blocks[0]
    hidden, width = last.mlp.fc1.out_features, last.dim
    plain = hidden / width
    blocks = [block for stage in encoder.layers for block in stage.blocks]
    return plain if _is_ratio(plain, blocks) else mlp_ratio(hidden, width)


def _is_ratio(ratio: float, blocks: list[Any]) -> bool:
    return all(int(ratio * block.dim) == block.mlp.fc1.out_features for block in blocks)


def config(encoder: Any) -> dict[str, Any]:
    """The keys of `SwinConfig` for what its tensors do not tell."""
    block = encoder.layers[0].blocks[0]
    return {
        "embed_dim": block.dim,
        "depths": [len(stage.blocks) for stage in encoder.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in encoder.layers],
        "window_size": block.window_size[0],
        "mlp_ratio": _ratio(encoder),
        "qkv_bias": block.attn.qkv.bias is not None,
        "use_absolute_embeddings": False,
        # of training only
        "drop_path_rate": getattr(encoder.layers[-1].blocks[-1].drop_path1, "drop_prob", 0.0),
        "layer_norm_eps": block.norm1.eps,
    }
