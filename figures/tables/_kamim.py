"""What the tables of KAMIM share: the paper's recipe (section 4.1) and its columns."""

from ._grid import Column, Facts

#: pretraining and evaluation as the paper's text tells; where its public code differs, that is said in `TEXT`
RECIPE: Facts = {
    "patch": "16",
    "pooling": "mean",
    "norm": "none",
    "resolution": "192",
    "epochs": "100",
    "batch_size": "2048",
    "learning_rate": "5e-3",
    "weight_decay": "0.05",
    "augmentation": "paper",
    "mixing": "both",
    "pretraining_epochs": "100",
    "pretraining_resolution": "192",
    "pretraining_batch_size": "2048",
    "pretraining_learning_rate": "8e-4",
    "pretraining_mask_ratio": "0.6",
    "mask_unit": "32",
}
#: the keypoints' weights, w_ps 8 and T 0.25 unless a table varies them
WEIGHTS: Facts = {"weight_patch": "8", "keypoint_temperature": "0.25", "detector": "FAST", "map_style": "drawn"}
TEXT = (
    "The paper's protocol: pre-training for 100 epochs at 192 px; linear probe of layer 8 (Swin: last stage) and "
    "fine-tuning by AdamW, learning rate 5e-3, batch 2048, 100 epochs, mean pooling, no LayerNorm unless said, on the "
    "validation split; keypoint maps drawn, as in the public code. It gives one run each and no intervals."
)


def linear_probing(method: str | None, title: str | None = None) -> Column:
    """Top-1 of the linear probe; a fast probe on stored features may stand in, and is named as one."""
    return Column(
        title=title or f"{method} (LP)",
        statistic="top1",
        fits={"evaluation": ("linear_probe", "fast_probe"), **_of(method)},
        expects={"evaluation": "linear_probe", "layer": "8", **_weights(method)},
    )


def fine_tuning(method: str | None, title: str | None = None) -> Column:
    """Top-1 after fine-tuning the whole encoder."""
    return Column(
        title=title or f"{method} (FT)",
        statistic="top1",
        fits={"evaluation": "fine_tuning", **_of(method)},
        expects={"layer": "last", **_weights(method)},
    )


def _of(method: str | None) -> Facts:
    return {} if method is None else {"method": method}


def _weights(method: str | None) -> Facts:
    return WEIGHTS if method == "KAMIM" else {}
