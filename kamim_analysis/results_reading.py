"""Tables, arrays and manifests of results that came from anywhere: what is read is possible, or it is refused.

The sums in a manifest tell what has changed since; a stranger's files have the right sums, and any content.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import UserError

#: layers and heads, and sides in pixels and patches: figures set aside room for each, and no model has so many
_MOST_LAYERS, _LONGEST_SIDE = 10_000, 100_000
#: signs of a label, with what kamim adds to what a command may give, and of any other text of a table
_LONGEST_LABEL, _LONGEST_TEXT = 300, 5_000
#: bytes of one model's arrays in a file; the largest, the values of each of 50,000 pictures, take a tenth of them
_LARGEST_ARRAYS = 2**32
_LONGEST_REASON = 120
TEXTS, NUMBERS = ("model", "analysis", "statistic"), ("value", "ci_low", "ci_high")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise UserError for whatever values that no command writes lead to; `what`: what cannot be done with them."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{what} ({reason[:_LONGEST_REASON]}): the results are not what this version of kamim analyze writes; "
            "analyze anew, and if the line comes again, the mistake is kamim's"
        ) from error


def is_manifest(manifest: object) -> bool:
    """Whether a manifest's models have names that can be shown and sizes that models have."""
    if not isinstance(manifest, dict) or not isinstance(models := manifest.get("models"), list):
        return False
    if not all(isinstance(model, dict) and _is_label(model.get("label")) for model in models):
        return False
    if len({model["label"] for model in models}) < len(models):
        return False
    return all(
        _is_size(model.get("layers", 0), _MOST_LAYERS)
        and all(_is_sides(model[name]) for name in ("image_size", "grid") if name in model)
        for model in models
    )


def _is_label(label: object) -> bool:
    return isinstance(label, str) and 0 < len(label) <= _LONGEST_LABEL and label.isprintable()


def _is_size(size: object, most: int) -> bool:
    return isinstance(size, int) and 0 <= size <= most


def _is_sides(sides: object) -> bool:
    return isinstance(sides, list) and len(sides) == 2 and all(_is_size(side, _LONGEST_SIDE) for side in sides)


def read_metrics(path: Path, columns: Collection[str], models: Collection[str]) -> pd.DataFrame:
    """metrics.csv in `columns`; layer and head are nullable integers. Raises ValueError for what no command writes."""
    # only numbers can be missing: a model called NA or 007 keeps its name
    texts = (*TEXTS, "protocol")
    table = pd.read_csv(
        path,
        dtype={"layer": "Int64", "head": "Int64", **dict.fromkeys(texts, "str"), **dict.fromkeys(NUMBERS, "float64")},
        keep_default_na=False,
        na_values={name: [""] for name in columns if name not in texts},
    )
    # results of before numbers carried their protocol have no such column
    table = table if "protocol" in table else table.assign(protocol="")
    # pandas takes columns beyond those that are named for names of rows
    if not {*columns} <= {*table.columns} or not isinstance(table.index, pd.RangeIndex):
        raise ValueError("columns are missing")
    if not set(table["model"]) <= {*models}:
        raise ValueError("rows are of models that the manifest does not name")
    for name in ("analysis", "statistic", "protocol"):
        if not all(len(text) <= _LONGEST_TEXT and text.isprintable() for text in table[name].unique()):
            raise ValueError(f"a text in {name} cannot be shown")
    for name in ("layer", "head"):
        if not table[name].dropna().between(0, _MOST_LAYERS).all():
            raise ValueError(f"there is no such {name}")
    images = table["images"]  # without rows pandas knows no type
    if len(images) and (not pd.api.types.is_integer_dtype(images) or (images < 0).any()):
        raise ValueError("images are no numbers of images")
    return table


def read_arrays(path: Path, prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz whose names begin with `prefix`, which is left out. Raises ValueError, among others."""
    # NumPy leaves a file open that it opened itself and that is no archive
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        chosen = [name for name in archive.files if name.startswith(prefix)]
        for name in chosen:
            _check_header(archive.zip, f"{name}.npy")
        if sum(archive.zip.getinfo(f"{name}.npy").file_size for name in chosen) > _LARGEST_ARRAYS:
            raise ValueError(f"would unpack to more than {_LARGEST_ARRAYS} bytes")
        return {name.removeprefix(prefix): archive[name] for name in chosen}


def _check_header(archive: ZipFile, member: str) -> None:
    """NumPy sets aside what the shape asks for before it reads, and more bytes than that would not be looked at."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # the version that arrays of numbers have
            raise ValueError(f"{member} is of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        told = math.prod(shape) * dtype.itemsize + file.tell()
    if dtype.hasobject or told != archive.getinfo(member).file_size:
        raise ValueError(f"{member} tells of {told} bytes, and has another number of them")
