"""Models in the layouts of their authors, and what those compute: float64, straight from the keys of the state dict.

The reference knows nothing of timm. It follows the papers' definitions (ViT 2010.11929, MAE 2111.06377, BEiT
2106.08254, Swin 2103.14030, registers 2309.16588, DINOv3 2508.10104) under the names of the public files.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kamim_analysis.recorder import record

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
# the smallest on which rows, columns and colours cannot be mistaken for each other
GRID, PATCH, REGISTERS = 3, 4, 3
_MLP = {"fc": ("fc1", "fc2"), "w12": ("w12", "w3"), "w123": ("w1", "w2", "w3")}


def block_shapes(
    prefix: str,
    *,
    width: int = 64,
    hidden: int = 96,
    heads: int = 4,
    qkv_bias: tuple[str, ...] = ("qkv.bias",),
    scale: str = "",
    table: bool = False,
    mlp: str = "fc",
) -> Shapes:
    """Shapes of one block; `scale` is the format's name of layer scale, `table` a relative position bias of its own."""
    wide = 3 * width
    biases = {"qkv.bias": wide, "qkv.bias_mask": wide, "q_bias": width, "v_bias": width}
    *up, down = _MLP[mlp]
    linear = {"attn.proj": (width, width), f"mlp.{down}": (width, hidden)}
    linear |= {f"mlp.{name}": (2 * hidden if name == "w12" else hidden, width) for name in up}
    shapes: Shapes = {"attn.qkv.weight": (wide, width)} | {f"attn.{name}": (biases[name],) for name in qkv_bias}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in (1, 2):
        shapes |= {f"norm{i}.weight": (width,), f"norm{i}.bias": (width,)}
        shapes |= {scale.format(i): (width,)} if scale else {}
    if table:
        shapes["attn.relative_position_bias_table"] = ((2 * GRID - 1) ** 2 + 3, heads)
    return {prefix + name: shape for name, shape in shapes.items()}


def vit_shapes(
    *,
    width: int = 64,
    depth: int = 2,
    embedding: bool = True,
    cls: bool = True,
    positions: bool = True,
    registers: str = "",
    shared_table: bool = False,
    norm: str = "norm",
    extra: Shapes | None = None,
    **of_blocks: Any,
) -> Shapes:
    """Shapes of a ViT's state dict; `registers` and `norm` are the names that the format has for them."""
    shapes: Shapes = {}
    if embedding:
        shapes |= {"patch_embed.proj.weight": (width, 3, PATCH, PATCH), "patch_embed.proj.bias": (width,)}
    shapes |= {"cls_token": (1, 1, width)} if cls else {}
    shapes |= {"pos_embed": (1, GRID**2 + cls, width)} if positions else {}
    shapes |= {registers: (1, REGISTERS, width)} if registers else {}
    for i in range(depth):
        shapes |= block_shapes(f"blocks.{i}.", width=width, **of_blocks)
    if shared_table:
        shapes["rel_pos_bias.relative_position_bias_table"] = ((2 * GRID - 1) ** 2 + 3, of_blocks.get("heads", 4))
    shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)} if norm else {}
    return shapes | (extra or {})


def drawn(shapes: Shapes, seed: int = 0) -> State:
    """Random weights of these shapes: every one matters, attention is uneven, activations stay near one.

    The embedding is small, so that the epsilon of the first norm shows.
    """
    draw = torch.Generator().manual_seed(seed)
    return {name: _draw(name, torch.randn(shape, generator=draw)) for name, shape in shapes.items()}


