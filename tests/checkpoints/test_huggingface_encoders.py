"""transformers' files: a small model, saved as its authors do, opens as the same function of pictures, to 1e-5.

Tokens of all layers and attention of all heads are those that transformers itself computes. The epsilon of the norms
is far from timm's, so that one that is forgotten shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import open_model

Expected = tuple[list[Tensor], list[Tensor], Tensor]
Model = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A class of transformers, and what opening its file says."""

    model: str
    layout: str = "huggingface_vit"
    config: dict[str, Any] = field(default_factory=dict)
    """What differs from the smallest config."""
    left_out: str = ""


def beit(model: str = "BeitModel", left_out: str = "", **config: Any) -> Case:
    return Case(model=model, layout="huggingface_beit", config=config, left_out=left_out)


def dinov2(model: str = "Dinov2Model", left_out: str = "embeddings.mask_token", **config: Any) -> Case:
    return Case(model=model, layout="huggingface_dinov2", config=config, left_out=left_out)


def dinov3(**config: Any) -> Case:
    return Case(model="DINOv3ViTModel", layout="huggingface_dinov3", config=config, left_out="embeddings.mask_token")


CLASSIFIER = "classifier.bias, classifier.weight"
POOLER = "pooler.dense.bias, pooler.dense.weight"
REGISTERS = "Dinov2WithRegistersModel"
EVERY_BLOCK = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
POSITIONS = {"use_absolute_position_embeddings": True}
LM_HEAD = "embeddings.mask_token, lm_head.bias, lm_head.weight"
# all patches seen, in their order: `computed` gives them ascending noise
UNMASKED = {"mask_ratio": 0.0}

CASES = {
    "ViT": Case(model="ViTModel", left_out=POOLER),
    "ViT without query, key and value bias": Case(model="ViTModel", config={"qkv_bias": False}, left_out=POOLER),
    "ViT, classifier": Case(model="ViTForImageClassification", left_out=CLASSIFIER),
    "ViT, SimMIM": Case(model="ViTForMaskedImageModeling"),
    "MAE": Case(model="ViTMAEForPreTraining", config=UNMASKED),
    "MAE, encoder alone": Case(model="ViTMAEModel", config=UNMASKED),
    "I-JEPA": Case(model="IJepaModel"),
    "I-JEPA, classifier": Case(model="IJepaForImageClassification", left_out=CLASSIFIER),
    "BEiT, a table a block": beit(**EVERY_BLOCK),
    "BEiT, one table": beit(**SHARED),
    "BEiT, positions": beit(**POSITIONS),
    "BEiT, positions and a table a block": beit(**POSITIONS, **EVERY_BLOCK),
    "BEiT, a table a block, normalised before pooling": beit(**EVERY_BLOCK, use_mean_pooling=False),
    "BEiT, positions, normalised before pooling": beit(**POSITIONS, use_mean_pooling=False),
    "BEiT, classifier": beit("BeitForImageClassification", CLASSIFIER, **EVERY_BLOCK),
    "BEiT, pretraining": beit("BeitForMaskedImageModeling", LM_HEAD, use_mask_token=True, **SHARED),
    "BEiT, pretraining, with a norm of its own": beit(
        "BeitForMaskedImageModeling",
        f"../layernorm.bias, ../layernorm.weight, {LM_HEAD}",
        use_mask_token=True,
        use_mean_pooling=False,
        **SHARED,
    ),
    "DINOv2": dinov2(),
    "DINOv2 without mask token": dinov2(left_out="", use_mask_token=False),
    "DINOv2 with gates": dinov2(use_swiglu_ffn=True),
    "DINOv2, classifier": dinov2("Dinov2ForImageClassification", f"{CLASSIFIER}, embeddings.mask_token"),
    "DINOv2 with registers": dinov2(REGISTERS),
    "DINOv2 with four registers": dinov2(REGISTERS, num_register_tokens=4),
    "DINOv2 with registers and gates": dinov2(REGISTERS, use_swiglu_ffn=True),
    "DINOv2 with registers, classifier": dinov2(
        "Dinov2WithRegistersForImageClassification", f"{CLASSIFIER}, embeddings.mask_token"
    ),
    "DINOv3": dinov3(),
    "DINOv3 without registers": dinov3(num_register_tokens=0),
    "DINOv3 with gates": dinov3(use_gated_mlp=True, hidden_act="silu"),
    "DINOv3 without query and value bias": dinov3(query_bias=False, value_bias=False),
}


