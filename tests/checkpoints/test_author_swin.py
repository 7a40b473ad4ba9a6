"""Swin files of SimMIM and of Swin's authors: all tokens, and attention over the whole image, to 1e-5.

The reference cuts no windows: it computes attention over the whole picture and forbids, as the paper defines it (Swin,
2103.14030, section 3.2 and figure 4), what lies in other windows or was rolled in from the other side.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import OpenedModel, open_model

State = dict[str, Tensor]
WIDTH, PATCH, HEADS = 16, 2, (2, 4, 2)
TRAINING = {"optimizer": {"state": {}}, "lr_scheduler": {"t_initial": 100}, "max_accuracy": 0.0, "epoch": 99}


def swin_shapes(grid: int, depths: tuple[int, ...], window: int = 3) -> dict[str, tuple[int, ...]]:
    """Shapes of the original's state dict; buffers of shifted windows lie where the grid has several windows."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH)}
    shapes |= dict.fromkeys(("patch_embed.proj.bias", "patch_embed.norm.weight", "patch_embed.norm.bias"), (WIDTH,))
    for s, depth in enumerate(depths):
        width, side = WIDTH * 2**s, grid // 2**s
        area = min(window, side) ** 2
        matrices = {"attn.qkv": (3 * width, width), "attn.proj": (width, width),
                    "mlp.fc1": (3 * width, width), "mlp.fc2": (width, 3 * width)}  # fmt: skip
        for i in range(depth):
            block = f"layers.{s}.blocks.{i}."
            for name, shape in matrices.items():
                shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
            for name in ("norm1", "norm2"):
                shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
            shapes[f"{block}attn.relative_position_bias_table"] = ((2 * min(window, side) - 1) ** 2, HEADS[s])
            shapes[f"{block}attn.relative_position_index"] = (area, area)
            if i % 2 and side > window:
                shapes[f"{block}attn_mask"] = ((side // window) ** 2, area, area)
        if s < len(depths) - 1:
            shapes |= dict.fromkeys((f"layers.{s}.downsample.norm.{name}" for name in ("weight", "bias")), (4 * width,))
            shapes[f"layers.{s}.downsample.reduction.weight"] = (2 * width, 4 * width)
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def window_bias(table: Tensor, grid: int, window: int, shift: int) -> Tensor:
    """Relative position bias of each head between all tokens of the picture, minus infinity where none may look."""
    place = torch.arange(grid)
    rolled = (place - shift) % grid
    where = torch.cartesian_prod(rolled, rolled)
    apart = torch.zeros(grid**2, grid**2, dtype=torch.bool)
    for group in (where // window, torch.cartesian_prod(place, place) < shift):
        apart |= (group[:, None] != group[None]).any(-1)
    offset = (where[:, None] - where[None]).clamp(1 - window, window - 1) + window - 1
    bias = table[offset[..., 0] * (2 * window - 1) + offset[..., 1]].permute(2, 0, 1)
    return bias.masked_fill(apart, -torch.inf)


def merged(reference: Any, state: State, name: str, tokens: Tensor, grid: int) -> Tensor:
    """Patch merging: four neighbours, column by column, normalised and reduced."""
    cells = tokens.unflatten(1, (grid // 2, 2, grid // 2, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
    return reference.linear(state, f"{name}.reduction", reference.layer_norm(state, f"{name}.norm", cells, 1e-5))


def swin(
    reference: Any, state: State, images: Tensor, depths: tuple[int, ...], window: int = 3, mask: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Tokens of all layers, attention of all blocks, and tokens after the final norm."""
    state = {name: tensor.double() for name, tensor in state.items()}
    kernel = state["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    patches = reference.patches_of(images.double(), PATCH) @ kernel.mT + state["patch_embed.proj.bias"]
    tokens = reference.layer_norm(state, "patch_embed.norm", patches, 1e-5)
    if mask is not None:
        tokens = torch.where(mask.flatten(1)[..., None], state["mask_token"], tokens)
    layers, attention, grid = [tokens], [], images.shape[-1] // PATCH
    for s, depth in enumerate(depths):
        for i in range(depth):
            block = f"layers.{s}.blocks.{i}."
            shift = window // 2 if i % 2 and grid > window else 0
            table = state[f"{block}attn.relative_position_bias_table"]
            bias = window_bias(table, grid, min(window, grid), shift)
            normed = reference.layer_norm(state, f"{block}norm1", tokens, 1e-5)
            mixed, probabilities = reference.attend(state, f"{block}attn", normed, HEADS[s], bias)
            tokens = tokens + mixed
            normed = reference.layer_norm(state, f"{block}norm2", tokens, 1e-5)
            tokens = tokens + reference.feed_forward(state, f"{block}mlp", normed)
            layers.append(tokens)
            attention.append(probabilities)
        if s < len(depths) - 1:
            tokens, grid = merged(reference, state, f"layers.{s}.downsample", tokens, grid), grid // 2
    return layers, attention, reference.layer_norm(state, "norm", tokens, 1e-5)


def opened(path: Any, value: Any, image_size: int | None = None) -> OpenedModel:
    torch.save(value, path)
    return open_model(parse(str(path)), image_size)


def simmim(state: State, extra: State) -> dict[str, Any]:
    """main_simmim.py."""
    model = {f"encoder.{name}": tensor for name, tensor in state.items()} | extra
    return TRAINING | {"model": model}


# the last stage has four windows; one window, which is not shifted; fewer tokens than a window
@pytest.mark.parametrize(("grid", "depths", "window"), [(12, (2, 2), 3), (12, (2, 1, 2), 3), (8, (2, 1, 2), 4)])
@pytest.mark.parametrize("published", ["SimMIM", "Swin"])
def test_all_layers_and_heads_are_those_of_the_paper_s_definition(
    tmp_path, published, grid, depths, window, reference, assert_computes
):
    state = reference.drawn(swin_shapes(grid, depths, window))
    images = torch.randn(2, 3, grid * PATCH, grid * PATCH)
    if published == "SimMIM":
        model = opened(tmp_path / "a.pth", simmim(state | {"mask_token": torch.zeros(1, 1, WIDTH)}, {}))
    else:
        model = opened(tmp_path / "a.pth", {"model": state | {"head.weight": torch.zeros(5, 64)}})
    assert model.provenance["format"] == {"SimMIM": "simmim", "Swin": "timm_swin"}[published]
    assert model.masked_model is None
    assert_computes(model.encoder, images, swin(reference, state, images, depths, window))


def test_the_prediction_of_hidden_pixels_is_simmim_s(tmp_path, reference, close):
    shapes, depths, stride = swin_shapes(12, (2, 2)), (2, 2), 2 * PATCH
    decoder = {"decoder.0.weight": (3 * stride**2, 2 * WIDTH, 1, 1), "decoder.0.bias": (3 * stride**2,)}
    state = reference.drawn(shapes | {"mask_token": (1, 1, WIDTH)})
    head = reference.drawn(decoder)
    model = opened(tmp_path / "a.pth", simmim(state, head)).masked_model
    images, mask = torch.randn(2, 3, 24, 24), torch.rand(2, 12, 12) < 0.5
    assert model is not None
    _, _, final = swin(reference, state, images, depths, mask=mask)
    close(model(images, mask), reference.simmim_pixels(head, final, stride))


@pytest.mark.parametrize(
    "key",
    [
        "patch_embed.norm.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table",
        "layers.1.blocks.0.attn.relative_position_bias_table",
        "layers.1.blocks.1.attn.relative_position_bias_table",
        "layers.1.blocks.0.mlp.fc1.weight",
    ],
)
def test_a_missing_weight_is_named(tmp_path, key, reference):
    state = reference.drawn(swin_shapes(12, (2, 2)))
    del state[key]
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        opened(tmp_path / "a.pth", simmim(state | {"mask_token": torch.zeros(1, 1, WIDTH)}, {}))


def test_an_image_size_that_no_mask_tells_is_guessed_aloud_and_can_be_given(tmp_path, reference, assert_computes):
    # without its buffers a file of two stages looks like one of 12 px, whose last stage is one window
    state = {name: t for name, t in reference.drawn(swin_shapes(12, (2, 2))).items() if not name.endswith("attn_mask")}
    model = opened(tmp_path / "a.pth", {"model": state})
    guess = "image size is not in the weights: taken as 12, whose last stage is one window of 3"
    assert guess in model.provenance["notes"]
    images = torch.randn(2, 3, 24, 24)
    at_its_size = opened(tmp_path / "b.pth", {"model": state}, image_size=24)
    assert_computes(at_its_size.encoder, images, swin(reference, state, images, (2, 2)))


def test_a_last_stage_of_fewer_tokens_than_a_window_tells_the_image_size(tmp_path, reference, assert_computes):
    shapes = swin_shapes(8, (2, 1, 2), window=4)
    state = reference.drawn({name: shape for name, shape in shapes.items() if not name.endswith("attn_mask")})
    model, images = opened(tmp_path / "a.pth", {"model": state}), torch.randn(2, 3, 16, 16)
    assert_computes(model.encoder, images, swin(reference, state, images, (2, 1, 2), window=4))


@pytest.mark.parametrize("block", ["layers.0.blocks.1", "layers.1.blocks.0"])
def test_a_table_of_another_window_is_refused_not_resampled(tmp_path, block, reference):
    state = reference.drawn(swin_shapes(12, (2, 2)) | {f"{block}.attn.relative_position_bias_table": (49, 2)})
    with pytest.raises(UserError, match="has 49 distances, where the first stage's window suggests 25"):
        opened(tmp_path / "a.pth", {"model": state})
