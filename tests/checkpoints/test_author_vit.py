"""Files of ViTs in their authors' own layouts: what opens computes what the papers define, to 1e-5."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import OpenedModel, open_model

State = dict[str, Tensor]
TRAINING = {
    "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    "epoch": 3,
    "scaler": {"scale": 65536.0, "growth_tracker": 5},
}
HEAD = {"mlp.0.weight": torch.zeros(4, 64), "last_layer.weight_g": torch.ones(4, 1)}
PROJECTOR = {"0.weight": torch.zeros(4, 64), "1.running_mean": torch.zeros(4), "1.num_batches_tracked": torch.tensor(3)}


def under(prefix: str, state: State) -> State:
    """The state dict of a module that holds another as `prefix`."""
    return {prefix + name: tensor for name, tensor in state.items()}


def whole(state: State, _other: State) -> State:
    """The state dict and nothing around it."""
    return state


def dino(teacher: State, student: State) -> dict[str, Any]:
    """main_dino.py: the student is wrapped for several GPUs, the teacher is not."""
    return TRAINING | {
        "student": under("module.backbone.", student) | under("module.head.", HEAD),
        "teacher": under("backbone.", teacher) | under("head.", HEAD),
        "args": argparse.Namespace(arch="vit_small", lr=np.float64(5e-4), epochs=np.int64(100), use_fp16=np.True_),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def ibot(teacher: State, student: State) -> dict[str, Any]:
    """main_ibot.py and main_attmask.py: the student has an embedding for masked patches, heads a second output."""
    head = under("head.", HEAD | {"last_layer2.weight_g": torch.ones(4, 1)})
    student = under("backbone.", student | {"masked_embed": torch.zeros(1, 64)}) | head
    return TRAINING | {
        "student": under("module.", student),
        "teacher": under("backbone.", teacher) | head,
        "args": argparse.Namespace(pred_ratio=[0.0, 0.3], lr=5e-4),
        "ibot_loss": {"center": torch.zeros(1, 4), "center2": torch.zeros(1, 1, 4)},
    }


def moco(base: State, momentum: State) -> dict[str, Any]:
    """main_moco.py: the heads of timm's ViTs are projectors."""
    model = under("base_encoder.", base | under("head.", PROJECTOR)) | under("predictor.", PROJECTOR)
    model |= under("momentum_encoder.", momentum | under("head.", PROJECTOR))
    return TRAINING | {"arch": "vit_small", "state_dict": under("module.", model)}


def ijepa(target: State, online: State) -> dict[str, Any]:
    """src/train.py."""
    predictor = {"mask_token": torch.zeros(1, 1, 8), "predictor_pos_embed": torch.zeros(1, 9, 8)}
    return {
        "encoder": under("module.", online), "predictor": under("module.", predictor), "opt": TRAINING["optimizer"],
        "scaler": None, "target_encoder": under("module.", target), "epoch": 300, "loss": 0.1, "batch_size": 128,
        "world_size": 16, "lr": 1e-6,
    }  # fmt: skip


def dinov2_teacher(state: State, _other: State) -> dict[str, Any]:
    """teacher_checkpoint.pth of dinov2/train/train.py."""
    return {"teacher": under("backbone.", state) | under("dino_head.", HEAD) | under("ibot_head.", HEAD)}


