"""The figures of `kamim keypoints`: pictures read, densities and weights computed, all handed over to be drawn."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, printable

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray

    from ..data import Pictures
    from ..figures._keypoints import Row
    from ..keypoint_survey import Choice

_TABLE = "keypoints.csv"


def write_figures(chosen: argparse.Namespace, asked: Sequence["Choice"]) -> None:
    """A figure for each picture, and the numbers of all in one table. Raises UserError for what cannot be read."""
    from ..decode import UnreadableImage
    from ..output import check, written_whole

    check(chosen.out, overwrite=chosen.overwrite, earlier=lambda folder: (folder / _TABLE).is_file())
    found = list(_pictures(chosen.images_shown))
    with written_whole(chosen.out, overwrite=chosen.overwrite) as aside:
        tables = []
        for (name, read), stem in zip(found, _stems(name for name, _ in found), strict=True):
            try:
                picture = _square(read(), chosen.image_size)
            except UnreadableImage as error:
                raise UserError(f"cannot read picture {error}; give picture files, or directories of them") from error
            tables.append(_write(aside / stem, name, picture, chosen, asked))
        _write_table(tables, aside / _TABLE)
    print(f"{len(found)} figure{'s' * (len(found) != 1)} in {chosen.out}, their numbers in {chosen.out / _TABLE}")


def _pictures(given: Iterable[Path]) -> Iterator[tuple[str, Callable[[], "UInt8[ndarray, 'y x 3']"]]]:
    """Name of each picture, of those that directories hold too, and what reads it."""
    from ..data import open_pictures
    from ..decode import read_rgb

    for path in given:
        if path.is_dir():
            pictures = open_pictures(str(path), "train")
            for i in range(len(pictures)):
                yield pictures.identity(i), partial(_read, pictures, i)
        elif path.is_file():
            yield printable(path.name), partial(read_rgb, path)
        else:
            raise UserError(f"no picture at {str(path)!r}; give picture files, or directories of them")


def _read(pictures: "Pictures", index: int) -> "UInt8[ndarray, 'y x 3']":
    return pictures.read(index)[0]


def _stems(names: Iterable[str]) -> list[str]:
    """Names of the figures: those of the pictures, numbered where several are called alike."""
    found: dict[str, int] = {}
    stems = []
    for stem in (Path(name).stem for name in names):
        number = found[stem] = found.get(stem, 0) + 1
        stems.append(stem if number == 1 else f"{stem}_{number}")
    return stems


def _square(picture: "UInt8[ndarray, 'y x 3']", side: int) -> "UInt8[ndarray, 's s 3']":
    """The largest square in the picture's middle at this side, resized as in training: bilinear, not antialiased."""
    import numpy as np
    import torch
    from torchvision.transforms.v2 import functional

    shortest = min(picture.shape[:2])
    pixels = functional.center_crop(torch.from_numpy(picture).permute(2, 0, 1), [shortest, shortest])
    resized = functional.resize(pixels, [side, side], antialias=False)
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


def _write(
    stem: Path,
    name: str,
    picture: "UInt8[ndarray, 's s 3']",
    chosen: argparse.Namespace,
    asked: Sequence["Choice"],
) -> Any:
    """The figure of one picture; returns its numbers."""
    import pandas as pd

    from ..figures import _keypoints

    settings = list(product(chosen.weight_patch, chosen.temperature))
    rows, numbers = [], []
    for choice in asked:
        row, own = _measured(picture, choice, settings)
        rows.append(row)
        numbers += [{"picture": name, **one} for one in own]
    table = pd.DataFrame(numbers)
    headings = [f"w_ps {weight_patch}\nT {temperature:g}" for weight_patch, temperature in settings]
    caption = (
        f"Keypoints and KAMIM's weights of {name}, {chosen.image_size} px. {_keypoints.HOW_TO_READ} Source: KAMIM "
        "(arXiv 2407.13873), section 3.2; detectors of OpenCV with OpenCV's defaults."
    )
    _keypoints.write(stem, picture, rows, headings, table, caption, style=chosen.style)
    return table


def _measured(
    picture: "UInt8[ndarray, 's s 3']", choice: "Choice", settings: Sequence[tuple[int, float]]
) -> tuple["Row", list[dict[str, Any]]]:
    """What is drawn of a detector, and in numbers."""
    import torch

    from ..density import density_weights
    from ..figures._keypoints import Row
    from ..keypoint_survey import weight_statistics
    from ..keypoints._detector import KeypointDetector, MapDetector
    from ..keypoints._drawing import coordinates

    detector, style = choice.detector, choice.style
    points = coordinates(detector.keypoints(picture)) if isinstance(detector, KeypointDetector) else None
    marks = isinstance(detector, MapDetector)
    shown = detector.map(picture, style) if isinstance(detector, MapDetector) else None
    weights, numbers = [], []
    for weight_patch, temperature in settings:
        density = detector.density(picture, style, weight_patch)
        shown = density if shown is None else shown
        weights.append(density_weights(torch.from_numpy(density)[None], temperature))
        numbers.append(
            {
                "detector": choice.name,
                "style": style if choice.has_style else "",
                "keypoints": None if points is None else len(points),
                "mean_density": float(density.mean()),
                "weight_patch": weight_patch,
                "temperature": temperature,
                **weight_statistics(weights[-1]),
            }
        )
    assert shown is not None
    name = f"{choice.name}\n{style}" if choice.has_style else choice.name
    return Row(name, points, shown, not marks, [one[0].numpy() for one in weights]), numbers


def _write_table(tables: Sequence[Any], path: Path) -> None:
    import pandas as pd

    pd.concat(tables).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
