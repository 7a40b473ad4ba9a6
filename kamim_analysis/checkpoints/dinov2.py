"""DINOv2 (facebookresearch/dinov2), with and without registers: the hub's files and checkpoints of its training."""

from ._layout import SET_ASIDE, Hints, Recognised, Rules, State, head_count
from .timm_vit import BLOCK_RULES, arguments

BRANCHES = (("teacher", "teacher.backbone."), ("student", "student.backbone."), ("", "backbone."), ("", ""))
REQUIRED = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed", "mask_token", "blocks.0.ls1.gamma")
RULES: Rules = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"register_tokens", "reg_token"),
    (r"((?:patch_embed\.proj|norm)\.(?:weight|bias))", r"\1"),
    *BLOCK_RULES,
    (r"(blocks\.\d+\.mlp\.)w12\.(weight|bias)", r"\1fc1.\2"),
    (r"(blocks\.\d+\.mlp\.)w3\.(weight|bias)", r"\1fc2.\2"),
    (r"mask_token|(?:(?:student|teacher)\.)?(?:dino|ibot)_head\..+|(?:dino|ibot)_(?:patch_)?loss\..+", SET_ASIDE),
)


def convert(state: State, hints: Hints) -> Recognised:
    """As timm's ViT: where there are registers, the position of cls is added to cls, for timm has none for it."""
    heads, guess = head_count(state["pos_embed"].shape[-1], hints, {384: 6, 768: 12, 1024: 16, 1536: 24})
    return recognised(state, heads, guess)


def recognised(state: State, heads: int, guess: tuple[str, ...]) -> Recognised:
    """The timm model of DINOv2's weights in timm's names, positions still as DINOv2 has them."""
    if "reg_token" in state:
        positions = state["pos_embed"]
        state = state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    gated = state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    return Recognised(
        # the two differ in the kind of MLP, which is no argument that a file could carry
        architecture="vit_giant_patch14_dinov2" if gated else "vit_base_patch14_dinov2",
        model_args=arguments(state, heads),
        encoder=state,
        announcements=guess,
    )
