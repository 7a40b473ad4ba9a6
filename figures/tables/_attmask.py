"""What the tables of AttMask share: its protocols of evaluation and of pre-training, from its public code."""

from ._grid import Column, Facts

#: evaluation/eval_knn.py: cls after the final norm, resize 256, crop 224, bicubic
CLS: Facts = {"pooling": "cls", "norm": "final", "layer": "last", "temperature": "0.07"}
#: README.md and main_attmask.py; the rate is 5e-4 times batch / 256
RECIPE: Facts = {
    "data": "ImageNet-1k",
    "encoder": "ViT-S",
    "patch": "16",
    "resolution": "224",
    "crop": "0.875",
    "interpolation": "bicubic",
    "pretraining_epochs": "100",
    "pretraining_resolution": "224",
    "pretraining_batch_size": "240",
    "pretraining_learning_rate": "4.6875e-4",
    "prototypes": "8192",
    "mask_probability": "0.5",
}
#: the least and the greatest share of patches that a masked crop hides
HIDDEN = "0.1 to 0.5"


def k_nn() -> Column:
    """Top-1 of k-NN on the pictures of all classes."""
    return Column(title="k-NN", statistic="top1", fits={"evaluation": "knn"}, expects={**CLS, "k": "20"})


def linear() -> Column:
    """Top-1 of the linear probe (--n_last_blocks 4 --avgpool_patchtokens 0); a fast probe may stand in."""
    return Column(
        title="linear",
        statistic="top1",
        fits={"evaluation": ("linear_probe", "fast_probe")},
        expects={"evaluation": "linear_probe", "layer": "the last four, joined", "pooling": "cls", "norm": "final"},
    )
