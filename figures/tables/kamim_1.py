"""KAMIM's Table 1: linear probing and fine-tuning on ImageNet-1k by encoder."""

from ._grid import Grid, Line
from ._kamim import RECIPE, TEXT, fine_tuning, linear_probing

TITLE = "Top-1 accuracy of SimMIM and KAMIM on ImageNet-1k, linear probing (LP) and fine-tuning (FT)"
SOURCE = "KAMIM, arXiv 2407.13873, table 1"
ORDER = 1
# probes of Swin stand on the last stage; whether they have a LayerNorm before them is told of ViTs only
_SWIN = {"layer": "last", "norm": None, "patch": None}
GRID = Grid(
    stub=(("model", "encoder"),),
    columns=(linear_probing("SimMIM"), linear_probing("KAMIM"), fine_tuning("SimMIM"), fine_tuning("KAMIM")),
    lines=(
        Line(labels=("ViT-T",), fits={"encoder": "ViT-T"}, values="12.37 13.75 70.49 70.41"),
        Line(labels=("ViT-S",), fits={"encoder": "ViT-S"}, values="20.99 22.68 76.8 77.02"),
        Line(labels=("ViT-B",), fits={"encoder": "ViT-B"}, values="16.12 33.97 76.78 77.30"),
        Line(labels=("Swin-T",), fits={"encoder": "Swin-T"}, values="14.37 14.53 77.94 78.12", expects=_SWIN),
        Line(labels=("Swin-B",), fits={"encoder": "Swin-B"}, values="20.42 18.16 79.58 80.02", expects=_SWIN),
    ),
    expects={**RECIPE, "data": "ImageNet-1k", "pretraining_data": "ImageNet-1k"},
    others={},
    notes=(TEXT, "The paper has 77.30 here and 77.29 in its tables 2 and 4 for the same fine-tuned KAMIM ViT-B."),
)
