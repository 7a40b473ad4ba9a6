"""Writes docs/RECORDER.md: what the recorder sees of every family of timm, tried out and not claimed.

    python tests/coverage/recorder_table.py            # write the table for the installed timm
    python tests/coverage/recorder_table.py --check    # exit 1 and show the difference if the file says otherwise

A family is a module of `timm.models`. `ROWS` names the architectures tried; a family without a row must have no
attention, which is looked up, so that a new family of a later timm cannot go missing. Encoders of no known family are
looked at on torch's meta device only, without weights, so that their size does not matter.
"""

import argparse
import difflib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Attention
from torch import Tensor, nn

from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.recorder import record
from kamim_analysis.unrecorded import attention_modules, unrecorded_attention

DOCUMENT = Path(__file__).parents[2] / "docs" / "RECORDER.md"
TOLERANCE = 1e-5
INTRODUCTION = """# What the recorder sees of timm's models

Written by `python tests/coverage/recorder_table.py` with timm {version}; do not edit by hand.

`record` shows attention that passes, one map for each head, through the `attn_drop` of a block's attention module. For
every family (a module of `timm.models`) with attention, architectures were built without classifier, with random
weights, as small as their constructors allow, and recorded on one image:

* **fully**: the attention of every module outside a pooling head was recorded, its rows sum to one, and the output
  differs by less than 1e-5 from that of an unhooked pass. Heads that pool by attention, for CLIP's or SigLIP's
  features, come after the last layer and are not counted.
* **partly**: all blocks were recorded, but there is attention outside of them, which is listed. At run time `record`
  logs a warning that names it, once for each encoder.
* **not**: `record` raises `UserError`, never shows something else in place of attention.

{summary}

"""
COLUMNS = ("family", "architecture tried", "what is special", "records", "reason or what is missing")


