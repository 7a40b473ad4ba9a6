"""Swin's windowed attention, stitched to image coordinates, against a brute-force walk over pairs of tokens."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import kamim_analysis.recorder as recorder
from kamim_analysis.encoders import create
from kamim_analysis.recorder import record

# window 4: 32 px -> grids 8 and 4 (no padding); 40 px -> grids 10 and 5 (padded to 12 and 8)
SIZES = [32, 40]


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def sharpened(encoder: Any) -> Any:
    """Large random projections and biases, so that every term of the attention shows."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "attn.qkv" in name:
                parameter.normal_(std=0.4)
            if "relative_position_bias_table" in name:
                parameter.normal_()
    return encoder


def blocks_with_inputs(encoder: Any, x: Tensor) -> list[tuple[Any, Tensor]]:
    """Every block with its input [B, H, W, C], module by module, without hooks."""
    x, found = encoder.patch_embed(x), []
    for stage in encoder.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            found.append((block, x))
            x = block(x)
    return found


def region(y: int, padded: int, window: int, shift: int) -> int:
    """Which of Swin's three mask regions a (shifted) row or column lies in; one where nothing is shifted."""
    return 0 if not shift else (y >= padded - window) + (y >= padded - shift)


def brute_force(block: Any, x: Tensor) -> Tensor:
    """[B, heads, N, N] in float64: for every query pixel, a softmax over the tokens that share its window and region.

    Rows and columns are rolled by the shift, then padded at the end with tokens of zeros, as Swin's code does.
    """
    attn, (height, width) = block.attn, x.shape[1:3]
    (rows, columns), (down, right) = block.window_size, block.shift_size
    padded = math.ceil(height / rows) * rows, math.ceil(width / columns) * columns
    heads, channels = attn.num_heads, x.shape[-1]
    q, k = (
        linear(t, attn.qkv.weight[i * channels : (i + 1) * channels], attn.qkv.bias[i * channels : (i + 1) * channels])
        .unflatten(-1, (heads, -1))
        .double()
        for i, t in enumerate([block.norm1(x)] * 2)
    )
    blank = attn.qkv.bias[channels : 2 * channels].unflatten(0, (heads, -1)).double()  # the key of a padding token
    table = attn.relative_position_bias_table.double()
    whole = torch.zeros(len(x), heads, height, width, height, width, dtype=torch.float64)
    for y in range(height):
        for z in range(width):
            qy, qx = (y - down) % height, (z - right) % width  # where the roll puts this query
            logits, keys = [], []
            for ky in range(qy // rows * rows, qy // rows * rows + rows):
                for kx in range(qx // columns * columns, qx // columns * columns + columns):
                    same = region(qy, padded[0], rows, down) == region(ky, padded[0], rows, down)
                    same &= region(qx, padded[1], columns, right) == region(kx, padded[1], columns, right)
                    inside = ky < height and kx < width
                    at = ((ky + down) % height, (kx + right) % width) if inside else None
                    key = k[:, at[0], at[1]] if at else blank.expand(len(x), -1, -1)
                    bias = table[(qy - ky + rows - 1) * (2 * columns - 1) + qx - kx + columns - 1]
                    logit = (q[:, y, z] * key).sum(-1) / q.shape[-1] ** 0.5 + bias
                    logits.append(logit if same else torch.full_like(logit, -torch.inf))
                    keys.append(at)
            weights = torch.stack(logits, -1).softmax(-1)
            for i, at in enumerate(keys):
                if at:
                    whole[:, :, y, z, at[0], at[1]] = weights[..., i]
    return whole.flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_stitched_attention_equals_brute_force(tiny_swin, size):
    encoder = sharpened(tiny_swin(size))
    with record(encoder) as recording:
        encoder(images(size))
    found = blocks_with_inputs(encoder, images(size))
    assert [any(block.shift_size) for block, _ in found][:2] == [False, True]
    for layer, (block, x) in enumerate(found, start=1):
        expected = brute_force(block, x)
        torch.testing.assert_close(recording.attention[layer].double(), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_rows_sum_to_one_without_padding_and_to_less_where_padding_was_attended(tiny_swin):
    sums = {}
    for size in SIZES:
        encoder = sharpened(tiny_swin(size))
        with record(encoder, tokens=()) as recording:
            encoder(images(size))
        sums[size] = recording.attention[1].sum(-1)
    torch.testing.assert_close(sums[32], torch.ones(2, 2, 64))
    assert sums[40].max() <= 1 + 1e-5
    assert sums[40].min() < 0.99


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_tokens_and_attention_sites_lie_in_row_major_order(tiny_swin, size):
    encoder = tiny_swin(size)
    sites = {"attention_input": "all", "attention_output": "all"}
    with record(encoder, attention=(), **sites) as recording:
        encoder(images(size))
    found = blocks_with_inputs(encoder, images(size))
    torch.testing.assert_close(recording.tokens[0], found[0][1].flatten(1, 2))
    for layer, (block, x) in enumerate(found, start=1):
        torch.testing.assert_close(recording.attention_input[layer], block.norm1(x).flatten(1, 2))
        torch.testing.assert_close(recording.attention_output[layer], block._attn(block.norm1(x)).flatten(1, 2))
        torch.testing.assert_close(recording.tokens[layer], block(x).flatten(1, 2))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_recording_changes_outputs_by_rounding_only(tiny_swin, size):
    encoder = tiny_swin(size)
    attentions = [block.attn for stage in encoder.layers for block in stage.blocks]
    for attn in attentions:
        attn.fused_attn = True  # timm leaves it off for Swin unless asked
    plain = encoder(images(size))
    with record(encoder):
        recorded = encoder(images(size))
    torch.testing.assert_close(recorded, plain, rtol=0, atol=3e-6)
    assert all(attn.fused_attn for attn in attentions)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


@pytest.mark.parametrize("room", [1, 2 * 2 * 64**2, 2**25])
@torch.no_grad()
def test_a_sink_sees_every_image_once_and_in_order(tiny_swin, monkeypatch, room):
    monkeypatch.setattr(recorder, "_STITCHED_ELEMENTS", room)
    encoder = sharpened(tiny_swin())
    with record(encoder, tokens=()) as whole:
        encoder(images(32, 5))
    parts: dict[int, list[Tensor]] = {}
    sink = lambda _kind, layer, values: parts.setdefault(layer, []).append(values.clone())  # noqa: E731
    with record(encoder, tokens=(), sink=sink):
        encoder(images(32, 5))
    assert len(parts[1]) == {1: 5, 2 * 2 * 64**2: 3, 2**25: 1}[room]
    for layer, expected in whole.attention.items():
        torch.testing.assert_close(torch.cat(parts[layer]), expected, rtol=0, atol=0)


@torch.no_grad()
def test_the_papers_swin_records_at_its_size():
    encoder = create("swin_tiny", 96, sizes={"width": 24}).eval()  # window 3: as 6 at 192 px
    with record(encoder, tokens=()) as recording:
        encoder(images(96, 1))
    assert [recording.attention[i].shape[-1] for i in (1, 3, 5, 12)] == [24**2, 12**2, 6**2, 3**2]
    torch.testing.assert_close(recording.attention[2].sum(-1), torch.ones(1, 3, 576))


@torch.no_grad()
def test_swin_v2_is_hooked_too():
    encoder = create("swinv2_tiny_window8_256", 64, depths=(2, 2), num_heads=(2, 4), embed_dim=16).eval()
    plain = encoder(images(64))
    with record(encoder, attention_output="all") as recording:
        recorded = encoder(images(64))
    torch.testing.assert_close(recorded, plain, rtol=0, atol=3e-6)
    for attention in recording.attention.values():
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
