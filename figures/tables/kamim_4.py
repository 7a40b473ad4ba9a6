"""KAMIM's Table 4: keypoint detectors."""

from ._grid import Column, Grid, Line
from ._kamim import RECIPE, TEXT, WEIGHTS, fine_tuning, linear_probing

TITLE = "Top-1 accuracy of KAMIM on ImageNet-1k and time of an epoch of pre-training by keypoint detector, ViT-B"
SOURCE = "KAMIM, arXiv 2407.13873, table 4"
ORDER = 4
_OTHERS = {key: WEIGHTS[key] for key in ("weight_patch", "keypoint_temperature", "map_style")}
_OF_EVALUATION = "pooling norm resolution epochs batch_size learning_rate weight_decay augmentation mixing data".split()
_TIME = Column(
    title="epoch time",
    statistic="ratio_to_simmim",
    fits={"evaluation": "epoch_time"},
    expects=dict.fromkeys(_OF_EVALUATION),
    unit="x",
)


def _kamim(detector: str, values: str) -> Line:
    fits = {"method": "KAMIM", "detector": detector}
    return Line(labels=(detector,), fits=fits, values=values, expects=_OTHERS)


GRID = Grid(
    stub=(("detector", "detector"),),
    columns=(linear_probing(None, "LP"), fine_tuning(None, "FT"), _TIME),
    lines=(
        Line(labels=("none (SimMIM)",), fits={"method": "SimMIM"}, values="16.12 76.78 =1x"),
        _kamim("FAST", "33.97 77.29 ~1x"),
        _kamim("SIFT", "31.31 77.37 ~1.06x"),
        _kamim("ORB", "32.36 77.17 ~1.07x"),
    ),
    expects={**RECIPE, "encoder": "ViT-B", "data": "ImageNet-1k", "pretraining_data": "ImageNet-1k"},
    others={"method": "KAMIM"},
    notes=(
        TEXT,
        "Epoch time, measured where the directories of training runs are given: mean seconds a picture in the log "
        "against those of the SimMIM run of otherwise the same recipe, interval over entries of both logs. Whether "
        "both ran on one machine, and alone, the logs do not tell.",
    ),
)