@dataclass(frozen=True)
class Row:
    """An architecture to be tried."""

    family: str
    architecture: str
    special: str
    sizes: dict[str, Any] = field(default_factory=dict)
    """Arguments that only make it small."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments that change its attention, named in the table."""

    @property
    def label(self) -> str:
        """The architecture as the table names it."""
        options = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in self.options.items())
        return f"`{self.architecture}`" + (f" with `{options}`" if options else "")

    def build(self) -> nn.Module:
        """The encoder, seeded."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder: nn.Module = timm.create_model(
                self.architecture, num_classes=0, **self.sizes, **self.options
            ).eval()
        return encoder


@dataclass(frozen=True)
class Outcome:
    """What came of a row."""

    records: str
    reason: str = ""


SMALL = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_14 = SMALL | {"img_size": 56}
SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
SHALLOW = {"img_size": 64, "depth": 1}  # stem and blocks share a width

ROWS = (
    Row("beit", "beit_base_patch16_224", "relative position bias in each block", SMALL),
    Row("beit", "beitv2_base_patch16_224", "as BEiT", SMALL),
    Row("byoanet", "botnet26t_256", "attention with relative position inside a convolutional net"),
    Row("byoanet", "halonet26t", "attention of blocks to their neighbourhood"),
    Row("byoanet", "lambda_resnet26t", "lambda layers: softmax over keys, no map of attention"),
    Row("cait", "cait_xxs24_224", "talking heads mix the maps after the softmax; class attention at the end", SMALL),
    Row("cait", "cait_xxs24_224", "plain attention in the blocks, class attention at the end", SMALL,
        {"attn_block": Attention}),
    Row("coat", "coat_tiny", "factorised attention, softmax over keys only"),
    Row("convit", "convit_tiny", "gated positional attention, without cls token, in the first blocks",
        {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 4, "local_up_to_layer": 2}),
    Row("cpubone", "cpubone_nano", "attention on a reduced grid, inside a convolutional net"),
    Row("crossvit", "crossvit_tiny_240", "two branches of patches, cross attention of their cls tokens"),
    Row("csatv2", "csatv2", "spatial attention of one channel, and attention in the last stages"),
    Row("davit", "davit_tiny", "windows, and attention over channels"),
    Row("deepseek_vit", "deepseek_vit_412m_enc", "rotary; NHWC tokens before and after the blocks", SMALL_14),
    Row("deepseek_vit", "deepseek_vit_412m", "the encoder in a classifier's wrapper"),
    Row("deit", "deit_tiny_patch16_224", "cls token", SMALL),
    Row("deit", "deit_tiny_distilled_patch16_224", "cls and distillation token", SMALL),
    Row("deit", "deit3_small_patch16_224", "layer scale", SMALL),
    Row("edgenext", "edgenext_xx_small", "attention over channels"),
    Row("efficientformer", "efficientformer_l1", "attention in the last stage, with attention bias"),
    Row("efficientformer_v2", "efficientformerv2_s0", "talking heads, strided queries"),
    Row("efficientvit_mit", "efficientvit_b0", "linear attention, no softmax"),
    Row("efficientvit_msra", "efficientvit_m0", "cascaded groups in windows"),
    Row("eva", "eva02_tiny_patch14_224", "rotary, SwiGLU", SMALL_14),
    Row("eva", "eva_giant_patch14_224", "plain, with bias of queries and values", SMALL_14),
    Row("eva", "vit_small_patch16_rope_mixed_224", "rotary, learned in each block", SMALL),
    Row("eva", "vit_small_patch16_dinov3", "rotary, registers", SMALL),
    Row("eva", "vit_large_patch16_sapiens2", "rotary, qk-norm, grouped queries, registers",
        SMALL | {"num_kv_heads": 1}),
    Row("eva", "vit_pe_core_tiny_patch16_384", "rotary, attention-pooling head",
        SMALL | {"attn_pool_num_heads": 2}),
    Row("fastvit", "fastvit_sa12", "attention in the last stage"),
    Row("gcvit", "gcvit_xxtiny", "windows with queries of the whole image"),
    Row("gemma4_vit", "gemma4_vit_167m_enc", "rotary, norms of queries, keys and values"),
    Row("hiera", "hiera_tiny_224", "mask units, queries pooled between stages"),
    Row("hieradet_sam2", "sam2_hiera_tiny", "windows, queries pooled between stages"),
    Row("iformer", "iformer_t", "one head inside a convolutional net"),
    Row("levit", "levit_128s", "attention bias, queries subsampled between stages"),
    Row("lowformer", "lowformer_b0", "attention on a reduced grid, inside a convolutional net"),
    Row("maxxvit", "coatnet_pico_rw_224", "attention in the last stages, relative position"),
    Row("maxxvit", "maxvit_pico_rw_256", "windows, and grids of distant tokens"),
    Row("metaformer", "caformer_s18", "attention in the last stages"),
    Row("mobilenetv3", "mobilenetv4_hybrid_medium_075", "attention with shared keys inside a convolutional net"),
    Row("mobilenetv5", "mobilenetv5_base", "attention with shared keys inside a convolutional net"),
    Row("mobilevit", "mobilevit_xxs", "attention among tokens at the same place of each patch"),
    Row("mobilevit", "mobilevitv2_050", "linear attention to one latent query"),
    Row("mvitv2", "mvitv2_tiny", "pooled queries, keys and values, relative position"),
    Row("naflexvit", "naflexvit_base_patch16_gap", "NaFlex: the grid follows each image; registers"),
    Row("naflexvit", "naflexvit_base_patch16_siglip", "NaFlex, attention-pooling head"),
    Row("nest", "nest_tiny", "blocks of tokens, merged from stage to stage"),
    Row("nextvit", "nextvit_small", "keys and values pooled, beside convolutions"),
    Row("pit", "pit_ti_224", "grids pooled from stage to stage, overlapping patches"),
    Row("pvt_v2", "pvt_v2_b0", "keys and values on a reduced grid"),
    Row("qwen3_vit", "qwen3_vit_88m_enc", "rotary; NHWC tokens before and after the blocks", SMALL),
    Row("qwen3_vit", "qwen3_vit_88m", "the encoder in a classifier's wrapper"),
    Row("shvit", "shvit_s1", "one head over a part of the channels"),
    Row("swiftformer", "swiftformer_xs", "additive attention, no map of tokens to tokens"),
    Row("swin_transformer", "swin_tiny_patch4_window7_224", "shifted windows, relative position bias", SWIN),
    Row("swin_transformer_v2", "swinv2_tiny_window8_256", "shifted windows, cosine attention, post-norm", SWIN),
    Row("swin_transformer_v2_cr", "swinv2_cr_tiny_224", "Swin V2 with [B, C, H, W] tokens between stages"),
    Row("tiny_vit", "tiny_vit_5m_224", "windows, attention bias"),
    Row("tnt", "tnt_s_patch16_224", "attention among the pixels of a patch, then among patches"),
    Row("twins", "twins_pcpvt_small", "keys and values on a reduced grid"),
    Row("twins", "twins_svt_small", "windows, alternating with keys and values on a reduced grid"),
    Row("visformer", "visformer_tiny", "[B, C, H, W] tokens, convolutions between"),
    Row("vision_transformer", "vit_tiny_patch16_224", "cls token", SMALL),
    Row("vision_transformer", "vit_tiny_patch16_224", "qk-norm", SMALL, {"qk_norm": True}),
    Row("vision_transformer", "vit_medium_patch16_gap_256", "no prefix tokens", SMALL),
    Row("vision_transformer", "vit_small_patch14_reg4_dinov2", "registers, layer scale", SMALL_14),
    Row("vision_transformer", "vit_base_patch16_radio_v3", "seven registers, no final norm", SMALL),
    Row("vision_transformer", "vit_base_patch16_clip_224", "norm before the blocks", SMALL),
    Row("vision_transformer", "beit3_base_patch16_224", "norm of the attention's output", SMALL),
    Row("vision_transformer", "aimv2_large_patch14_224", "RMS norm, no prefix tokens", SMALL_14),
    Row("vision_transformer", "vit_base_patch16_siglip_224", "attention-pooling head", SMALL),
    Row("vision_transformer", "vit_so400m_patch14_siglip_gap_384", "a grid that does not tile its image"),
    Row("vision_transformer", "vit_small_patch16_18x2_224", "two attentions side by side in a block"),
    Row("vision_transformer", "vit_base_patch16_xp_224", "attention and MLP in parallel, within the block itself"),
    Row("vision_transformer", "vit_dwee_patch16_reg1_gap_256", "differential attention: two maps for each head", SMALL),
    Row("vision_transformer", "vit_dpwee_patch16_reg1_gap_256", "differential attention, parallel to the MLP"),
    Row("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", "ResNet stem", SHALLOW),
    Row("vision_transformer_hybrid", "vit_base_mci_224", "MobileCLIP's convolutional stem", SHALLOW),
    Row("vision_transformer_relpos", "vit_relpos_small_patch16_224", "relative position by an MLP", SMALL),
    Row("vision_transformer_relpos", "vit_relpos_base_patch16_cls_224", "relative position, cls token", SMALL),
    Row("vision_transformer_relpos", "vit_srelpos_small_patch16_224", "relative position shared by all blocks", SMALL),
    Row("vision_transformer_sam", "samvit_base_patch16", "windows and global attention; heads folded into the batch"),
    Row("vitamin", "vitamin_small_224", "convolutional stages before the blocks", SHALLOW),
    Row("volo", "volo_d1_224", "outlook attention, then plain, class attention at the end"),
    Row("xcit", "xcit_nano_12_p16_224", "attention over channels, class attention at the end"),
)  # fmt: skip


def families() -> list[str]:
    """Every module of timm that registers architectures."""
    return [module for module in timm.list_modules() if timm.list_models(module=module)]


def classify(row: Row) -> Outcome:
    """Try a row out."""
    with torch.device("meta"):
        encoder = row.build()
    try:
        anatomy(encoder)
    except UserError as error:
        return Outcome("not", _refusal(encoder, error))
    try:
        return _classify_known(row.build())
    except UserError as error:
        # the amount by which rows miss a sum of one depends on the machine's rounding
        return Outcome("not", re.sub(r" by \S+$", "", str(error)))


@torch.no_grad()
def _classify_known(encoder: nn.Module) -> Outcome:
    images = torch.randn(1, 3, *anatomy(encoder).image_size)
    plain = encoder(images)
    with record(encoder, tokens=(), attention_input="all", attention_output="all") as recording:
        recorded = encoder(images)
    _check(recording.attention, len(anatomy(encoder).blocks))
    difference = float((recorded - plain).abs().max())
    if difference > TOLERANCE:
        return Outcome("not", f"recording changes the output by {difference:.1g}")
    missing = unrecorded_attention(encoder)
    return Outcome("partly", ", ".join(f"`{path}`" for path in missing)) if missing else Outcome("fully")


def _check(attention: dict[int, Tensor], layers: int) -> None:
    assert sorted(attention) == list(range(1, layers + 1))
    for values in attention.values():
        torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1]))


def _refusal(encoder: nn.Module, error: UserError) -> str:
    """Why an encoder has no anatomy; for one of no known family, what attends in it."""
    if "no known family" not in str(error):
        return str(error)
    kinds = {}
    for path in attention_modules(encoder):
        module = encoder.get_submodule(path)
        kinds[type(module).__name__] = "" if hasattr(module, "attn_drop") else " (no `attn_drop`)"
    return "of no known family; attends in " + ", ".join(f"`{name}`{note}" for name, note in kinds.items())


def line(row: Row, outcome: Outcome) -> str:
    """A row of the table."""
    return f"| {row.family} | {row.label} | {row.special} | {outcome.records} | {outcome.reason} |"


def without_attention() -> Iterator[str]:
    """Families without a row, each looked through for attention. Raises SystemExit where there is some."""
    for family in families():
        if any(row.family == family for row in ROWS):
            continue
        first = timm.list_models(module=family)[0]
        with torch.device("meta"):
            attending = attention_modules(Row(family, first, "").build())
        if attending:
            raise SystemExit(f"{family} has no row, but {first} attends in {attending[0]}: add a row for it")
        yield family


def document() -> str:
    """The whole of docs/RECORDER.md."""
    outcomes = [(row, classify(row)) for row in ROWS]
    counts = {kind: sum(outcome.records == kind for _, outcome in outcomes) for kind in ("fully", "partly", "not")}
    summary = (
        f"Of {len(outcomes)} architectures, " + ", ".join(f"{n} record {kind}" for kind, n in counts.items()) + "."
    )
    table = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), *(line(*pair) for pair in outcomes)]
    rest = ", ".join(f"`{family}`" for family in without_attention())
    return (
        INTRODUCTION.format(version=timm.__version__, summary=summary)
        + "\n".join(table)
        + f"\n\nWithout attention (convolutions, pooling, MLPs or state spaces mix the tokens): {rest}.\n"
    )


def main() -> None:
    """Write the document, or compare it."""
    parser = argparse.ArgumentParser(description="What the recorder sees of every family of timm.")
    parser.add_argument("--check", action="store_true", help="compare docs/RECORDER.md, write nothing")
    check = parser.parse_args().check
    logging.disable(logging.WARNING)  # "partly" is in the table
    fresh = document()
    if not check:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(fresh, encoding="utf-8")
        return
    stored = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    difference = difflib.unified_diff(stored.splitlines(), fresh.splitlines(), "docs/RECORDER.md", "fresh", lineterm="")
    shown = "\n".join(difference)
    if shown:
        sys.exit(shown)


if __name__ == "__main__":
    main()
