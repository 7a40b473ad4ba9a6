"""What training looks at beside its path: k-NN, attention statistics, reconstructions and attention maps."""

from typing import Any

import torch

from kamim_analysis import encoders
from kamim_analysis.data import Unreadable, has_two_splits, open_pictures
from kamim_analysis.evaluation_set import image_batches
from kamim_analysis.masked_autoencoder import MaskedAutoencoder
from kamim_analysis.reconstruction import MaskedImageModel
from kamim_analysis.sampling import choose

from ._analysis import Subject
from ._suite import Outcome, Suite, to_device
from .self_attention_tokens import SHOWN

_WATCHED = ("attention_distance", "attention_nmi", "attention_maps", "knn", "reconstruction")


class Monitor:
    """Called by the training loop with the model, the step and the log; changes neither weights nor random state."""

    def __init__(self, source: str, *, root: str | None, images: int, workers: int, seed: int, masking: Any) -> None:
        self.images, self.workers, self.seed, self.masking = images, workers, seed, masking
        self.test = open_pictures(source, "val", root=root, seed=seed)
        self.bank = open_pictures(source, "train", root=root, seed=seed) if has_two_splits(source) else None

    def __call__(self, model: Any, step: int, log: Any) -> None:
        """Analyse the validation pictures and write scalars and pictures; `model.encoder` is the timm model."""
        outcome = self._analyse(model)
        log.write(step, _scalars(outcome))
        if "reconstructions" in outcome.arrays:
            reconstructions = outcome.arrays["reconstructions"]["pixels"]
            log.picture("reconstructions", _tiles(torch.from_numpy(reconstructions)), step)
        log.picture("attention_maps", _attention_tiles(outcome), step)

    def _analyse(self, model: Any) -> Outcome:
        import timm.data

        encoder: Any = model.encoder
        device = next(encoder.parameters()).device
        predicts = isinstance(model, MaskedImageModel | MaskedAutoencoder)
        config = timm.data.resolve_data_config({}, model=encoder)
        transform = timm.data.create_transform(**config, is_training=False)
        subject = Subject(
            label="monitor",
            anatomy=encoders.anatomy(encoder),
            mean=config["mean"],
            std=config["std"],
            masked_model=model if predicts else None,
            masking=self.masking,
            classes=len(self.test.classes) or None,
            seed=self.seed,
        )
        suite = Suite(encoder, subject, [name for name in _WATCHED if predicts or name != "reconstruction"])
        unreadable = Unreadable(len(self.test), 1.0)
        for pictures, shown in ((self.bank, ()), (self.test, SHOWN)):
            if pictures is None:
                continue
            indices = choose(pictures, self.images, self.seed, shown=shown)
            batches = image_batches(pictures, indices, transform, unreadable, workers=self.workers)
            moved = (to_device(batch, device) for batch in batches)
            if pictures is self.bank:
                suite.update_bank(moved)
            else:
                for batch in moved:
                    suite.update(batch)
        return suite.outcome()


def _scalars(outcome: Outcome) -> dict[str, float]:
    """Means over heads as `monitor/analysis/statistic/layer`."""
    return {
        f"monitor/{row.analysis}/{row.statistic}" + ("" if row.layer is None else f"/layer{row.layer:02d}"): row.value
        for row in outcome.rows
        if row.head is None
    }


def _tiles(pixels: torch.Tensor) -> torch.Tensor:
    """[images, columns, H, W, 3] as one picture, an image a row."""
    images, columns, height, width, colours = pixels.shape
    return pixels.permute(0, 2, 1, 3, 4).reshape(images * height, columns * width, colours)


def _attention_tiles(outcome: Outcome) -> torch.Tensor:
    """Each image beside the attention of its centre patch, mean over heads, scaled to the brightest key."""
    arrays = outcome.arrays["attention"]
    maps, pixels = torch.from_numpy(arrays["maps"]).float().mean(1), torch.from_numpy(arrays["pixels"])
    side = round(maps.shape[-1] ** 0.5)
    centre = maps[:, side // 2 * side + side // 2].reshape(-1, 1, side, side)
    size = (pixels.shape[1], pixels.shape[2])
    gray = torch.nn.functional.interpolate(centre / centre.amax((2, 3), keepdim=True), size=size)
    shown = (gray * 255).byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return _tiles(torch.stack([pixels, shown], dim=1))