def dinov2_chunks(state: State, other: State) -> dict[str, Any]:
    """The same, with blocks cut into chunks of two and numbered through: `blocks.CHUNK.NUMBER`."""
    cut = {re.sub(r"blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name): t for name, t in state.items()}
    return dinov2_teacher(cut, other)


def dino_training(teacher: State, student: State) -> dict[str, Any]:
    """SSLMetaArch of DINOv2 and DINOv3: student, teacher and the losses' centres in one module."""
    model = {"dino_loss.center": torch.zeros(1, 4), "ibot_patch_loss.center": torch.zeros(1, 1, 4)}
    for name, state in (("student.", student), ("teacher.", teacher)):
        model |= under(name, under("backbone.", state) | under("dino_head.", HEAD) | under("ibot_head.", HEAD))
    return {"model": model, "optimizer": TRAINING["optimizer"], "iteration": 12499}


def latent_mim(online: State, target: State) -> dict[str, Any]:
    """main_lmim.py."""
    decoder = {"mask_token": torch.zeros(1, 1, 8), "embed.weight": torch.zeros(8, 64), "norm.weight": torch.zeros(8)}
    model = under("encoder.", online) | under("target_encoder.", target) | under("decoder.", decoder)
    return TRAINING | {"state_dict": under("module.", model), "loss_scaler": TRAINING["scaler"]}


def simmim(state: State, _other: State) -> dict[str, Any]:
    """main_simmim.py."""
    decoder = {"decoder.0.weight": torch.zeros(48, 64, 1, 1), "decoder.0.bias": torch.zeros(48)}
    return TRAINING | {"model": under("encoder.", state) | decoder, "lr_scheduler": {"t_initial": 800}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file of a format."""

    layout: str
    file: Callable[[State, State], Any] = lambda state, _other: {"model": state}
    """What its authors save, given the encoder that is to be opened and another one of its shapes."""
    shapes: dict[str, Any] = field(default_factory=dict)
    """How the encoder differs from a plain ViT: arguments of `vit_shapes`."""
    branch: str = ""
    heads: int = 4
    told: bool = False
    """Whether the file or the format tells the head count; else the user does."""
    eps: float = 1e-6
    image_size: int | None = None

    def opened(self, folder: Path, state: State, other: State) -> OpenedModel:
        """The model of a file with `state` and, where the format has two encoders, `other`."""
        torch.save(self.file(state, other), folder / "a.pth")
        reading = Reading(heads=None if self.told else self.heads)
        return open_model(parse(f"{folder / 'a.pth'}{self.branch}", reading), self.image_size)


TOKEN = {"mask_token": (1, 64)}
DINOV2 = {"scale": "ls{}.gamma", "extra": TOKEN}
REGISTERS = DINOV2 | {"registers": "register_tokens"}
DINOV3 = {"scale": "ls{}.gamma", "positions": False, "registers": "storage_tokens",
          "qkv_bias": ("qkv.bias", "qkv.bias_mask"), "extra": TOKEN | {"rope_embed.periods": (4,)}}  # fmt: skip
GATED = {"qkv_bias": (), "mlp": "w123",
         "extra": DINOV3["extra"] | {"local_cls_norm.weight": (64,), "local_cls_norm.bias": (64,)}}  # fmt: skip
BEIT = {"qkv_bias": ("q_bias", "v_bias"), "scale": "gamma_{}", "positions": False, "shared_table": True,
        "extra": {"mask_token": (1, 1, 64), "rel_pos_bias.relative_position_index": (10, 10)}}  # fmt: skip
TUNED = BEIT | {"shared_table": False, "table": True, "norm": "fc_norm",
                "extra": {"blocks.1.attn.relative_position_index": (10, 10), "mask_token": (1, 1, 64)}}  # fmt: skip
POSITIONS = BEIT | {"shared_table": False, "positions": True, "extra": {"mask_token": (1, 1, 64)}}
LM_HEAD = {"lm_head.weight": (5, 64), "lm_head.bias": (5,)}
PROJECTED = {"head.linear0.weight": (64, 64), "head.norm0.weight": (64,), "head.norm0.bias": (64,)}
LINEAR = {"embed.proj.weight": (64, 48), "embed.proj.bias": (64,), "pos_embed.pos_embeds": (10, 64)}
LATENT = {"embedding": False, "positions": False, "extra": LINEAR | PROJECTED}

CASES = {
    "MAE's encoder": Case(layout="timm_vit"),
    "DINO's backbone": Case(layout="timm_vit", file=whole),
    "DINO": Case(layout="dino", file=dino),
    "DINO's student": Case(layout="dino", file=lambda one, two: dino(two, one), branch="@student"),
    "iBOT": Case(layout="dino", file=ibot),
    "iBOT's student": Case(layout="dino", file=lambda one, two: ibot(two, one), branch="@student"),
    "MoCo v3": Case(layout="moco_v3", file=moco),
    "MoCo v3's ViT-S": Case(layout="moco_v3", file=moco, shapes={"width": 384, "depth": 1}, heads=12, told=True),
    "MoCo v3's momentum": Case(layout="moco_v3", file=lambda one, two: moco(two, one), branch="@momentum_encoder"),
    "I-JEPA": Case(layout="timm_vit", file=ijepa, shapes={"cls": False}),
    "I-JEPA online": Case(
        layout="timm_vit", file=lambda one, two: ijepa(two, one), shapes={"cls": False}, branch="@encoder"
    ),
    "DINOv2": Case(layout="dinov2", file=whole, shapes=DINOV2),
    "DINOv2 with registers": Case(layout="dinov2", file=whole, shapes=REGISTERS),
    "DINOv2 with gates": Case(layout="dinov2", file=whole, shapes=REGISTERS | {"mlp": "w12"}),
    "DINOv2's teacher": Case(layout="dinov2", file=dinov2_teacher, shapes=DINOV2),
    "DINOv2 in chunks": Case(layout="dinov2", file=dinov2_chunks, shapes=DINOV2 | {"mlp": "w12", "depth": 3}),
    "DINOv2 in training": Case(layout="dinov2", file=dino_training, shapes=REGISTERS),
    "DINOv2's student": Case(
        layout="dinov2", file=lambda one, two: dino_training(two, one), shapes=DINOV2, branch="@student"
    ),
    "DINOv3": Case(layout="dinov3", file=whole, shapes=DINOV3, eps=1e-5, image_size=12),
    "DINOv3 with gates": Case(layout="dinov3", file=whole, shapes=DINOV3 | GATED, eps=1e-5, image_size=12),
    "DINOv3 in training": Case(layout="dinov3", file=dino_training, shapes=DINOV3, eps=1e-5, image_size=12),
    "BEiT": Case(layout="beit", shapes=BEIT | {"extra": BEIT["extra"] | LM_HEAD}, told=True),
    "BEiT, fine-tuned": Case(layout="beit", shapes=TUNED | {"extra": {"head.weight": (5, 64)}}, told=True),
    "SimMIM": Case(layout="simmim", file=simmim, shapes=BEIT, told=True),
    "SimMIM, a table a block": Case(layout="simmim", file=simmim, shapes=TUNED, told=True),
    "SimMIM, no norm": Case(layout="simmim", file=simmim, shapes=BEIT | {"norm": ""}, told=True),
    "SimMIM with positions": Case(layout="simmim", file=simmim, shapes=POSITIONS),
    "SimMIM without biases": Case(layout="simmim", file=simmim, shapes=BEIT | {"qkv_bias": (), "scale": ""}, told=True),
    "Latent MIM": Case(layout="latent_mim", file=latent_mim, shapes=LATENT, branch="@encoder"),
    "Latent MIM's target": Case(
        layout="latent_mim", file=lambda one, two: latent_mim(two, one), shapes=LATENT, branch="@target_encoder"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_all_layers_and_heads_are_those_of_the_authors_definition(tmp_path, case, reference, images, assert_computes):
    shapes = reference.vit_shapes(**case.shapes)
    state, other = reference.drawn(shapes), reference.drawn(shapes, seed=1)
    opened = case.opened(tmp_path, state, other)
    assert opened.provenance["format"] == case.layout
    assert_computes(opened.encoder, images, reference.vit(state, images, case.heads, case.eps))


def test_the_norm_after_pooling_is_the_file_s(tmp_path, reference, images, close):
    case = CASES["BEiT, fine-tuned"]
    state = reference.drawn(reference.vit_shapes(**case.shapes))
    pooled = reference.vit(state, images, 4)[2][:, 1:].mean(1)
    close(case.opened(tmp_path, state, state).encoder(images), reference.layer_norm(state, "fc_norm", pooled, 1e-6))


# a head, a token of pretraining, buffers; without registers DINOv2 is another model
MAY_BE_MISSING = re.compile("head|mask_token|relative_position_index|periods|local_cls_norm|register_tokens")
OF_EACH_KIND = (
    "DINO", "MoCo v3", "I-JEPA", "DINOv2 with gates", "DINOv3", "DINOv3 with gates", "BEiT, fine-tuned", "SimMIM",
    "Latent MIM",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_a_file_that_lacks_any_weight_is_refused_in_one_line(tmp_path, name, reference):
    case = CASES[name]
    state = reference.drawn(reference.vit_shapes(**case.shapes))
    needed = [key for key in state if not MAY_BE_MISSING.search(key)]
    # the second block's like the first's, which tell the architecture; one of it will do
    for key in [key for key in needed if not key.startswith("blocks.1.") or "norm1" in key]:
        less = {other: tensor for other, tensor in state.items() if other != key}
        with pytest.raises(UserError) as caught:
            case.opened(tmp_path, less, less)
        assert str(caught.value).isprintable(), key
