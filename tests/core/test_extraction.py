"""Extraction against plain hooks on the blocks, layer by layer and pooling by pooling; what is not finite is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kamim_analysis.data import Pictures, Unreadable, open_pictures
from kamim_analysis.encoders import build, create
from kamim_analysis.errors import UserError
from kamim_analysis.evaluation_set import image_batches
from kamim_analysis.extraction import (
    CLS_WEIGHTS,
    PATCHES,
    Extractor,
    Loading,
    Rows,
    Wanted,
    default_poolings,
    extract,
    resolve_layers,
)
from kamim_analysis.opening import OpenedModel
from kamim_analysis.reconstruction import MaskSettings

ALL = ("mean", "cls", "central", "cls_attention", PATCHES, CLS_WEIGHTS)


@pytest.fixture
def folder(tmp_path) -> Pictures:
    """Seven pictures of two classes."""
    draw = np.random.default_rng(0)
    for i in range(7):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 36, 3), np.uint8)).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    return open_pictures(str(tmp_path), "val")


def opened(encoder: Any) -> OpenedModel:
    import timm.data

    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=encoder)
    transform = timm.data.create_transform(**config, is_training=False)
    return OpenedModel("made", "made", encoder, None, MaskSettings(), transform)


def seen_by_hooks(encoder: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens of layer 0, 1, ... and softmax attention of block 1, 2, ..., from hooks of our own and its own formula."""
    tokens, attention, handles = [], [], []
    for block in encoder.blocks:
        handles.append(block.register_forward_pre_hook(lambda _m, inputs: tokens.append(inputs[0])))

        def attend(module: Any, inputs: Any) -> None:
            query, key, _ = module.qkv(inputs[0]).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
            attention.append((query @ key.mT * module.scale).softmax(-1))

        handles.append(block.attn.register_forward_pre_hook(attend))
    handles.append(encoder.norm.register_forward_pre_hook(lambda _m, inputs: tokens.append(inputs[0])))
    with torch.no_grad():
        encoder(images)
    for handle in handles:
        handle.remove()
    return tokens, attention


@pytest.mark.parametrize("norm", ["none", "last", "all"])
def test_every_layer_and_pooling_is_what_plain_hooks_see(norm, tiny_vit, folder):
    encoder = tiny_vit()
    torch.nn.init.normal_(encoder.norm.weight)  # so that a norm that is left out, or applied twice, is seen
    model = opened(encoder)
    wanted = Wanted(layers=(0, 1, 3), poolings=ALL, norm=norm)
    indices = [5, 0, 6, 2]
    features = extract(model, folder, indices, wanted, Unreadable(4), Loading(batch_size=3, workers=0))
    (batch,) = image_batches(folder, indices, model.transform, Unreadable(4), batch_size=4)
    tokens, attention = seen_by_hooks(encoder, batch.images)
    assert features.indices.tolist() == indices
    assert features.labels.tolist() == [int(folder.labels[i]) for i in indices]
    for layer in wanted.layers:
        values = tokens[layer].detach()
        if norm == "all" or (norm == "last" and layer == 3):
            values = encoder.norm(values)
        found = {name: features.by_key[layer, name] for name in ALL if (layer, name) in features.by_key}
        torch.testing.assert_close(found["cls"], values[:, 0])
        torch.testing.assert_close(found["mean"], torch.stack([values[:, i] for i in range(1, 17)]).mean(0))
        torch.testing.assert_close(found["central"], torch.stack([values[:, i] for i in (6, 7, 10, 11)]).mean(0))
        torch.testing.assert_close(found[PATCHES], values[:, 1:])
        assert ("cls_attention" in found) == (CLS_WEIGHTS in found) == (layer > 0)  # the embedding attends to nothing
        if layer:
            shares = attention[layer - 1].mean(1)[:, 0, 1:]
            shares = shares / shares.sum(1, keepdim=True)
            torch.testing.assert_close(found[CLS_WEIGHTS], shares)
            torch.testing.assert_close(found["cls_attention"], (shares[:, :, None] * values[:, 1:]).sum(1))


def test_the_last_layer_normed_is_what_the_encoder_itself_puts_out(tiny_vit):
    encoder, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    features = Extractor(encoder, Wanted(layers=(3,), poolings=("cls", PATCHES)))(images)
    with torch.no_grad():
        expected = encoder.forward_features(images)
    torch.testing.assert_close(features[3, "cls"], expected[:, 0])
    torch.testing.assert_close(features[3, PATCHES], expected[:, 1:])


def test_no_feature_keeps_a_layers_tokens_in_memory(tiny_vit):
    features = Extractor(tiny_vit(), Wanted(layers=(0, 1, 2, 3), poolings=("cls", "mean", "central", "cls_attention")))
    for values in features(torch.randn(2, 3, 32, 32)).values():
        assert values.untyped_storage().nbytes() == values.numel() * values.element_size()


