"""AttMask's k-NN, linear and few-shot k-NN accuracy on ImageNet-1k."""

from ._attmask import CLS, HIDDEN, RECIPE, k_nn, linear
from ._grid import Column, Grid, Line

TITLE = "Top-1 accuracy on ImageNet-1k: k-NN and linear probing on all of it, k-NN on v pictures a class, ViT-S/16"
SOURCE = "AttMask, arXiv 2203.12719, full data and few examples, pre-trained on all of ImageNet-1k for 100 epochs"
ORDER = 7
# they hide no patches, or others
_UNMASKED = dict.fromkeys(("pretraining_mask_ratio", "mask_probability", "prototypes"))


def _few(v: str, k: str) -> Column:
    fits = {"evaluation": "few_shot", "v": v}
    return Column(title=f"v = {v}", statistic="top1", fits=fits, expects={**CLS, "k": k, "seeds": "5"})


GRID = Grid(
    stub=(("method", "method"),),
    columns=(
        k_nn(),
        linear(),
        _few("1", "1"),
        _few("5", "20"),
        _few("10", "20"),
        _few("20", "20"),
    ),
    lines=(
        Line(labels=("DINO",), fits={"method": "DINO"}, values="70.9 74.6 — — — —", expects=_UNMASKED),
        Line(labels=("MST",), fits={"method": "MST"}, values="72.1 75.0 — — — —", expects=_UNMASKED),
        Line(labels=("iBOT",), fits={"method": "iBOT"}, values="71.5 74.4 32.9 47.6 52.5 56.4"),
        Line(
            labels=("iBOT+AttMask-High",), fits={"method": "iBOT+AttMask-High"}, values="72.5 75.7 37.1 51.3 55.7 59.1"
        ),
        Line(
            labels=("iBOT+AttMask-Hint",), fits={"method": "iBOT+AttMask-Hint"}, values="72.8 76.1 37.6 52.2 56.4 59.6"
        ),
    ),
    expects={
        **RECIPE,
        "pretraining_data": "ImageNet-1k",
        "pretraining_mask_ratio": HIDDEN,
        "local_crops": "10",
    },
    others={},
    notes=(
        "The paper's protocol, from its public code: cls of the last layer after the final norm, 224 px; few-shot: "
        "means over five choices of pictures, k = 1 for v = 1 and k = 20 for others. The table does not tell the k of "
        "its k-NN column (the code tries 10, 20, 100 and 200): k = 20 is compared. The linear probe stands on cls of "
        "the last four layers joined.",
    ),
)
