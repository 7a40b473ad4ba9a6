"""Hooked attention and tokens of plain ViTs against attention computed by hand from the weights."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from kamim_analysis.encoders import build, create
from kamim_analysis.errors import UserError
from kamim_analysis.recorder import record

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "qk-norm": {"qk_norm": True},
    "registers, qk-norm, layer scale": {"reg_tokens": 4, "qk_norm": True, "init_values": 0.5, "no_embed_class": True},
    "no cls": {"class_token": False, "global_pool": "avg"},
    "pre-norm": {"pre_norm": True},
}


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def attention_by_hand(attn: Any, x: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) in float64, q and k read off the fused projection of a timm ViT."""
    width = x.shape[-1]
    q, k = (
        linear(x, attn.qkv.weight[i * width : (i + 1) * width], attn.qkv.bias[i * width : (i + 1) * width])
        for i in range(2)
    )
    q, k = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k))
    q, k = attn.q_norm(q).double(), attn.k_norm(k).double()
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def walk(encoder: Any, x: Tensor) -> list[Tensor]:
    """The embedding and every block's output, module by module, without hooks."""
    x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(x)))
    outputs = [x]
    for block in encoder.blocks:
        x = block(x)
        outputs.append(x)
    return outputs


def hooks_of(encoder: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules())


def fused_flags(encoder: nn.Module) -> list[bool]:
    return [m.fused_attn for m in encoder.modules() if hasattr(m, "fused_attn")]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_attention_is_softmax_of_queries_and_keys(tiny_vit, options):
    encoder = tiny_vit(**options)
    nn.init.normal_(encoder.pos_embed)
    for block in encoder.blocks:
        block.attn.qkv.weight.mul_(8)  # sharp attention: a mistake in the scale cannot hide in near-uniform rows
    with record(encoder) as recording:
        encoder(images())
    before = walk(encoder, images())
    for i, block in enumerate(encoder.blocks):
        expected = attention_by_hand(block.attn, block.norm1(before[i]))
        torch.testing.assert_close(recording.attention[i + 1].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_layer_0_is_the_embedding_with_positions_and_layer_i_the_output_of_block_i(tiny_vit, options):
    encoder = tiny_vit(**options)
    nn.init.normal_(encoder.pos_embed)
    with record(encoder, attention=()) as recording:
        encoder(images())
    expected = walk(encoder, images())
    assert sorted(recording.tokens) == [0, 1, 2, 3]
    for layer, tokens in enumerate(expected):
        torch.testing.assert_close(recording.tokens[layer], tokens)


@torch.no_grad()
def test_attention_input_and_output_are_those_of_the_attention_module(tiny_vit):
    encoder = tiny_vit(init_values=0.1)
    with record(encoder, attention=(), tokens=(), attention_input="all", attention_output=[2]) as recording:
        encoder(images())
    before = walk(encoder, images())
    for i, block in enumerate(encoder.blocks):
        torch.testing.assert_close(recording.attention_input[i + 1], block.norm1(before[i]))
    second = encoder.blocks[1]
    torch.testing.assert_close(recording.attention_output[2], second.attn(second.norm1(before[1])))
    assert list(recording.attention_output) == [2]
    assert recording.attention == recording.tokens == {}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_recording_changes_outputs_by_rounding_only(tiny_vit, options):
    encoder = tiny_vit(**options)
    plain = encoder(images())
    with record(encoder, attention_input="all", attention_output="all"):
        recorded = encoder(images())
    torch.testing.assert_close(recorded, plain, rtol=0, atol=3e-6)
    torch.testing.assert_close(encoder(images()), plain, rtol=0, atol=0)


FAMILY = {
    "BEiT": ("beit_base_patch16_224", {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}, {}),
    "EVA-02": ("eva02_tiny_patch14_224", {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}, {}),
    "DINOv2 with registers": (
        "vit_small_patch14_reg4_dinov2", {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}, {}),
    "relative position": (
        "vit_relpos_small_patch16_224", {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}, {}),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}, {}),
}  # fmt: skip


def values_by_hand(attn: Any, x: Tensor) -> Tensor:
    """The values of an attention module, [B, heads, T, C / heads]."""
    if getattr(attn, "qkv", None) is not None:
        width = x.shape[-1]
        bias = attn.v_bias if getattr(attn, "v_bias", None) is not None else None
        if attn.qkv.bias is not None:
            bias = attn.qkv.bias[2 * width :]
        v = linear(x, attn.qkv.weight[2 * width :], bias)
    else:
        v = attn.v_proj(x)
    return v.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize(("name", "sizes", "options"), FAMILY.values(), ids=FAMILY.keys())
