"""Attention statistics against slow float64 loops and scipy, norm ratios against block inputs heard by other hooks."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.stats import entropy
from timm.models.vision_transformer_relpos import ResPostRelPosBlock

from kamim_analysis.analyses import cls_attention
from kamim_analysis.analyses._analysis import Subject
from kamim_analysis.analyses._suite import Outcome, Suite
from kamim_analysis.analyses.cls_attention import attention_entropy, attention_statistics, norm_ratio, window_reach
from kamim_analysis.encoders import anatomy
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.models._anatomy import Window
from kamim_analysis.reconstruction import MEAN, STD
from kamim_analysis.recorder import record
from kamim_analysis.shapes import Grid
from kamim_analysis.windows import positions

SMALL = {"num_classes": 0, "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
OF_CLS = {"cls_to_cls", "cls_to_patches", "cls_entropy", "patch_to_cls", "cls_norm_ratio"}
OF_PATCHES = {"patch_to_itself", "patch_to_itself_among_patches", "patch_entropy", "patch_norm_ratio"}


def random_attention(sharpness: float, tokens: int = 17, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(2, 3, tokens, tokens, generator=draw)).softmax(-1)


def statistics_by_loop(attention: np.ndarray, prefix: int, *, has_cls: bool) -> dict[str, np.ndarray]:
    """Token by token, in float64."""
    attention = attention.astype(np.float64)
    batch, heads, tokens, _ = attention.shape
    names = [name for name in sorted(OF_CLS | OF_PATCHES) if "ratio" not in name and (has_cls or name not in OF_CLS)]
    found = {name: np.zeros((batch, heads)) for name in names}
    patches = range(prefix, tokens)
    for b, h in np.ndindex(batch, heads):
        a = attention[b, h]

        def relative_entropy(row: np.ndarray) -> float:
            return float(entropy(row[prefix:])) / math.log(len(patches))

        for q in patches:
            found["patch_to_itself"][b, h] += a[q, q] / len(patches)
            found["patch_to_itself_among_patches"][b, h] += a[q, q] / sum(a[q, k] for k in patches) / len(patches)
            found["patch_entropy"][b, h] += relative_entropy(a[q]) / len(patches)
            if has_cls:
                found["patch_to_cls"][b, h] += a[q, 0] / len(patches)
        if has_cls:
            found["cls_to_cls"][b, h] = a[0, 0]
            found["cls_to_patches"][b, h] = sum(a[0, k] for k in patches)
            found["cls_entropy"][b, h] = relative_entropy(a[0])
    return found


def analysed(encoder: Any, images: torch.Tensor) -> Outcome:
    subject = Subject(label="tiny", anatomy=anatomy(encoder), mean=MEAN, std=STD, encoder=encoder)
    suite = Suite(encoder, subject, ["cls_attention"])
    numbers = torch.arange(len(images))
    for part in numbers.split(2):
        suite.update(ImageBatch(images[part], torch.zeros_like(part), part))
    return suite.outcome()


def values_of(outcome: Outcome) -> dict[tuple[str, int], float]:
    """Means over heads by statistic and layer."""
    return {(row.statistic, row.layer): row.value for row in outcome.rows if row.head is None}


def sharpened(encoder: Any) -> Any:
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "qkv.weight" in name or "gamma" in name:
                parameter.normal_(std=0.3)
    return encoder.eval()


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 5.0, 30.0])
@pytest.mark.parametrize(("prefix", "has_cls"), [(0, False), (1, True), (1, False), (5, True), (5, False)])
def test_statistics_by_loop(sharpness, prefix, has_cls):
    attention = random_attention(sharpness, tokens=9 + prefix)
    found = attention_statistics(attention, prefix, has_cls=has_cls)
    expected = statistics_by_loop(attention.numpy(), prefix, has_cls=has_cls)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_near_uniform_entropy_keeps_its_distance_from_one():
    attention = random_attention(0.05, tokens=196)
    expected = entropy(attention.double().numpy(), axis=-1) / math.log(196)
    assert 1e-4 < 1 - expected.mean() < 1e-3
    np.testing.assert_allclose(1 - attention_entropy(attention).numpy(), 1 - expected, atol=1e-6)


@pytest.mark.parametrize("tokens", [2, 9, 196])
def test_entropy_s_closed_forms(tokens):
    uniform = torch.full((tokens, tokens), 1 / tokens)
    permutation = torch.eye(tokens)[torch.randperm(tokens)]
    half = torch.zeros(tokens, tokens)
    half[:, : tokens // 2] = 2 / tokens
    found = attention_entropy(torch.stack([uniform, permutation, half])[None])[0]
    expected = torch.tensor([1.0, 0.0, math.log(tokens // 2) / math.log(tokens)])
    torch.testing.assert_close(found, expected[:, None].expand(-1, tokens), rtol=0, atol=2e-6)


def test_rows_need_not_sum_to_one():
    attention = random_attention(2.0)
    scaled = attention * torch.rand(2, 3, 17, 1).clamp_min(1e-3)
    torch.testing.assert_close(attention_entropy(scaled), attention_entropy(attention), rtol=1e-5, atol=1e-6)


def test_exact_zeros_contribute_nothing():
    attention = random_attention(2.0)
    attention = torch.where(attention > attention.median(), attention, 0.0)
    expected = entropy(attention.double().numpy(), axis=-1) / math.log(17)
    np.testing.assert_allclose(attention_entropy(attention).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_patches_that_get_no_attention_count_as_alike():
    attention = torch.zeros(1, 1, 5, 5)
    attention[..., 0] = 1  # everything goes to cls
    found = attention_statistics(attention, 1)
    expected = {"patch_entropy": 1, "cls_entropy": 1, "cls_to_cls": 1, "cls_to_patches": 0, "patch_to_cls": 1}
    expected |= {"patch_to_itself": 0, "patch_to_itself_among_patches": 0.25}
    assert {name: float(values) for name, values in found.items()} == expected


def test_what_cls_does_not_give_to_itself_and_patches_went_to_registers():
    attention = random_attention(3.0, tokens=21)
    found = attention_statistics(attention, 5)
    rest = attention[:, :, 0, 1:5].sum(-1)
    torch.testing.assert_close(found["cls_to_cls"] + found["cls_to_patches"], 1 - rest)


def test_what_registers_attend_to_changes_nothing():
    attention, other = random_attention(2.0), random_attention(2.0, seed=1)
    changed = attention.clone()
    changed[:, :, 1:5] = other[:, :, 1:5]
    for name, values in attention_statistics(attention, 5).items():
        torch.testing.assert_close(attention_statistics(changed, 5)[name], values, msg=name)


def test_the_order_of_patches_does_not_matter():
    attention = random_attention(2.0)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(16)])
    shuffled = attention[:, :, order][..., order]
    for name, values in attention_statistics(attention, 1).items():
        found = attention_statistics(shuffled, 1)[name]
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("chunk", [1, 17 * 17, 2 * 17 * 17 + 5])
def test_working_in_parts_changes_nothing(chunk, monkeypatch):
    attention = random_attention(2.0)
    whole = attention_entropy(attention)
    monkeypatch.setattr(cls_attention, "_CHUNK", chunk)
    torch.testing.assert_close(attention_entropy(attention), whole, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full_precision(dtype):
    attention = random_attention(2.0, tokens=197).to(dtype)
    expected = statistics_by_loop(attention.float().numpy()[:1, :1], 1, has_cls=True)
    for name, values in attention_statistics(attention, 1).items():
        assert values.dtype == torch.float32
        np.testing.assert_allclose(values[:1, :1].numpy(), expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_missing_numbers_stay_missing():
    attention = random_attention(1.0)
    attention[0, 0, 3, 5] = torch.nan
    for name in ("patch_entropy", "patch_to_itself_among_patches"):
        values = attention_statistics(attention, 1)[name]
        assert bool(values[0, 0].isnan())
        assert int(values.isnan().sum()) == 1


def test_a_single_patch_is_attended_to_evenly():
    found = attention_statistics(torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]]), 1)
    expected = {"patch_to_itself": 0.5, "patch_to_itself_among_patches": 1, "patch_entropy": 1, "cls_to_cls": 0.25}
    expected |= {"cls_to_patches": 0.75, "cls_entropy": 1, "patch_to_cls": 0.5}
    assert {name: float(values) for name, values in found.items()} == expected


def test_attention_that_wants_gradients_is_taken():
    attention = random_attention(1.0).requires_grad_()
    assert not attention_entropy(attention).requires_grad


@pytest.mark.parametrize("grid", [(8, 8), (8, 12), (4, 4)])
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (0, 2), (1, 3)])
def test_window_reach_counts_tokens_that_share_window_and_edge(grid, shift):
    window, grid = Window((4, 4), shift), Grid(*grid)
    place = {int(token): w for w, tokens in enumerate(positions(window, grid)) for token in tokens}
    # what the roll brought over from the upper or the left edge is hidden from what was there
    wrapped = {t: (t // grid.width < shift[0], t % grid.width < shift[1]) for t in place}
    expected = [
        sum(place[other] == place[t] and wrapped[other] == wrapped[t] for other in place) for t in range(grid.area)
    ]
    assert window_reach(window, grid).tolist() == expected


@pytest.mark.parametrize("size", [32, 40])
def test_a_swin_that_does_not_prefer_any_patch_has_entropy_one(size, tiny_swin):
    encoder = tiny_swin(size)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "qkv" in name or "relative_position_bias" in name:
                parameter.zero_()
    values = values_of(analysed(encoder, torch.randn(2, 3, size, size)))
    layers = [layer for statistic, layer in values if statistic == "patch_entropy"]
    assert layers == [1, 2, 3, 4]
    for layer in layers:
        assert values["patch_entropy", layer] == pytest.approx(1, abs=1e-5)


def test_norm_ratio_by_numpy():
    added, stream = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    expected = np.linalg.norm(added.numpy(), axis=-1) / np.linalg.norm(stream.numpy(), axis=-1)
    np.testing.assert_allclose(norm_ratio(added, stream).numpy(), expected, rtol=1e-5)


def test_norm_ratio_of_a_token_of_zeros_is_finite_and_of_nothing_added_zero():
    assert bool(norm_ratio(torch.ones(1, 1, 4), torch.zeros(1, 1, 4)).isfinite())
    assert float(norm_ratio(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))) == 0


def test_norm_ratio_of_half_precision_does_not_overflow():
    long = torch.full((1, 1, 4), 6e4, dtype=torch.float16)
    torch.testing.assert_close(norm_ratio(long, long), torch.ones(1, 1))


ENCODERS = {
    "layer scale": lambda: timm.create_model("vit_tiny_patch16_224", init_values=0.5, reg_tokens=4, **SMALL),
    "none": lambda: timm.create_model("vit_tiny_patch16_224", **SMALL),
    "beit": lambda: timm.create_model("beit_base_patch16_224", init_values=0.5, **SMALL),
    "eva": lambda: timm.create_model("eva02_tiny_patch14_224", init_values=0.5, **SMALL),
    "relative positions": lambda: timm.create_model("vit_relpos_small_patch16_224", **SMALL),
    "convit": lambda: timm.create_model("convit_tiny", local_up_to_layer=1, **SMALL),
}


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_norm_ratios_are_of_what_the_block_adds_to_its_input(name):
    encoder = sharpened(ENCODERS[name]())
    images, body = torch.randn(3, 3, 32, 32), anatomy(encoder)
    inputs, between = [], []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
        block.norm2.register_forward_pre_hook(lambda _module, given: between.append(given[0]))
    encoder.forward_features(images)
    expected = {}
    for block, before, after in zip(body.blocks, inputs, between, strict=True):
        # sums and differences instead of layer scales: this holds for blocks of any kind
        ratio = (after - before).norm(dim=-1) / before.norm(dim=-1)
        expected["patch_norm_ratio", block.layer] = float(ratio[:, block.prefix_tokens :].mean())
        if body.has_cls and block.prefix_tokens:
            expected["cls_norm_ratio", block.layer] = float(ratio[:, 0].mean())
    found = {key: value for key, value in values_of(analysed(encoder, images)).items() if "norm_ratio" in key[0]}
    assert found == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_norm_ratios_of_a_swin_whose_stages_begin_by_merging(tiny_swin):
    encoder, images, expected = sharpened(tiny_swin()), torch.randn(3, 3, 32, 32), {}
    x = encoder.patch_embed(images)
    for stage in encoder.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            ratio = block._attn(block.norm1(x)).norm(dim=-1) / x.norm(dim=-1)
            expected["patch_norm_ratio", len(expected) + 1] = float(ratio.mean())
            x = block(x)
    found = {key: value for key, value in values_of(analysed(encoder, images)).items() if "norm_ratio" in key[0]}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "cls"),
    [({}, True), ({"reg_tokens": 4}, True), ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, False),
     ({"class_token": False, "global_pool": "avg"}, False)],
)  # fmt: skip
def test_statistics_of_cls_are_there_with_a_cls_token_alone(options, cls, tiny_vit):
    rows = analysed(tiny_vit(**options), torch.randn(4, 3, 32, 32)).rows
    assert {row.statistic for row in rows} == (OF_PATCHES | OF_CLS if cls else OF_PATCHES)
    assert all(math.isfinite(row.value) and row.images == 4 for row in rows)
    for statistic in {row.statistic for row in rows}:
        heads = [row.head for row in rows if (row.statistic, row.layer) == (statistic, 3)]
        assert heads == ([None] if "ratio" in statistic else [None, 0, 1])


def test_cls_that_joins_late_has_numbers_from_there_on():
    outcome = analysed(ENCODERS["convit"]().eval(), torch.randn(2, 3, 32, 32))
    found = {(row.statistic, row.layer) for row in outcome.rows}
    assert found == {(name, 2) for name in OF_CLS} | {(name, layer) for name in OF_PATCHES for layer in (1, 2)}
    assert outcome.samples["cls_attention", "cls_entropy", 2].shape == (2,)


def test_blocks_without_a_stream_between_attention_and_mlp_have_attention_alone():
    encoder = timm.create_model("vit_relpos_small_patch16_224", block_fn=ResPostRelPosBlock, **SMALL).eval()
    found = {row.statistic for row in analysed(encoder, torch.randn(2, 3, 32, 32)).rows}
    assert found == OF_PATCHES - {"patch_norm_ratio"}


def test_one_image_has_numbers_and_no_intervals(tiny_vit):
    rows = analysed(tiny_vit(), torch.randn(1, 3, 32, 32)).rows
    assert all(math.isfinite(row.value) and math.isnan(row.ci_low) for row in rows)


@torch.no_grad()
def test_rows_are_means_over_recorded_attention_of_photographs(tiny_vit, pictures):
    encoder = sharpened(tiny_vit(reg_tokens=2))
    images = torch.stack([torch.from_numpy(p[:256:8, :256:8].copy()).permute(2, 0, 1) / 255.0 for p in pictures[:3]])
    with record(encoder) as recording:
        encoder.forward_features(images)
    values = values_of(analysed(encoder, images))
    for layer in (1, 2, 3):
        expected = statistics_by_loop(recording.attention[layer].numpy(), 3, has_cls=True)
        for name, by_head in expected.items():
            assert values[name, layer] == pytest.approx(by_head.mean(), rel=1e-4), (name, layer)


def test_attention_that_selects_is_told_from_attention_that_averages(tiny_vit):
    """The finding of the paper in miniature: keys that stand out are selected, keys alike are averaged."""
    average, select = tiny_vit(), tiny_vit()
    with torch.no_grad():
        for encoder, scale in ((average, 0.0), (select, 3.0)):
            for block in encoder.blocks:
                block.attn.qkv.weight[:64] = scale * torch.randn(64, 32)
                block.attn.qkv.bias.zero_()
    images = torch.randn(4, 3, 32, 32)
    one, other = (values_of(analysed(encoder, images)) for encoder in (average, select))
    for layer in (1, 2, 3):
        assert one["cls_entropy", layer] == pytest.approx(1, abs=1e-5)
        assert one["cls_to_cls", layer] == pytest.approx(1 / 17, rel=1e-5)
        assert other["patch_entropy", layer] < 0.5
