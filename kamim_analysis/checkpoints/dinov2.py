"""DINOv2 (facebookresearch/dinov2), with and without registers: the hub's files and checkpoints of its training."""

from ._layout import SET_ASIDE, Hints, Recognised, Rules, State, head_count, patch_embedding, shape_of, square_side
from .timm_vit import arguments

BRANCHES = (("teacher", "teacher.backbone."), ("student", "student.backbone."), ("", "backbone."), ("", ""))
REQUIRED = ("patch_embed.proj.weight", "cls_token", "pos_embed", "mask_token",
            "blocks.0.attn.qkv.weight or blocks.0.0.attn.qkv.weight",
            "blocks.0.ls1.gamma or blocks.0.0.ls1.gamma")  # fmt: skip
# training may cut the blocks into chunks, `blocks.CHUNK.NUMBER`; it numbers them through all the same
_BLOCK = r"blocks\.(?:\d+\.)?(\d+)\."
RULES: Rules = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"register_tokens", "reg_token"),
    (r"((?:patch_embed\.proj|norm)\.(?:weight|bias))", r"\1"),
    (_BLOCK + r"((?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias)|ls[12]\.gamma)", r"blocks.\1.\2"),
    (_BLOCK + r"mlp\.w12\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"mask_token|(?:(?:student|teacher)\.)?(?:dino|ibot)_head\..+|(?:dino|ibot)_(?:patch_)?loss\..+", SET_ASIDE),
)
#: the published models
HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}


def convert(state: State, hints: Hints) -> Recognised:
    """As timm's ViT: where there are registers, the position of cls is added to cls, for timm has none for it."""
    heads, guess = head_count(shape_of(state, "pos_embed", 3)[-1], hints, HEADS)
    return recognised(state, heads, guess)


def recognised(state: State, heads: int, guess: tuple[str, ...]) -> Recognised:
    """The timm model of DINOv2's weights in timm's names, positions still as DINOv2 has them."""
    if "reg_token" in state:
        positions = state["pos_embed"]
        state = state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    hidden = (shape_of(state, "blocks.0.mlp.fc1.weight", 2)[0], shape_of(state, "blocks.0.mlp.fc2.weight", 2)[1])
    sizes = arguments(state, heads)
    if "reg_token" in state:  # those of 3 x 3 patches could also be of 2 x 2 with cls and four registers
        side = square_side(state["pos_embed"].shape[1]) or 0
        sizes |= {"img_size": side * patch_embedding(state)[1], "no_embed_class": True}
    return Recognised(
        # the two differ in the kind of MLP, which is no argument that a file could carry
        architecture="vit_giant_patch14_dinov2" if hidden[0] != hidden[1] else "vit_base_patch14_dinov2",
        model_args=sizes,
        encoder=state,
        announcements=guess,
    )
