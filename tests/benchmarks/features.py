"""How much of the bare forward pass's rate is left when 12 layers x mean, cls, central of ViT-S/16 are extracted."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from _timing import medians

from kamim_analysis.data import Unreadable
from kamim_analysis.encoders import evaluating
from kamim_analysis.evaluation_set import ImageBatch, image_batches
from kamim_analysis.extraction import Extractor, Loading, Wanted, check_finite, extract
from kamim_analysis.feature_writing import Extraction, write_store
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import open_model
from kamim_analysis.runtime import best_device
from kamim_analysis.sampling import ChosenPictures, open_data

BATCH = 32


def measured(image_size: int, pictures: int, workers: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each shows the same pictures to the same encoder."""
    device = best_device()
    opened = open_model(parse("random:vit_small_patch16_224"), image_size)
    encoder = opened.encoder.to(device)
    wanted = Wanted(layers=tuple(range(1, 13)), poolings=("mean", "cls", "central"))
    found = open_data("photographs", None, pictures, 0, max_unreadable=0.0)
    data = ChosenPictures(found.source, found.test, found.test_indices, None, [], Unreadable(pictures))
    loading = Loading(BATCH, workers)
    extractor = Extractor(encoder, wanted)

    def batches() -> Iterator[ImageBatch]:
        return image_batches(
            data.test, data.test_indices, opened.transform, data.unreadable, batch_size=BATCH, workers=workers
        )

    in_memory = [ImageBatch(batch.images.to(device), batch.labels, batch.indices) for batch in batches()]

    def bare(source: Iterable[ImageBatch]) -> None:
        with evaluating(encoder):
            for batch in source:
                encoder.forward_features(batch.images.to(device)).sum().item()  # waits for the device

    def extracted() -> None:
        for batch in in_memory:
            features = extractor(batch.images)
            check_finite(features, batch.indices, data.test, "")
            for values in features.values():
                values.cpu()

    def stored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Extraction(opened=opened, data=data, wanted=wanted, loading=loading), Path(folder) / "store")

    return {
        "bare forward pass": lambda: bare(in_memory),
        "extraction": extracted,
        "loading + bare forward pass": lambda: bare(batches()),
        "loading + extraction": lambda: extract(opened, data.test, data.test_indices, wanted, data.unreadable, loading),
        "loading + extraction + store": stored,
    }


def main() -> None:
    """Print pictures a second and their ratios to the bare pass, without loading and with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    logging.disable()
    times = medians(measured(chosen.image_size, chosen.pictures, chosen.workers), rounds=chosen.rounds, warm_up=1)
    for name, seconds in times.items():
        base = times["loading + bare forward pass" if "loading" in name else "bare forward pass"]
        print(f"{name:<29} {chosen.pictures / seconds:7.1f} pictures a second   {base / seconds:.3f} of the bare rate")


if __name__ == "__main__":
    sys.exit(main())
