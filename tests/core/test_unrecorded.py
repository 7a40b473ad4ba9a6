"""Attention that the recorder does not see, against an oracle that watches where a softmax is taken."""

import gc
import logging
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from kamim_analysis.errors import UserError
from kamim_analysis.recorder import record
from kamim_analysis.unrecorded import attention_modules, unrecorded_attention

SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}


def build(name: str, **options: Any) -> Any:
    return timm.create_model(name, num_classes=0, **options).eval()


def partly_recorded() -> Any:
    """CaiT with plain attention in its blocks: those record, its two blocks of class attention do not."""
    return build("cait_xxs24_224", attn_block=Attention, **SMALL)


class SoftmaxWatch(TorchFunctionMode):
    """Names the innermost module that runs whenever a softmax is taken, fused or not."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in encoder.named_modules()}
        self.running: list[nn.Module] = []
        self.heard: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("softmax", "scaled_dot_product_attention"):
            self.heard.add(self.paths[self.running[-1]])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def softmax_sites(encoder: nn.Module, image: Tensor) -> set[str]:
    """Paths of the modules that take a softmax in a forward pass."""
    with SoftmaxWatch(encoder) as watch:
        enter = register_module_forward_pre_hook(lambda module, _inputs: watch.running.append(module))
        leave = register_module_forward_hook(lambda _module, _inputs, _output: watch.running.pop() and None)
        try:
            encoder(image)
        finally:
            enter.remove()
            leave.remove()
    return watch.heard


WATCHED = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "two in a block": ("vit_small_patch16_18x2_224", SMALL),
    "in the block itself": ("vit_base_patch16_xp_224", SMALL),
    "differential": ("vit_dwee_patch16_reg1_gap_256", SMALL),
    "attention pooling": ("vit_base_patch16_siglip_224", SMALL),
    "talking heads, class attention": ("cait_xxs24_224", SMALL),
    "channels": ("xcit_nano_12_p16_224", SMALL),
    "SAM": ("samvit_base_patch16", SMALL),
    "outlook, class attention": ("volo_d1_224", {"img_size": 32}),
    "subsampled queries": ("levit_128s", {}),
    "convolutional net with attention": ("botnet26t_256", {}),
    "convolutional net with attention pooling": ("resnet50_clip", {}),
    "selective kernels": ("skresnet18", {}),
    "split attention": ("resnest14d", {}),
    "squeeze and excite": ("seresnet18", {}),
}
# a softmax over branches, for each channel
GATES = ("SelectiveKernelAttn", "RadixSoftmax")


@pytest.mark.parametrize(("name", "options"), WATCHED.values(), ids=WATCHED.keys())
def test_attention_is_found_wherever_a_softmax_is_taken_but_in_heads_and_channel_gates(name, options):
    encoder = build(name, **options)
    size = options.get("img_size", encoder.pretrained_cfg["input_size"][-1])
    heard = softmax_sites(encoder, torch.zeros(1, 3, size, size))
    gates = {path for path in heard if type(encoder.get_submodule(path)).__name__ in GATES}
    pooling = {path for path in heard if path.split(".")[0] in ("attn_pool", "head")}
    assert set(attention_modules(encoder)) == heard - gates - pooling


def test_a_model_that_records_fully_misses_nothing(tiny_vit, tiny_swin):
    assert unrecorded_attention(tiny_vit(reg_tokens=2)) == []
    assert unrecorded_attention(tiny_swin()) == []


def test_class_attention_is_missed():
    assert unrecorded_attention(partly_recorded()) == ["blocks_token_only.0.attn", "blocks_token_only.1.attn"]


def test_a_pooling_head_is_no_attention_of_a_layer_but_one_among_the_blocks_is():
    encoder = build("vit_base_patch16_siglip_224", **SMALL)
    assert unrecorded_attention(encoder) == []
    encoder.blocks[1].pooled = encoder.attn_pool
    assert unrecorded_attention(encoder) == ["blocks.1.pooled"]


def test_torch_s_own_attention_is_missed_and_what_lies_inside_recorded_attention_is_not(tiny_vit):
    encoder = tiny_vit()
    encoder.norm = nn.Sequential(nn.MultiheadAttention(32, 2))
    encoder.blocks[0].attn.proj = nn.MultiheadAttention(32, 2)
    assert unrecorded_attention(encoder) == ["norm.0"]


def test_a_model_of_no_known_family_is_refused():
    with pytest.raises(UserError, match="Hiera is of no known family"), torch.device("meta"):
        unrecorded_attention(build("hiera_tiny_224"))


def pass_through(encoder: Any, **sites: Any) -> Any:
    with torch.no_grad(), record(encoder, **sites) as recording:
        encoder(torch.zeros(1, 3, 32, 32))
    return recording


def test_partial_recording_warns_once_for_each_encoder(caplog):
    encoder = partly_recorded()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert sorted(pass_through(encoder).attention) == [1, 2]
    expected = "Cait: 2 attention modules are not recorded: blocks_token_only.0.attn, blocks_token_only.1.attn"
    assert caplog.messages == [expected]
    other = partly_recorded()
    pass_through(other)
    assert caplog.messages == [expected] * 2


def test_the_warning_names_three_paths_and_counts_the_rest(caplog):
    pass_through(build("cait_xxs24_224", attn_block=Attention, depth_token_only=5, **SMALL))
    (message,) = caplog.messages
    assert message.startswith("Cait: 5 attention modules are not recorded: blocks_token_only.0.attn, ")
    assert message.endswith("blocks_token_only.2.attn, ...")


def test_full_recordings_and_those_of_tokens_alone_do_not_warn(caplog, tiny_vit):
    pass_through(tiny_vit())
    encoder = partly_recorded()
    pass_through(encoder, attention=())
    assert caplog.messages == []
    pass_through(encoder)
    assert len(caplog.messages) == 1


def test_encoders_are_not_kept_alive_by_having_been_looked_through():
    from kamim_analysis import recorder

    encoder = partly_recorded()
    pass_through(encoder)
    assert encoder in recorder._looked_through
    before = len(recorder._looked_through)
    del encoder
    gc.collect()
    assert len(recorder._looked_through) < before