def computed(model: Any, images: Tensor) -> Expected:
    """Tokens of all layers, attention of all heads and the tokens after the final norm, by transformers."""
    encoder = model if hasattr(model, "embeddings") else model.base_model
    patches = (images.shape[-1] // model.config.patch_size) ** 2
    noise = {"noise": torch.arange(patches).expand(len(images), -1)} if hasattr(model.config, "mask_ratio") else {}
    outputs = encoder(images, output_hidden_states=True, output_attentions=True, **noise)
    final = outputs.last_hidden_state
    if hasattr(model, "lm_head") and model.config.use_mean_pooling:  # BEiT's pretraining has its norm in the head
        final = model.layernorm(final)
    return [t.double() for t in outputs.hidden_states], [a.double() for a in outputs.attentions], final.double()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_a_saved_directory_opens_as_the_same_function(case, transformers_model, images, assert_computes, tmp_path):
    model = transformers_model(case.model, layer_norm_eps=1e-3, **case.config)
    model.save_pretrained(tmp_path)
    opened = open_model(parse(str(tmp_path)))
    assert opened.provenance["format"] == case.layout
    assert ", ".join(said(opened, "left out: ")) == case.left_out
    assert not said(opened, "head count")
    assert_computes(opened.encoder, images, computed(model, images))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_a_state_dict_opens_as_the_same_function(case, transformers_model, images, assert_computes, tmp_path):
    """`torch.save(model.state_dict())`: transformers 5 has other names in memory than in its files, and no config."""
    model = transformers_model(case.model, **case.config)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    opened = open_model(parse(str(tmp_path / "weights.pth"), Reading(heads=4)), 12)
    assert opened.provenance["format"] == case.layout
    assert opened.encoder.blocks[0].norm1.eps == model.config.layer_norm_eps
    assert_computes(opened.encoder, images, computed(model, images))


def said(opened: Any, beginning: str) -> list[str]:
    """The notes of the manifest that begin so, without their beginning."""
    return [note.removeprefix(beginning) for note in opened.provenance["notes"] if note.startswith(beginning)]


@pytest.mark.parametrize(
    ("name", "prefix"), [("ViTModel", 1), ("IJepaModel", 0), ("Dinov2Model", 1), ("Dinov2WithRegistersModel", 1)]
)
@torch.no_grad()
def test_at_another_size_positions_are_those_of_timm_s_own_function(
    name, prefix, transformers_model, assert_computes, tmp_path
):
    small, large = transformers_model(name), transformers_model(name, image_size=20)
    state = small.state_dict()
    positions = state["embeddings.position_embeddings"]
    state["embeddings.position_embeddings"] = resample_abs_pos_embed(positions, [5, 5], num_prefix_tokens=prefix)
    large.load_state_dict(state)
    small.save_pretrained(tmp_path)
    opened = open_model(parse(str(tmp_path)), 20)
    assert "position embedding resized from 12 px to 20 px" in opened.provenance["notes"]
    pictures = torch.randn(2, 3, 20, 20)
    assert_computes(opened.encoder, pictures, computed(large, pictures))


@torch.no_grad()
def test_rotary_positions_suit_another_size_as_they_are(transformers_model, assert_computes, tmp_path):
    model = transformers_model("DINOv3ViTModel")
    model.save_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 20, 20)
    opened = open_model(parse(str(tmp_path)), 20)
    assert not said(opened, "position")
    assert_computes(opened.encoder, pictures, computed(model, pictures))


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new): value for key, value in state.items()}


def of_another_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the decoder's other name, of which transformers 5.10 writes the one and 5.23 the other."""
    old, new = "decoder_encoder.layer", "decoder_layers"
    return renamed(state, old, new) if any(old in key for key in state) else renamed(state, new, old)


def with_index(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the buffer that stood beside each table of relative positions."""
    name = "relative_position_bias_table"
    indices = {key.replace(name, "relative_position_index"): torch.zeros(10, 10) for key in state if name in key}
    return state | indices


@pytest.mark.parametrize(
    ("name", "config", "earlier"),
    [
        ("ViTMAEForPreTraining", {}, of_another_decoder),
        ("BeitModel", EVERY_BLOCK, with_index),
        ("BeitModel", SHARED, with_index),
    ],
)
def test_names_of_other_versions_open_too(name, config, earlier, transformers_model, tmp_path):
    from safetensors.torch import load_file, save_file

    transformers_model(name, **config).save_pretrained(tmp_path)
    now = open_model(parse(str(tmp_path)))
    state, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    assert earlier(state).keys() != state.keys()
    save_file(earlier(state), file)
    then = open_model(parse(str(tmp_path)))
    for one, other in ((now.encoder, then.encoder), (now.masked_model, then.masked_model)):
        states = [{} if model is None else model.state_dict() for model in (one, other)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