@torch.no_grad()
def test_recorded_attention_times_values_gives_the_module_s_output(name, sizes, options):
    encoder = create(name, 32, sizes=sizes, **options).eval()
    with record(encoder, attention_input="all", attention_output="all") as recording:
        recorded = encoder(images())
    torch.testing.assert_close(recorded, encoder(images()), rtol=0, atol=3e-6)
    for layer, block in enumerate(encoder.blocks, start=1):
        attention = recording.attention[layer]
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        mixed = attention @ values_by_hand(block.attn, recording.attention_input[layer])
        mixed = mixed.transpose(1, 2).flatten(2)
        for name_of_norm in ("norm", "sub_norm"):
            mixed = getattr(block.attn, name_of_norm, nn.Identity())(mixed)
        torch.testing.assert_close(block.attn.proj(mixed), recording.attention_output[layer], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_flags_and_hooks_are_restored(tiny_vit):
    encoder = tiny_vit()
    before = fused_flags(encoder)
    assert all(before)
    with record(encoder, attention_input="all", attention_output="all"):
        assert not any(fused_flags(encoder))
        encoder(images())
    assert fused_flags(encoder) == before
    assert hooks_of(encoder) == 0


@torch.no_grad()
def test_only_layers_with_recorded_attention_lose_their_fused_kernel(tiny_vit):
    encoder = tiny_vit()
    with record(encoder, attention=[2]) as recording:
        assert fused_flags(encoder) == [True, False, True]
        encoder(images())
    assert list(recording.attention) == [2]


def test_flags_and_hooks_are_restored_after_an_error_which_stays_itself(tiny_vit):
    encoder = tiny_vit()
    with pytest.raises(ZeroDivisionError), record(encoder):
        _ = 1 / 0
    assert all(fused_flags(encoder))
    assert hooks_of(encoder) == 0


def test_an_error_inside_the_forward_pass_restores_too(tiny_vit):
    encoder = tiny_vit()
    with pytest.raises(AssertionError), record(encoder):
        encoder(images(size=40))
    assert all(fused_flags(encoder))
    assert hooks_of(encoder) == 0


@torch.no_grad()
def test_records_nest(tiny_vit):
    encoder = tiny_vit()
    with record(encoder) as outer:
        with record(encoder) as inner:
            encoder(images())
        assert not any(fused_flags(encoder))
        torch.testing.assert_close(inner.attention[1], outer.attention[1])
    assert all(fused_flags(encoder))


@torch.no_grad()
def test_a_pass_replaces_what_the_one_before_left(tiny_vit):
    encoder = tiny_vit()
    with record(encoder) as recording:
        encoder(images(5))
        encoder(images(1))
    assert recording.attention[1].shape[0] == recording.tokens[0].shape[0] == 1


@torch.no_grad()
def test_negative_layers_count_from_the_last(tiny_vit):
    encoder = tiny_vit()
    with record(encoder, attention=[-1], tokens=[-2, 0]) as recording:
        encoder(images())
    assert list(recording.attention) == [3]
    assert sorted(recording.tokens) == [0, 2]


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"attention": [4]}, "layer 4 does not exist: this encoder has layers 1 to 3"),
        ({"attention": [0]}, "layer 0 does not exist: this encoder has layers 1 to 3"),
        ({"attention": [-4]}, "does not exist: this encoder has layers 1 to 3"),
        ({"tokens": [9]}, "layer 9 does not exist: this encoder has layers 0 to 3"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(tiny_vit, sites, message):
    encoder = tiny_vit()
    with pytest.raises(UserError, match=message), record(encoder, **sites):
        pass
    assert all(fused_flags(encoder))
    assert hooks_of(encoder) == 0


class Evasive(nn.Module):
    """Attention that has an `attn_drop` and never calls it."""

    def __init__(self, attn: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.attn_drop = attn.qkv, attn.proj, attn.num_heads, nn.Dropout(0.0)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_an_attention_that_never_calls_attn_drop_is_named(tiny_vit):
    encoder = tiny_vit()
    encoder.blocks[1].attn = Evasive(encoder.blocks[1].attn)
    with pytest.raises(UserError, match=r"nothing recorded of blocks\.1\.attn") as caught, record(encoder):
        encoder(images())
    assert "blocks.0" not in str(caught.value)
    assert hooks_of(encoder) == 0


@torch.no_grad()
def test_an_attention_without_attn_drop_is_named_and_earlier_blocks_are_restored(tiny_vit):
    encoder = tiny_vit()
    del encoder.blocks[1].attn.attn_drop
    with pytest.raises(UserError, match=r"blocks\.1\.attn .*no module `attn_drop`"), record(encoder):
        pass
    assert all(fused_flags(encoder))
    assert hooks_of(encoder) == 0


@torch.no_grad()
def test_attention_after_dropout_is_no_probability_and_refused(tiny_vit):
    encoder = tiny_vit(attn_drop_rate=0.5).train()
    with pytest.raises(UserError, match="rows of attention miss a sum of one"), record(encoder):
        encoder(images())


@torch.no_grad()
def test_training_looks_at_rows_once_and_analyses_each_time(tiny_vit):
    encoder = tiny_vit(attn_drop_rate=0.5)
    with pytest.raises(UserError, match="rows of attention miss a sum of one"), record(encoder, check_rows="once"):
        encoder.train()(images())  # the first pass is looked at, and being refused is not having been seen
    with pytest.raises(UserError, match="rows of attention miss a sum of one"), record(encoder, check_rows="once"):
        encoder.train()(images())
    with record(encoder, check_rows="once"):
        encoder.eval()(images())
    with record(encoder, check_rows="once") as recording:
        encoder.train()(images())
    assert (recording.attention[1].sum(-1) - 1).abs().max() > 0.1
    with pytest.raises(UserError, match="rows of attention miss a sum of one"), record(encoder):
        encoder.train()(images())


def test_a_model_of_no_known_family_is_refused():
    with pytest.raises(UserError, match=r"Linear is of no known family \(swin, vit\)"), record(nn.Linear(2, 2)):
        pass


@torch.no_grad()
def test_half_precision_models_record(tiny_vit):
    encoder = tiny_vit().bfloat16()
    with record(encoder) as recording:
        encoder(images().bfloat16())
    assert recording.attention[3].dtype == torch.bfloat16
    torch.testing.assert_close(recording.attention[3].float().sum(-1), torch.ones(2, 2, 17), atol=1e-2, rtol=0)


@torch.no_grad()
def test_a_sink_gets_what_a_recording_keeps(tiny_vit):
    encoder = tiny_vit()
    sites = {"attention_input": "all", "attention_output": "all"}
    with record(encoder, **sites) as recording:
        encoder(images())
    seen: dict[tuple[str, int], Tensor] = {}
    with record(encoder, **sites, sink=lambda kind, layer, values: seen.__setitem__((kind, layer), values)) as streamed:
        encoder(images())
    assert streamed.attention == streamed.tokens == streamed.attention_input == streamed.attention_output == {}
    assert len(seen) == 3 + 4 + 3 + 3
    for (kind, layer), values in seen.items():
        torch.testing.assert_close(values, getattr(recording, kind)[layer], rtol=0, atol=0)


@torch.no_grad()
def test_a_streamed_pass_retains_no_attention(tiny_vit):
    encoder = tiny_vit()
    alive: list[weakref.ref[Tensor]] = []
    with record(encoder, tokens=(), sink=lambda _kind, _layer, values: alive.append(weakref.ref(values))):
        encoder(images())
    gc.collect()
    assert len(alive) == 3
    assert not any(reference() is not None for reference in alive)


def test_gradients_flow_through_a_recorded_pass(tiny_vit):
    encoder = tiny_vit()
    x = images().requires_grad_()
    encoder(x).square().sum().backward()
    plain = x.grad.clone()
    x.grad = None
    with record(encoder) as recording:
        encoder(x).square().sum().backward()
    torch.testing.assert_close(x.grad, plain, rtol=1e-4, atol=1e-5)
    assert not recording.attention[1].requires_grad


def test_recording_without_a_forward_pass_is_an_error(tiny_vit):
    with pytest.raises(UserError, match="no forward pass reached it"), record(tiny_vit()):
        pass


BETWEEN: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    ("vit_small_patch14_dinov2", {"img_size": 28, "init_values": 0.5}),
    ("beit_base_patch16_224", {"init_values": 0.5}),
    ("vit_small_patch16_dinov3", {"init_values": 0.5}),
    ("vit_relpos_small_patch16_224", {}),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4)}),
]


