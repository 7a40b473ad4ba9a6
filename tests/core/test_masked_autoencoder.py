"""MAE's decoder around a timm ViT, against Hugging Face's ViTMAEForPreTraining with the same random weights."""

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kamim_analysis.errors import UserError
from kamim_analysis.masked_autoencoder import (
    MaskedAutoencoder,
    mae_sincos_positions,
    patch_mean_and_std,
    patchify,
    unpatchify,
    visible_and_hidden,
    visible_only,
)
from kamim_analysis.shapes import Grid

DECODER = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}


def randomised(model: Any) -> Any:
    """Every weight and position drawn anew: none is left at zero or one, where a mix-up would not show."""
    draw = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        value.normal_(std=0.3, generator=draw)
    return model.eval()


@pytest.fixture(params=[False, True], ids=["pixels", "normalised"])
def reference(request) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever its own dependencies may deprecate
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        norm_pix_loss=request.param,
    )
    return randomised(ViTMAEForPreTraining(config))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's weights under timm's and MAE's names, queries, keys and values stacked in this order."""
    names = {
        r"^vit\.(embeddings\.)?": "encoder.",
        "position_embeddings": "pos_embed",
        r"patch_embeddings\.projection": "patch_embed.proj",
        r"encoder\.layernorm": "encoder.norm",
        r"^decoder\.": "",
        "decoder_layers": "decoder_blocks",
        r"encoder\.layers": "encoder.blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        r"attention\.o_proj": "attn.proj",
    }
    found = {}
    for key, value in state.items():
        if "q_proj" in key:
            value = torch.cat([state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")])
        for old, new in (names | {r"attention\.q_proj": "attn.qkv"}).items():
            key = re.sub(old, new, key)
        found[key] = value
    return {key: value for key, value in found.items() if "k_proj" not in key and "v_proj" not in key}


@pytest.fixture
def model(reference, tiny_vit) -> MaskedAutoencoder:
    made = MaskedAutoencoder(tiny_vit(depth=2), **DECODER, normalised_patches=reference.config.norm_pix_loss).eval()
    made.load_state_dict(renamed(reference.state_dict()), strict=True)
    return made


def inputs(count: int = 3, hidden: int = 12, side: int = 4) -> tuple[Tensor, Tensor]:
    """Images of unlike brightness and contrast, and masks that hide `hidden` patches each."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=draw) * torch.tensor([0.5, 1, 2])[:count, None, None, None] + 0.3
    order = torch.rand(count, side * side, generator=draw).argsort(1)
    return images, (order < hidden).unflatten(1, (side, side))


def referred(reference: Any, images: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
    """What the reference makes of the same mask, and its latents: it keeps the patches of least noise, in its order."""
    noise = mask.flatten(1).float() + torch.linspace(0, 0.5, mask[0].numel())
    output = reference(images, noise=noise)
    assert torch.equal(output.mask.bool(), mask.flatten(1))
    return output, reference.vit(images, noise=noise).last_hidden_state


@torch.no_grad()
def test_latents_of_visible_patches_are_the_references(model, reference):
    images, mask = inputs()
    _, expected = referred(reference, images, mask)
    visible, _ = visible_and_hidden(mask.flatten(1), 12)
    with visible_only(model.encoder.patch_drop, visible, 1):
        latents = model.encoder.forward_features(images)
    assert latents.shape == (3, 1 + 4, 32)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_predicted_pixels_are_the_references(model, reference):
    images, mask = inputs()
    output, _ = referred(reference, images, mask)
    logits = output.logits
    torch.testing.assert_close(model.predict_patches(images, mask), logits, rtol=1e-5, atol=1e-5)
    if reference.config.norm_pix_loss:
        target = reference.patchify(images)
        logits = logits * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    torch.testing.assert_close(model(images, mask), reference.unpatchify(logits), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_references_loss_from_our_patches(model, reference):
    images, mask = inputs()
    target = patchify(images, 8)
    torch.testing.assert_close(target, reference.patchify(images), rtol=0, atol=0)
    if reference.config.norm_pix_loss:
        mean, std = patch_mean_and_std(target)
        target = (target - mean) / std
    loss = (model.predict_patches(images, mask) - target)[mask.flatten(1)].square().mean()
    torch.testing.assert_close(loss, referred(reference, images, mask)[0].loss)


def autoencoder(tiny_vit: Any, normalised: bool = False, **options: Any) -> MaskedAutoencoder:
    made: MaskedAutoencoder = randomised(
        MaskedAutoencoder(tiny_vit(depth=2, **options), **DECODER, normalised_patches=normalised)
    )
    return made


@torch.no_grad()
def test_normalised_patches_against_a_loop(tiny_vit):
    model = autoencoder(tiny_vit, normalised=True)
    images, mask = inputs(count=2)
    raw, expected = model.predict_patches(images, mask).double(), torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    for b in range(2):
        for i in range(16):
            top, left = i // 4 * 8, i % 4 * 8
            pixels = images[b, :, top : top + 8, left : left + 8].double().flatten().tolist()
            mean = sum(pixels) / 192
            std = (sum((pixel - mean) ** 2 for pixel in pixels) / 191 + 1e-6) ** 0.5
            for k, value in enumerate(raw[b, i].tolist()):
                row, column, colour = k // 24, k % 24 // 3, k % 3
                expected[b, colour, top + row, left + column] = value * std + mean
    torch.testing.assert_close(model(images, mask).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_deviation_of_a_flat_patch_is_a_thousandth(tiny_vit):
    model = autoencoder(tiny_vit, normalised=True)
    images, mask = torch.full((1, 3, 32, 32), 0.75), inputs(count=1)[1]
    expected = 0.75 + 1e-3 * unpatchify(model.predict_patches(images, mask), Grid(4, 4), 8)
    torch.testing.assert_close(model(images, mask), expected, rtol=0, atol=1e-6)


def test_pictures_survive_patchify_and_back():
    images = torch.arange(2 * 3 * 16 * 24.0).reshape(2, 3, 16, 24)
    patches = patchify(images, 8)
    assert patches[0, 4, :4].tolist() == [images[0, c, 8, 8 + x].item() for x, c in ((0, 0), (0, 1), (0, 2), (1, 0))]
    torch.testing.assert_close(unpatchify(patches, Grid(2, 3), 8), images, rtol=0, atol=0)


VARIANTS = {
    "cls": {},
    "registers": {"reg_tokens": 3},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "positions of patches only": {"no_embed_class": True},
    "norm before the blocks": {"pre_norm": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("hidden", [0, 5, 16])
@torch.no_grad()
def test_hidden_pixels_cannot_be_seen(tiny_vit, options, hidden):
    model = autoencoder(tiny_vit, **options)
    images, mask = inputs(hidden=hidden)
    shown = mask.repeat_interleave(8, 1).repeat_interleave(8, 2).logical_not()[:, None]
    predicted = model(images, mask)
    torch.testing.assert_close(model(images * shown, mask), predicted, rtol=0, atol=0)
    assert predicted.shape == images.shape
    if hidden < 16:
        assert not torch.allclose(model(images + shown, mask), predicted)


@torch.no_grad()
def test_patches_go_back_to_where_they_came_from(tiny_vit):
    # without blocks every token goes its own way: a prediction hangs on its own patch alone
    model = autoencoder(tiny_vit)
    model.encoder.blocks = model.decoder_blocks = nn.Sequential()
    images, mask = inputs(hidden=9)
    other = images.clone()
    row, column = (~mask[1]).nonzero()[3].tolist()
    other[1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += torch.randn(3, 8, 8)
    moved = (model.predict_patches(other, mask) != model.predict_patches(images, mask)).any(-1)
    assert moved.nonzero().tolist() == [[1, 4 * row + column]]


def test_images_that_hide_unlike_numbers_of_patches(tiny_vit):
    model = autoencoder(tiny_vit)
    images, mask = inputs()
    mask[1] = True
    text = r"^images of one batch hide 12, 16 patches; a masked autoencoder needs the same number in every image$"
    with pytest.raises(UserError, match=text):
        model(images, mask)


def test_a_caller_who_knows_how_many_are_hidden_gets_the_same_prediction(tiny_vit):
    model = autoencoder(tiny_vit)
    images, mask = inputs(hidden=9)
    assert torch.equal(model.predict_patches(images, mask, 9), model.predict_patches(images, mask))


def test_the_encoder_is_left_without_hooks_and_unchanged(tiny_vit):
    model = autoencoder(tiny_vit)
    images, mask = inputs()
    before = model.encoder(images)
    model(images, mask)
    assert not any(module._forward_hooks for module in model.modules())
    visible, _ = visible_and_hidden(mask.flatten(1), 12)
    with pytest.raises(ZeroDivisionError), visible_only(model.encoder.patch_drop, visible, 1):
        _ = 1 / 0
    with pytest.raises(AssertionError, match="height"):
        model.predict_patches(images[..., :24, :], mask)
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model.encoder(images), before, rtol=0, atol=0)


def test_encoder_and_decoder_learn_and_the_positions_do_not(tiny_vit):
    model = autoencoder(tiny_vit)
    model(*inputs()).abs().mean().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert "decoder_pos_embed" in model.state_dict()
    assert "decoder_pos_embed" not in dict(model.named_parameters())


def test_names_and_shapes_are_those_of_the_public_checkpoints(tiny_vit):
    state = MaskedAutoencoder(tiny_vit(), decoder_width=16, decoder_depth=1, decoder_heads=2).state_dict()
    decoder = {key: tuple(value.shape) for key, value in state.items() if not key.startswith("encoder.")}
    assert decoder == {
        "mask_token": (1, 1, 16),
        "decoder_pos_embed": (1, 17, 16),
        "decoder_embed.weight": (16, 32),
        "decoder_embed.bias": (16,),
        "decoder_blocks.0.norm1.weight": (16,),
        "decoder_blocks.0.norm1.bias": (16,),
        "decoder_blocks.0.attn.qkv.weight": (48, 16),
        "decoder_blocks.0.attn.qkv.bias": (48,),
        "decoder_blocks.0.attn.proj.weight": (16, 16),
        "decoder_blocks.0.attn.proj.bias": (16,),
        "decoder_blocks.0.norm2.weight": (16,),
        "decoder_blocks.0.norm2.bias": (16,),
        "decoder_blocks.0.mlp.fc1.weight": (64, 16),
        "decoder_blocks.0.mlp.fc1.bias": (64,),
        "decoder_blocks.0.mlp.fc2.weight": (16, 64),
        "decoder_blocks.0.mlp.fc2.bias": (16,),
        "decoder_norm.weight": (16,),
        "decoder_norm.bias": (16,),
        "decoder_pred.weight": (192, 16),
        "decoder_pred.bias": (192,),
    }


def test_a_new_model_begins_with_maes_positions_and_leaves_the_encoder_alone(tiny_vit):
    encoder = tiny_vit()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model = MaskedAutoencoder(encoder, **DECODER)
    torch.testing.assert_close(model.decoder_pos_embed, mae_sincos_positions(16, Grid(4, 4)), rtol=0, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert model.mask_token.abs().max() > 0
    assert not model.decoder_pred.bias.any()


def test_positions_are_maes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding
    expected = build_2d_sinusoidal_position_embedding(3, 5, 24, cls_token=True)
    # theirs begins with the row, and is turned round to fit MAE's weights
    torch.testing.assert_close(mae_sincos_positions(24, Grid(3, 5))[0], expected.roll(12, dims=1))


def test_positions_by_hand():
    positions = mae_sincos_positions(8, Grid(2, 3), prefix_tokens=2)
    assert positions.shape == (1, 2 + 6, 8)
    assert not positions[0, :2].any()
    # patch 5: column 2, row 1, angular frequencies of 1 and 1 / 100
    column, row = torch.tensor([2, 0.02]), torch.tensor([1, 0.01])
    torch.testing.assert_close(positions[0, 7], torch.cat([column.sin(), column.cos(), row.sin(), row.cos()]))


def test_other_encoders_are_refused(tiny_vit, tiny_swin):
    with pytest.raises(UserError, match=r"^SwinTransformer cannot be shown the visible patches alone; "):
        MaskedAutoencoder(tiny_swin(), **DECODER)
    with pytest.raises(UserError, match=r"^VisionTransformer cannot be shown .* without patch dropout$"):
        MaskedAutoencoder(tiny_vit(patch_drop_rate=0.5), **DECODER)


@pytest.mark.parametrize(("width", "heads"), [(18, 2), (16, 3)])
def test_widths_that_do_not_divide(tiny_vit, width, heads):
    text = f"^decoder width {width} must be a multiple of 4 and of the number of heads, {heads}$"
    with pytest.raises(UserError, match=text):
        MaskedAutoencoder(tiny_vit(), decoder_width=width, decoder_depth=1, decoder_heads=heads)