def test_a_swin_has_a_width_for_each_stage_and_no_cls(tiny_swin):
    encoder, images = tiny_swin(), torch.randn(2, 3, 32, 32)
    assert default_poolings(encoder) == ["central", "mean"]
    features = Extractor(encoder, Wanted(layers=(1, 2, 4), poolings=("mean", "central")))(images)
    assert {key: values.shape[1] for key, values in features.items()} == {
        (layer, name): width for layer, width in ((1, 16), (2, 16), (4, 32)) for name in ("mean", "central")
    }
    outputs: list[Tensor] = []
    handle = encoder.layers[0].blocks[0].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.no_grad():
        last = encoder.forward_features(images)
    handle.remove()
    torch.testing.assert_close(features[1, "mean"], outputs[0].detach().mean((1, 2)))
    torch.testing.assert_close(features[1, "central"], outputs[0].detach()[:, 2:6, 2:6].mean((1, 2)))
    torch.testing.assert_close(features[4, "mean"], last.mean((1, 2)))


def test_registers_are_no_patches():
    encoder = build("vit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2,
                                             "num_heads": 2, "reg_tokens": 3}).eval()  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    features = Extractor(encoder, Wanted(layers=(2,), poolings=("mean", "cls", CLS_WEIGHTS)))(images)
    with torch.no_grad():
        tokens = encoder.forward_features(images)
    torch.testing.assert_close(features[2, "mean"], tokens[:, 4:].mean(1))
    torch.testing.assert_close(features[2, "cls"], tokens[:, 0])
    assert features[2, CLS_WEIGHTS].shape == (2, 16)
    torch.testing.assert_close(features[2, CLS_WEIGHTS].sum(1), torch.ones(2))


def test_layers_by_name_and_number(tiny_vit):
    encoder = tiny_vit()
    assert resolve_layers("all", encoder) == (0, 1, 2, 3)
    assert resolve_layers([-1, 0, 3], encoder) == (3, 0)
    with pytest.raises(UserError, match=r"layer 4 does not exist: this encoder has layers 0 \(the embedding\) to 3"):
        resolve_layers([4], encoder)
    with pytest.raises(UserError, match="layer -5 does not exist"):
        resolve_layers([-5], encoder)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(layers=(1,), poolings=("cls",)), "this encoder has no cls token, which 'cls' needs"),
        (Wanted(layers=(1,), poolings=(CLS_WEIGHTS,)), "this encoder has no cls token, which 'cls_weights' needs"),
        (Wanted(layers=(1,), poolings=("abmilp",)), "pooling 'abmilp' is learned; parameter-free are central, cls"),
        (Wanted(layers=(1,), poolings=("meen",)), r"unknown pooling 'meen' \(did you mean 'mean'\?\)"),
    ],
)
def test_what_an_encoder_does_not_offer_is_refused(wanted, message, tiny_swin):
    with pytest.raises(UserError, match=message):
        Extractor(tiny_swin(), wanted)


def test_a_final_norm_that_is_wider_than_a_layer_is_refused(tiny_swin):
    extractor = Extractor(tiny_swin(), Wanted(layers=(1,), norm="all"))
    with pytest.raises(UserError, match="layer 1 is narrower than the final norm; take --norm last"):
        extractor(torch.zeros(1, 3, 32, 32))


def test_features_that_are_not_finite_are_named_by_layer_and_picture(tiny_vit, folder):
    encoder = tiny_vit()
    with torch.no_grad():
        encoder.blocks[2].mlp.fc2.bias[0] = float("nan")
    wanted = Wanted(layers=(1, 2, 3), poolings=("mean", "cls"))
    with pytest.raises(UserError, match=r"made: layer 3 \(mean\) of image 'class1/5.png' is not finite"):
        extract(opened(encoder), folder, [6, 0], wanted, Unreadable(2), Loading(workers=0))


def test_one_bad_picture_is_named_among_good_ones(tiny_vit, folder):
    model = opened(tiny_vit())
    broken, _ = folder.read(2)

    def transform(image: Image.Image) -> Tensor:
        values = model.transform(image)
        return values / 0 if np.array_equal(np.asarray(image), broken) else values

    model_of_bad = OpenedModel("made", "made", model.encoder, None, MaskSettings(), transform)
    with pytest.raises(UserError, match=rf"layer 0 \(mean\) of image '{folder.identity(2)}' is not finite"):
        extract(model_of_bad, folder, [0, 1, 2, 3], Wanted(layers=(0, 1)), Unreadable(4), Loading(workers=0))


def test_a_tensor_is_rows(tiny_vit, folder):
    features = extract(opened(tiny_vit()), folder, [3, 1, 4], Wanted(layers=(3,), poolings=(PATCHES,)), Unreadable(3),
                       Loading(workers=0))  # fmt: skip
    rows = features.rows((3, PATCHES))
    assert isinstance(rows, Rows)
    assert torch.equal(rows[torch.tensor([2, 0])], features.by_key[3, PATCHES][[2, 0]])


def test_an_encoder_without_cls_token_pools_its_patches():
    make: Callable[..., Any] = create
    encoder = make("vit_tiny", 32, sizes={"width": 16, "depth": 1, "heads": 2, "patch_size": 8}, class_token=False,
                   global_pool="avg")  # fmt: skip
    assert default_poolings(encoder) == ["central", "mean"]
    found = Extractor(encoder.eval(), Wanted(layers=(0, 1), poolings=("mean",)))(torch.randn(1, 3, 32, 32))
    assert found[1, "mean"].shape == (1, 16)
