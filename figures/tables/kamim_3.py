"""KAMIM's Table 3: other data sets, pre-trained on themselves and on ImageNet-1k."""

from ._grid import Column, Grid, Line
from ._kamim import RECIPE, TEXT, fine_tuning, linear_probing

TITLE = "Top-1 accuracy of SimMIM, KAMIM and PASS on other data sets, ViT-B"
SOURCE = "KAMIM, arXiv 2407.13873, table 3 (there with data sets side by side)"
ORDER = 3
_PASS = Column(
    title="PASS (SimMIM) (FT)",
    statistic="top1",
    fits={"evaluation": "fine_tuning", "method": "PASS (SimMIM)"},
    # section 4.4; the rest of its protocol the paper does not tell
    expects={"encoder": "ViT-B", "patch": "14", "pretraining_epochs": "200", "pretraining_resolution": "224"}
    | dict.fromkeys(key for key in RECIPE if key not in ("patch", "pretraining_epochs", "pretraining_resolution")),
)
_IN = "ImageNet-1k"


def _pretrained_on_itself(label: str, name: str, values: str) -> Line:
    return Line(labels=(label, label), fits={"data": name, "pretraining_data": name}, values=values)


GRID = Grid(
    stub=(("evaluated on", "data"), ("pre-trained on", "pretraining_data")),
    columns=(linear_probing("SimMIM"), linear_probing("KAMIM"), fine_tuning("SimMIM"), fine_tuning("KAMIM"), _PASS),
    lines=(
        _pretrained_on_itself("ImageNet-1k", _IN, "16.12 33.97 76.78 77.30 82.1"),
        _pretrained_on_itself("iNaturalist 2021", "iNat-21", "6.92 17.60 79.8 80.48 —"),
        _pretrained_on_itself("Places365", "Places365", "26.04 40.47 53.2 53.03 —"),
        _pretrained_on_itself("CIFAR-10", "CIFAR-10", "62.83 59.01 94.13 94.12 —"),
        _pretrained_on_itself("CIFAR-100", "CIFAR-100", "37.46 35.67 78.92 77.26 —"),
        Line(
            labels=("CIFAR-10", "ImageNet-1k"),
            fits={"data": "CIFAR-10", "pretraining_data": _IN},
            values="61.65 72.63 97.03 97.43 97.1",
        ),
        Line(
            labels=("CIFAR-100", "ImageNet-1k"),
            fits={"data": "CIFAR-100", "pretraining_data": _IN},
            values="36.49 51.77 84.58 85.07 81.7",
        ),
    ),
    expects={**RECIPE, "encoder": "ViT-B"},
    others={},
    notes=(TEXT, "PASS: as reported by its authors, pre-trained for 200 epochs at 224 px with patches of 14 px."),
)
