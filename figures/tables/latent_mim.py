"""Latent MIM's row: nearest neighbour, linear probing and fine-tuning."""

from ._grid import Column, Grid, Line

TITLE = "Top-1 accuracy of Latent MIM on ImageNet-1k, ViT-B/16"
SOURCE = "Latent MIM, arXiv 2407.15837"
ORDER = 9
GRID = Grid(
    stub=(("method", "method"),),
    columns=(
        Column(
            title="nearest neighbour",
            statistic="top1",
            fits={"evaluation": "knn", "k": "1"},
            # util/misc.py of the public code: mean of patch tokens before the final norm, each picture of the
            # validation split against all others of it
            expects={
                "layer": "last",
                "pooling": "mean",
                "norm": "none",
                "train": "leave one out",
                "crop": "0.875",
                "interpolation": "bicubic",
            },
        ),
        Column(
            title="linear",
            statistic="top1",
            fits={"evaluation": ("linear_probe", "fast_probe")},
            expects={"evaluation": "linear_probe"},
        ),
        Column(title="fine-tuning", statistic="top1", fits={"evaluation": "fine_tuning"}),
    ),
    lines=(Line(labels=("Latent MIM",), fits={"method": "Latent MIM"}, values="50.1 72.0 83.0"),),
    expects={
        "data": "ImageNet-1k",
        "encoder": "ViT-B",
        "patch": "16",
        "resolution": "224",
        "pretraining_data": "ImageNet-1k",
        "pretraining_epochs": "800",
        "pretraining_resolution": "224",
        "pretraining_batch_size": "4096",
        "pretraining_learning_rate": "2.4e-3",
        "visible": "20",
        "gap": "4",
    },
    others={},
    notes=(
        "The paper's nearest neighbour, from its public code: k = 1, mean of patch tokens before the final norm, 224 "
        "px, each validation picture among all others. Its recipes of probing and fine-tuning are not compared.",
    ),
)
