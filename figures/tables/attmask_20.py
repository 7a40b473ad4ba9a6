"""AttMask's comparison of masks, pre-trained on 20% of ImageNet-1k."""

from ._attmask import HIDDEN, RECIPE, k_nn, linear
from ._grid import Column, Facts, Grid, Line

TITLE = "Top-1 accuracy of iBOT by what it masks, pre-trained on 20% of ImageNet-1k, ViT-S/16"
SOURCE = "AttMask, arXiv 2203.12719, masking strategies on 20% of ImageNet-1k for 100 epochs"
ORDER = 8
_RANDOM = "iBOT, random masks"


def _fine_tuned(data: str) -> Column:
    # evaluation/eval_transfer_finetuning.py, which shows pictures in another way
    told: Facts = {"data": data, "epochs": "500", "pooling": "cls", **dict.fromkeys(("crop", "interpolation"))}
    fits = {"evaluation": "fine_tuning", "data": data}
    return Column(title=f"{data} (FT)", statistic="top1", fits=fits, expects=told)


def _line(masks: str, method: str, values: str) -> Line:
    return Line(labels=(masks, "10-50%"), fits={"method": method}, values=values)


GRID = Grid(
    stub=(("masks", "method"), ("hidden", "pretraining_mask_ratio")),
    columns=(k_nn(), linear(), _fine_tuned("CIFAR-10"), _fine_tuned("CIFAR-100")),
    lines=(
        _line("block-wise (iBOT)", "iBOT", "46.7 56.4 98.0 86.0"),
        Line(
            labels=("random", "75%"),
            fits={"method": _RANDOM, "pretraining_mask_ratio": "0.75"},
            values="47.3 55.5 97.7 85.5",
            expects={"pretraining_mask_ratio": "0.75"},
        ),
        Line(
            labels=("random", "10-50%"),
            fits={"method": _RANDOM, "pretraining_mask_ratio": HIDDEN},
            values="47.8 56.7 98.0 86.1",
        ),
        _line("AttMask-Low", "iBOT+AttMask-Low", "44.0 53.4 97.6 84.6"),
        _line("AttMask-Hint", "iBOT+AttMask-Hint", "49.5 57.5 98.1 86.6"),
        _line("AttMask-High", "iBOT+AttMask-High", "49.7 57.9 98.2 86.6"),
    ),
    expects={
        **RECIPE,
        "pretraining_data": "ImageNet-1k, 260 a class",
        "pretraining_mask_ratio": HIDDEN,
        "local_crops": "6",
        # all of the training split, or 260 pictures a class of it
        "train": ("1281167", "260000"),
    },
    others={},
    notes=(
        "20%: the first 260 pictures of each class. Whether k-NN and linear probing learn from all of ImageNet-1k or "
        "from these 20% the table does not tell; the public code does either: both are taken for the paper's. The k of "
        "its k-NN is not told: k = 20 is compared. Its linear probe stands on cls of the last four layers joined.",
    ),
)
