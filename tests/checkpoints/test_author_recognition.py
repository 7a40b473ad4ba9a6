"""What is said of files in their authors' layouts: head counts, encoders to choose from, and why a file is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kamim_analysis.checkpoints._layout import Hints, rename
from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import open_model
from kamim_analysis.recognition import identify
from kamim_analysis.source import read_source
from kamim_analysis.weights_file import Contents

State = dict[str, Tensor]
DINOV2 = {"scale": "ls{}.gamma", "extra": {"mask_token": (1, 64)}}
DINOV3 = DINOV2 | {"positions": False, "registers": "storage_tokens"}
BEIT = {"qkv_bias": ("q_bias", "v_bias"), "scale": "gamma_{}"}

# by layout: what lies before the encoder's names, how it differs from a plain ViT, published heads by width
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[int, int]]] = {
    "dino": ("backbone.", {}, {192: 3, 384: 6, 768: 12, 1024: 16}),
    "moco_v3": ("base_encoder.", {}, {384: 12, 768: 12, 1024: 16, 1280: 16}),
    "dinov2": ("", DINOV2, {384: 6, 768: 12, 1024: 16, 1536: 24}),
    "dinov3": ("", DINOV3 | {"qkv_bias": ()}, {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32}),
    "beit": ("", BEIT, {192: 3, 384: 6, 768: 12, 1024: 16}),
    "mae": ("", {}, {768: 12, 1024: 16, 1280: 16}),
    "latent_mim": ("encoder.", {"embedding": False, "positions": False}, {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}),
    # MAE's ViT-H, I-JEPA's ViT-g and ViT-G
    "timm_vit": ("", {}, {1280: 16, 1408: 16, 1664: 16}),
}
EACH = [(layout, width) for layout, (_, _, heads) in PUBLISHED.items() for width in heads]


def extra(layout: str, width: int) -> dict[str, tuple[int, ...]]:
    """What the layout has besides, where that depends on the width."""
    latent = {"embed.proj.weight": (width, 48), "embed.proj.bias": (width,), "pos_embed.pos_embeds": (10, width)}
    decoder = {"mask_token": (1, 1, 32), "decoder_embed.weight": (32, width), "decoder_pos_embed": (1, 10, 32)}
    decoder |= {"decoder_pred.weight": (48, 32), "decoder_blocks.0.mlp.fc1.weight": (64, 32)}
    return {"latent_mim": latent, "mae": decoder}.get(layout, {})


def under(prefix: str, state: State) -> State:
    """The state dict of a module that holds another as `prefix`."""
    return {prefix + name: tensor for name, tensor in state.items()}


def reading(path: Any, value: Any, branch: str = "", **choices: Any) -> Any:
    torch.save(value, path)
    return read_source(path, Reading(branch=branch or None, **choices))


def refusal(path: Any, value: Any, branch: str = "", **choices: Any) -> str:
    """The one line with which a file is refused."""
    torch.save(value, path)
    with pytest.raises(UserError) as caught:
        open_model(parse(f"{path}{branch}", Reading(**choices)), 12)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(("layout", "width"), EACH)
def test_published_models_tell_their_head_count(layout, width, reference):
    prefix, options, heads = PUBLISHED[layout]
    shapes = reference.vit_shapes(width=width, hidden=4 * width, **options) | extra(layout, width)
    state = {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = identify(Contents({"": state}), "a.pth", Hints())
    assert found.layout == layout
    assert found.recognised.model_args["num_heads"] == heads[width]
    # timm's names are anyone's: even a well-known width is a guess there
    assert any("head count" in note for note in found.notes) == (layout == "timm_vit")


def test_an_unknown_head_count_is_guessed_aloud_and_can_be_given(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes(width=128, **DINOV2))
    guessed = reading(tmp_path / "a.pth", state)
    assert guessed.recognised.model_args["num_heads"] == 2
    assert "head count is not in the weights: taken as 2 (64 channels each)" in guessed.notes
    given = reading(tmp_path / "a.pth", state, heads=8)
    assert given.recognised.model_args["num_heads"] == 8
    assert not any("head count" in note for note in given.notes)


@pytest.mark.parametrize("layout", PUBLISHED)
def test_heads_that_do_not_divide_the_width_are_refused(tmp_path, layout, reference):
    prefix, options, _ = PUBLISHED[layout]
    state = under(prefix, reference.drawn(reference.vit_shapes(**options) | extra(layout, 64)))
    assert "5 heads do not divide the width 64" in refusal(tmp_path / "a.pth", state, heads=5)


def both_branches(reference: Any) -> dict[str, dict[str, State]]:
    """By layout, a file with two encoders; the one named first is meant to be taken."""
    one, two = (reference.drawn(reference.vit_shapes(), seed) for seed in (0, 1))
    latent = PUBLISHED["latent_mim"][1] | {"extra": extra("latent_mim", 64)}
    online, target = (reference.drawn(reference.vit_shapes(**latent), seed) for seed in (4, 5))
    three, four = (reference.drawn(reference.vit_shapes(**DINOV2), seed) for seed in (2, 3))
    return {
        "dino": {"student": under("module.backbone.", two), "teacher": under("backbone.", one)},
        "moco_v3": {"state_dict": under("module.momentum_encoder.", two) | under("module.base_encoder.", one)},
        "timm_vit": {"encoder": under("module.", two), "target_encoder": under("module.", one)},
        "latent_mim": {"model": under("target_encoder.", target) | under("encoder.", online)},
        "dinov2": {"model": under("student.backbone.", three) | under("teacher.backbone.", four)},
    }


@pytest.mark.parametrize(
    ("layout", "taken", "other"),
    [
        ("dino", "teacher", "student"),
        ("moco_v3", "base_encoder", "momentum_encoder"),
        ("timm_vit", "target_encoder", "encoder"),
        ("dinov2", "teacher", "student"),
        ("latent_mim", "encoder", "target_encoder"),
    ],
)
def test_the_choice_among_encoders_is_said_and_can_be_made(tmp_path, layout, taken, other, reference):
    file = both_branches(reference)[layout]
    found = reading(tmp_path / "a.pth", file)
    assert (found.layout, found.branch) == (layout, taken)
    assert f"of its encoders {taken} is taken; also there: {other} (FILE@NAME)" in found.notes
    chosen = reading(tmp_path / "a.pth", file, branch=other)
    assert chosen.branch == other
    assert not torch.equal(chosen.recognised.encoder["pos_embed"], found.recognised.encoder["pos_embed"])
    message = refusal(tmp_path / "a.pth", file, "@ema")
    assert "has no encoder called 'ema'; it has " in message
    assert taken in message.split("it has ")[1]
    assert other in message.split("it has ")[1]


def test_a_branch_of_a_file_with_one_encoder_is_refused(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes())
    message = "has no encoder called 'teacher'; it has one encoder without a name"
    assert message in refusal(tmp_path / "a.pth", state, "@teacher")


def test_a_file_that_fits_two_layouts_asks_for_one(tmp_path, reference):
    # made up: DINOv2 and DINOv3 as teachers in one file
    two, three = (reference.drawn(reference.vit_shapes(**options)) for options in (DINOV2, DINOV3 | {"qkv_bias": ()}))
    file = {"teacher": under("teacher.backbone.", two) | under("backbone.", three)}
    message = refusal(tmp_path / "a.pth", file)
    assert "fits several layouts (dinov2, dinov3); choose one with --format" in message
    for layout in ("dinov2", "dinov3"):
        assert reading(tmp_path / "a.pth", file, layout=layout).layout == layout


def test_a_layout_that_the_user_names_wrongly_is_refused_with_what_it_lacks(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes())
    assert "beit lacks blocks.0.attn.q_bias or" in refusal(tmp_path / "a.pth", state, layout="beit")


def test_a_file_of_no_layout_is_refused_with_the_nearest_and_its_keys(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes()) | {"blocks.0.adapter.weight": torch.zeros(2)}
    message = refusal(tmp_path / "a.pth", {"model": state})
    assert "fits no known layout" in message
    assert "Nearest: timm_vit (as model) does not know blocks.0.adapter.weight;" in message
    assert "Its keys: patch_embed.proj.weight, patch_embed.proj.bias, cls_token, pos_embed," in message


LACKS: dict[str, tuple[dict[str, Any], str, str]] = {
    "BEiT's cls": (BEIT, "cls_token", "beit lacks cls_token"),
    "DINOv2's cls": (DINOV2 | {"registers": "register_tokens"}, "cls_token", "dinov2 lacks cls_token"),
    "DINOv3's cls": (DINOV3, "cls_token", r"missing keys ['cls_token']"),
    "a plain ViT's cls": ({}, "cls_token", "pos_embed has 10 positions, which is no square grid of patches"),
    "positions": ({}, "pos_embed", "timm_vit lacks pos_embed"),
    "a norm": (DINOV2, "blocks.1.norm2.bias", r"missing keys ['blocks.1.norm2.bias']"),
    "the first MLP": ({}, "blocks.0.mlp.fc1.weight", "the weights lack blocks.0.mlp.fc1.weight"),
    "DINOv2's MLP": (DINOV2, "blocks.0.mlp.fc2.weight", "the weights lack blocks.0.mlp.fc2.weight"),
    "BEiT's MLP": (BEIT, "blocks.0.mlp.fc1.weight", "the weights lack blocks.0.mlp.fc1.weight"),
    "a table": (
        BEIT | {"positions": False, "table": True}, "blocks.0.attn.relative_position_bias_table",
        r"missing keys ['blocks.0.attn.relative_position_bias_table']",
    ),
    "a gamma": (BEIT, "blocks.0.gamma_2", r"missing keys ['blocks.0.gamma_2']"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "key", "message"), LACKS.values(), ids=LACKS.keys())
def test_a_missing_weight_is_named(tmp_path, options, key, message, reference):
    state = reference.drawn(reference.vit_shapes(**{"qkv_bias": ()} | options))
    del state[key]
    assert message in refusal(tmp_path / "a.pth", state)


def test_simmim_s_mask_token_without_a_known_encoder_is_refused_with_what_each_kind_lacks(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes(extra={"mask_token": (1, 1, 64)}))
    del state["pos_embed"]
    message = refusal(tmp_path / "a.pth", {"model": under("encoder.", state)})
    assert "encoder is none of those known: timm_swin lacks layers.0" in message
    assert message.endswith("timm_vit lacks pos_embed")


def test_of_two_keys_that_become_one_the_second_is_unknown():
    state = {"storage_tokens": torch.zeros(1), "reg_token": torch.ones(1)}
    renamed = rename(state, [("(?:storage_tokens|reg_token)", "reg_token")])
    assert renamed.state == {"reg_token": state["storage_tokens"]}
    assert renamed.unknown == ["reg_token"]


def test_patches_that_are_not_square_are_refused(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes()) | {"patch_embed.proj.weight": torch.zeros(64, 3, 4, 8)}
    assert "patches of 4x8 px are not square" in refusal(tmp_path / "a.pth", state)


@pytest.mark.parametrize("table", ["blocks.1.attn", "rel_pos_bias"])
def test_a_table_of_another_grid_is_refused_not_resampled(tmp_path, table, reference):
    state = reference.drawn(reference.vit_shapes(**BEIT, table=True))
    state[f"{table}.relative_position_bias_table"] = torch.zeros(7**2 + 3, 4)
    assert "is not that of a grid of 3x3 patches" in refusal(tmp_path / "a.pth", state)


def test_capi_is_refused_with_the_reason(tmp_path):
    block = "backbone.encoder.blocks.0.residual1."
    state = {f"{block}fn.q_proj.weight": torch.zeros(8, 8), f"{block}norm.weight": torch.zeros(8),
             "backbone.registers": torch.zeros(1, 16, 8), "head.layer.weight": torch.zeros(4, 8)}  # fmt: skip
    assert "these are CAPI's weights, which no unmodified timm model can hold" in refusal(tmp_path / "a.pth", state)


MASKED = DINOV3 | {"qkv_bias": ("qkv.bias", "qkv.bias_mask")}


def test_dinov3_with_a_bias_of_the_keys_is_refused(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes(**MASKED))
    del state["blocks.1.attn.qkv.bias_mask"]
    assert "blocks.1.attn.qkv.bias has a bias of the keys" in refusal(tmp_path / "a.pth", state)


def test_dinov3_with_a_norm_for_cls_alone_is_refused(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes(**MASKED)) | {"cls_norm.weight": torch.ones(64)}
    assert "dinov3 does not know cls_norm.weight" in refusal(tmp_path / "a.pth", state)


@pytest.mark.parametrize(("base", "heads"), [(50.0, 4), (100.0, 2)])
def test_dinov3_with_other_rotary_periods_is_refused(tmp_path, base, heads, reference):
    state = reference.drawn(reference.vit_shapes(**MASKED)) | {"rope_embed.periods": base ** (torch.arange(4) / 4)}
    message = refusal(tmp_path / "a.pth", state, heads=heads)
    assert f"not DINOv3's published ones for heads of {64 // heads} channels; give the head count" in message


@pytest.mark.parametrize("rounded", [False, True])
def test_rotary_periods_are_the_file_s_own(tmp_path, rounded, reference):
    periods = 100.0 ** (torch.arange(4) / 4)
    state = reference.drawn(reference.vit_shapes(**MASKED))
    state["rope_embed.periods"] = periods.bfloat16() if rounded else periods
    torch.save(state, tmp_path / "a.pth")
    encoder = open_model(parse(str(tmp_path / "a.pth"), Reading(heads=4))).encoder
    torch.testing.assert_close(encoder.rope.periods, state["rope_embed.periods"].float(), rtol=0, atol=0)