def _draw(name: str, normal: Tensor) -> Tensor:
    if name.endswith("bias_mask"):  # DINOv3's keys have no bias
        return torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(len(normal) // 3)
    if name.endswith("index"):  # of relative positions: a buffer that nobody reads from a file
        return normal.long()
    if name.endswith("periods"):
        return 100 ** (torch.arange(len(normal)) / len(normal))
    if "norm" in name or "gamma" in name:
        return 0.3 * normal + (1 if name.endswith("norm.weight") or "gamma" in name else 0)
    if name.endswith("table"):
        return normal
    if name.endswith("bias") or normal.ndim < 2 or "token" in name or "pos_embed" in name:
        return 0.1 * normal
    gain = 0.1 if "embed.proj" in name else 1.5 if "qkv" in name else 1.0
    return gain * normal / normal[0].numel() ** 0.5


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """x W' + b, without b where the state dict has none."""
    return x @ state[f"{name}.weight"].mT + state.get(f"{name}.bias", 0)


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Layer norm over channels."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's cumulative at x."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def silu(x: Tensor) -> Tensor:
    """x times the logistic function of x."""
    return x / (1 + torch.exp(-x))


def feed_forward(state: State, name: str, x: Tensor) -> Tensor:
    """The MLP by whichever layers it has: plain, DINOv2's gate in one matrix, DINOv3's in two."""
    if f"{name}.fc1.weight" in state:
        return linear(state, f"{name}.fc2", gelu(linear(state, f"{name}.fc1", x)))
    if f"{name}.w12.weight" in state:
        gate, value = linear(state, f"{name}.w12", x).chunk(2, -1)
    else:
        gate, value = linear(state, f"{name}.w1", x), linear(state, f"{name}.w2", x)
    return linear(state, f"{name}.w3", silu(gate) * value)


def biased_qkv(state: State, name: str, x: Tensor) -> Tensor:
    """Query, key and value, with one bias (DINOv3's masked), with BEiT's of query and value, or with none."""
    bias = state.get(f"{name}.qkv.bias", torch.zeros(()))
    if f"{name}.qkv.bias_mask" in state:
        bias = bias * state[f"{name}.qkv.bias_mask"]
    if f"{name}.q_bias" in state:
        query, value = state[f"{name}.q_bias"], state[f"{name}.v_bias"]
        bias = torch.cat([query, torch.zeros_like(query), value])
    return x @ state[f"{name}.qkv.weight"].mT + bias


def attend(
    state: State, name: str, x: Tensor, heads: int, bias: Tensor | float = 0.0, angles: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What attention adds to the tokens, and its probabilities; `bias` is added to the logits."""
    parts = biased_qkv(state, name, x).chunk(3, -1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    if angles is not None:
        query, key = rotated(query, angles), rotated(key, angles)
    probabilities = (query @ key.mT / math.sqrt(key.shape[-1]) + bias).softmax(-1)
    mixed = (probabilities @ value).transpose(1, 2).flatten(2)
    return linear(state, f"{name}.proj", mixed), probabilities


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """The last tokens, the patches, with each channel of the first half turned with its fellow of the second."""
    prefix, patches = x[:, :, : -len(angles)], x[:, :, -len(angles) :]
    a, b = patches.chunk(2, -1)
    turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
    return torch.cat([prefix, turned], 2)


def rotary_angles(periods: Tensor, grid: int) -> Tensor:
    """DINOv3: 2 pi coordinate / period, of the row, then of the column, for centres of patches in [-1, 1]."""
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * 2 - 1
    rows, columns = (side.flatten()[:, None] for side in torch.meshgrid(centres, centres, indexing="ij"))
    return 2 * math.pi * torch.cat([rows / periods, columns / periods], 1)


def relative_bias(table: Tensor, grid: int) -> Tensor:
    """BEiT: a bias for each head and offset (row, column) of query from key, and three that cls takes part in."""
    row, column = (side.flatten() for side in torch.meshgrid(*2 * [torch.arange(grid)], indexing="ij"))
    offset = (row[:, None] - row + grid - 1) * (2 * grid - 1) + column[:, None] - column + grid - 1
    of_cls, to_cls, cls_itself = table[-3:]
    patches = table[offset]
    bias = torch.zeros(grid**2 + 1, grid**2 + 1, table.shape[1], dtype=table.dtype)
    bias[1:, 1:], bias[0, 1:], bias[1:, 0], bias[0, 0] = patches, of_cls, to_cls, cls_itself
    return bias.permute(2, 0, 1)


def blocks(
    state: State, tokens: Tensor, heads: int, eps: float, prefix: str = "blocks."
) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens before the first and after every block, and each block's attention."""
    layers, attention = [tokens], []
    shared = state.get("rel_pos_bias.relative_position_bias_table")
    periods = state.get("rope_embed.periods")
    angles = None if periods is None else rotary_angles(periods, GRID)
    while f"{prefix}{len(attention)}.norm1.weight" in state:
        block = f"{prefix}{len(attention)}."
        tables = [shared, state.get(f"{block}attn.relative_position_bias_table")]
        bias = sum((relative_bias(table, GRID) for table in tables if table is not None), torch.zeros(()))
        one, two = (state.get(f"{block}ls{i}.gamma", state.get(f"{block}gamma_{i}", 1)) for i in (1, 2))
        mixed, probabilities = attend(
            state, f"{block}attn", layer_norm(state, f"{block}norm1", tokens, eps), heads, bias, angles
        )
        tokens = tokens + one * mixed
        tokens = tokens + two * feed_forward(state, f"{block}mlp", layer_norm(state, f"{block}norm2", tokens, eps))
        layers.append(tokens)
        attention.append(probabilities)
    return layers, attention


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Pixels of each patch, in the order (row, column, colour); patches row by row."""
    cells = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def embedded(state: State, images: Tensor) -> Tensor:
    """Patches through the convolution of the embedding, or through Latent MIM's linear layer."""
    patches = patches_of(images, PATCH)
    if "embed.proj.weight" in state:
        return linear(state, "embed.proj", patches)
    kernel = state["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    return patches @ kernel.mT + state["patch_embed.proj.bias"]


def with_prefix(state: State, patches: Tensor) -> Tensor:
    """cls before the patches, positions added to both, then registers, which have none, between them."""
    positions = state.get("pos_embed", state.get("pos_embed.pos_embeds", torch.zeros(())))
    cls = [state["cls_token"].expand(len(patches), -1, -1)] if "cls_token" in state else []
    tokens = torch.cat([*cls, patches], 1) + positions
    registers = state.get("register_tokens", state.get("storage_tokens"))
    if registers is None:
        return tokens
    return torch.cat([tokens[:, :1], registers.expand(len(tokens), -1, -1), tokens[:, 1:]], 1)


def vit(
    state: State, images: Tensor, heads: int, eps: float = 1e-6, mask: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Tokens of all layers, attention of all blocks, and tokens after the final norm, if there is one before pooling.

    Patches under `mask` are SimMIM's mask token.
    """
    state = {name: tensor.double() for name, tensor in state.items()}
    patches = embedded(state, images.double())
    if mask is not None:
        patches = torch.where(mask.flatten(1)[..., None], state["mask_token"], patches)
    layers, attention = blocks(state, with_prefix(state, patches), heads, eps)
    last = layers[-1]
    return layers, attention, layer_norm(state, "norm", last, eps) if "norm.weight" in state else last


def simmim_pixels(head: State, tokens: Tensor, stride: int) -> Tensor:
    """SimMIM's head: one linear layer from a patch's token to its pixels, in the order (colour, row, column)."""
    weight, bias = (head[f"decoder.0.{name}"].double() for name in ("weight", "bias"))
    side = math.isqrt(tokens.shape[1])
    pixels = (tokens @ weight.flatten(1).mT + bias).unflatten(2, (3, stride, stride)).unflatten(1, (side, side))
    return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


@pytest.fixture
def reference() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(
        attend=attend, block_shapes=block_shapes, blocks=blocks, drawn=drawn, embedded=embedded,
        feed_forward=feed_forward, layer_norm=layer_norm, linear=linear, patches_of=patches_of,
        simmim_pixels=simmim_pixels, vit=vit, vit_shapes=vit_shapes, with_prefix=with_prefix,
    )  # fmt: skip


@pytest.fixture
def close() -> Any:
    """A function that compares to 1e-5, whatever the size of the values."""
    return _close


@pytest.fixture
def images() -> Tensor:
    """Two random pictures of 3 x 3 patches of 4 px."""
    return torch.randn(2, 3, GRID * PATCH, GRID * PATCH)


@pytest.fixture
def assert_computes() -> Any:
    """A function that compares an opened encoder with the reference: all layers, all heads, to 1e-5."""

    def check(encoder: Any, pictures: Tensor, expected: tuple[list[Tensor], list[Tensor], Tensor]) -> None:
        tokens, attention, final = expected
        with torch.no_grad(), record(encoder) as recording:
            features = encoder.forward_features(pictures)
        assert recording.tokens.keys() == set(range(len(tokens)))
        assert recording.attention.keys() == set(range(1, len(attention) + 1))
        for layer, values in enumerate(tokens):
            _close(recording.tokens[layer], values)
        for layer, values in enumerate(attention, 1):
            _close(recording.attention[layer], values)
        _close(features.flatten(1, -2), final)

    return check


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


# of all configs of transformers together: each takes what it knows
_SIZES = {
    "image_size": 12, "patch_size": 4, "encoder_stride": 4, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48, "mlp_ratio": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24,
    "num_register_tokens": REGISTERS,
}  # fmt: skip


@pytest.fixture
def transformers_model() -> Callable[..., Any]:
    """A factory of transformers' models for 3 x 3 patches, by the name of the class and what its config differs in.

    Every weight is random, so that none that is forgotten or swapped hides behind a zero, and attention is handed out.
    """

    def make(name: str, **config: Any) -> Any:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        kind = getattr(transformers, name)
        sizes = {key: value for key, value in _SIZES.items() if hasattr(kind.config_class, key)}
        model = kind(kind.config_class(**sizes | config)).eval().requires_grad_(False)
        model.set_attn_implementation("eager")
        draw = torch.Generator().manual_seed(3)
        for module in model.modules():
            for parameter_name, parameter in module.named_parameters(recurse=False):
                scaling = isinstance(module, torch.nn.LayerNorm) and parameter_name == "weight"
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw) + scaling)
        return model

    return make