@pytest.mark.parametrize(("name", "options"), BETWEEN, ids=[name for name, _ in BETWEEN])
@torch.no_grad()
def test_between_attention_and_mlp_lies_what_the_mlp_s_branch_is_added_to(name, options):
    small = {"img_size": 32, "embed_dim": 32} | ({} if "swin" in name else {"depth": 2, "num_heads": 2})
    encoder = build(name, small | options).eval()
    with record(encoder, attention=(), after_attention="all") as recording:
        encoder(torch.randn(2, 3, *encoder.patch_embed.img_size))
    for block in recording.anatomy.blocks:
        module = encoder.get_submodule(block.path)
        branch = module.mlp(module.norm2(recording.after_attention[block.layer]))
        scale = next((getattr(module, n) for n in ("ls2", "gamma_2") if getattr(module, n, None) is not None), None)
        branch = branch if scale is None else scale(branch) if isinstance(scale, torch.nn.Module) else scale * branch
        expected = recording.after_attention[block.layer] + branch
        torch.testing.assert_close(recording.tokens[block.layer], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "vit_relpos_base_patch32_plus_rpn_256"])
def test_a_block_that_normalises_behind_has_nothing_between(name):
    encoder = build(name, {"img_size": 64} if "vit" in name else {"img_size": 64, "window_size": 2})
    with pytest.raises(UserError, match="no residual stream between attention and MLP"):  # noqa: SIM117
        with record(encoder, attention=(), tokens=(), after_attention=[1]):
            pass
