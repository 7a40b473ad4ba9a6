"""Encoders by name: sizes that reach timm, errors in one line, pooling."""

import pytest
import torch

from kamim_analysis.encoders import anatomy, build, create, evaluating, patch_tokens, pool
from kamim_analysis.errors import UserError
from kamim_analysis.timm_names import SHORT_NAMES

PAPERS = {  # width, heads, blocks at 192 px (KAMIM, section 4)
    "vit_tiny": (192, 3, 12),
    "vit_small": (384, 6, 12),
    "vit_base": (768, 12, 12),
    "swin_tiny": (768, 24, 12),
    "swin_base": (1024, 32, 24),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_encoders(name):
    with torch.device("meta"):
        encoder = create(name, 192)
    body = anatomy(encoder)
    assert (body.width, body.blocks[-1].heads, len(body.blocks)) == PAPERS[name]
    assert tuple(body.image_size) == (192, 192)
    assert (body.mask_patch, body.stride) == ((16, 16) if name.startswith("vit") else (4, 32))
    assert PAPERS.keys() == SHORT_NAMES.keys()
    if name.startswith("swin"):
        assert [block.window.size for block in body.blocks] == [(6, 6)] * len(body.blocks)


def test_sizes_reach_timm():
    encoder = create("vit_tiny", 40, sizes={"width": 48, "depth": 2, "heads": 4, "patch_size": 8}, reg_tokens=2)
    body = anatomy(encoder)
    assert (body.width, len(body.blocks), body.blocks[0].heads, body.mask_patch) == (48, 2, 4, 8)
    assert body.prefix_tokens == 3
    assert encoder(torch.zeros(1, 3, 40, 40)).shape == (1, 48)


def test_an_encoder_carries_what_timm_needs_to_build_it_again(tiny_vit):
    encoder = tiny_vit(reg_tokens=4, qk_norm=True)
    again = build(encoder.architecture, encoder.model_args)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}


def test_an_encoder_has_no_classifier(tiny_vit):
    assert not any(key.startswith("head") for key in tiny_vit().state_dict())


def test_the_same_seed_gives_the_same_weights(tiny_vit):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(tiny_vit().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not torch.equal(states[0]["blocks.0.attn.qkv.weight"], states[2]["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("name", "size", "sizes", "message"),
    [
        ("vit_tiy", 192, {}, "timm has no architecture 'vit_tiy'; did you mean 'vit_tiny'"),
        ("vit_tiny", 192, {"width": 100, "heads": 3}, "timm cannot build vit_tiny_patch16_224 with .*embed_dim"),
        ("swin_tiny", 100, {}, "image size 100 does not suit a Swin; choose a multiple of 32"),
        ("swin_tiny", 192, {"depth": 2}, r"encoder\.depth cannot be set for a Swin, whose stages differ; leave it out"),
        ("resnet18", 192, {}, "."),
        ("vit_tiny", 100, {}, "100"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, size, sizes, message):
    with pytest.raises(UserError, match=message) as caught:
        anatomy(create(name, size, sizes=sizes))
    assert "\n" not in str(caught.value)


def test_patch_tokens_of_vit_and_swin():
    flat = torch.randn(2, 9, 4)
    torch.testing.assert_close(patch_tokens(flat, 5), flat[:, 5:])
    torch.testing.assert_close(patch_tokens(flat[:, :6].reshape(2, 2, 3, 4), 0), flat[:, :6])


def test_pooling():
    body = anatomy(create("vit_tiny", 32, sizes={"patch_size": 16, "width": 12, "depth": 1}, reg_tokens=4))
    tokens = torch.randn(2, 9, 12)
    torch.testing.assert_close(pool(tokens, body, "mean"), tokens[:, 5:].mean(1))
    torch.testing.assert_close(pool(tokens, body, "cls"), tokens[:, 0])


def test_cls_of_an_encoder_with_registers_alone_is_refused():
    options = {"reg_tokens": 4, "class_token": False, "global_pool": "avg"}
    body = anatomy(create("vit_tiny", 32, sizes={"patch_size": 16, "width": 12, "depth": 1}, **options))
    with pytest.raises(UserError, match="this encoder has no cls token; use --pooling mean"):
        pool(torch.randn(2, 8, 12), body, "cls")


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_after_an_error_too(training):
    model = torch.nn.Dropout(0.5).train(training)
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert model.training == training
    assert torch.is_grad_enabled()
