"""Small trees in the layouts of the authors of the data sets."""

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from kamim_analysis.data import Pictures, open_pictures


class Trees:
    """Each method of a data set's name lays it out in a directory, which it returns."""

    # numbers of ImageNet's devkit, which differ from those of the sorted folders; synset 4 is no class but has some
    synsets: ClassVar = {1: "n03126707", 2: "n01440764", 3: "n02012849", 4: "n00001740"}
    truth: ClassVar = [2, 3, 1, 2, 3]
    species: ClassVar = (
        "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
        "00001_Animalia_Annelida_Polychaeta_Sabellida_Sabellidae_Sabella_spallanzanii",
        "00002_Plantae_Tracheophyta_Magnoliopsida_Ericales_Ericaceae_Kalmia_latifolia",
    )
    # not in the order of the alphabet
    places: ClassVar = ("/a/airfield", "/b/bazaar/outdoor", "/b/bazaar/indoor")
    val_places: ClassVar = ((1, 2), (2, 0), (3, 1), (4, 2))

    @staticmethod
    def colour(seed: int, shape: tuple[int, ...] = (8, 10, 3)) -> NDArray[np.uint8]:
        """Random pixels."""
        return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)

    def put(self, path: Path, seed: int) -> None:
        """A picture without loss under whatever name: readers go by what a file holds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.colour(seed)).save(path, format="PNG")

    def imagenet(self, root: Path, *, flat: bool = False) -> Path:
        """Six training pictures of three classes, five validation pictures in class folders or flat."""
        for seed, (synset, number) in enumerate((self.synsets[i], n) for i in (1, 2, 3) for n in (18, 7)):
            self.put(root / "train" / synset / f"{synset}_{number}.JPEG", seed)
        for i, number in enumerate(self.truth, start=1):
            folder = root / "val" if flat else root / "val" / self.synsets[number]
            self.put(folder / f"ILSVRC2012_val_{i:08}.JPEG", 10 + i)
        return root

    def devkit(self, root: Path) -> Path:
        """ImageNet's devkit, unpacked, with the fields of meta.mat that its read-me describes; returns its folder."""
        fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images".split()
        rows = [
            (float(i), synset, f"word {i}, other", "", float(i == 4), np.array([1.0, 2.0]) if i == 4 else 0.0, 0.0, 9.0)
            for i, synset in self.synsets.items()
        ]
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        synsets = np.array(rows, dtype=[(name, object) for name in fields]).reshape(-1, 1)
        savemat(data / "meta.mat", {"synsets": synsets})
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in self.truth))
        return data.parent

    def cifar10(self, root: Path, dump: Callable[[Any], bytes] | None = None) -> Path:
        """Six batches of three pictures each, their pixels those of `cifar_pixels` in this order."""
        pixels, folder = self.cifar_pixels(18), root / "cifar-10-batches-py"
        for i, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            labels = [(3 * i + j) % 10 for j in range(3)]
            batch = {"batch_label": f"{file} of 6", "labels": labels, "data": pixels[3 * i : 3 * i + 3]}
            names = [f"camion_s_{3 * i + j:06}.png" for j in range(3)]
            self._dump(folder / file, {**batch, "filenames": names}, dump)
        self._dump(folder / "batches.meta", {"label_names": [f"class {i}" for i in range(10)]}, dump)
        return root

    def cifar100(self, root: Path, dump: Callable[[Any], bytes] | None = None) -> Path:
        """Two files of three pictures each."""
        pixels, folder = self.cifar_pixels(6), root / "cifar-100-python"
        for i, file in enumerate(["train", "test"]):
            batch = {"fine_labels": [3 * i, 7, 3 * i + 1], "coarse_labels": [0, 0, 1]}
            self._dump(folder / file, {**batch, "data": pixels[3 * i : 3 * i + 3]}, dump)
        names = {"fine_label_names": [f"class {i}" for i in range(10)], "coarse_label_names": ["a", "b"]}
        self._dump(folder / "meta", names, dump)
        return root

    def cifar_pixels(self, count: int) -> NDArray[np.uint8]:
        """What `cifar10` and `cifar100` lay down."""
        return self.colour(5, (count, 3072))

    @staticmethod
    def _dump(path: Path, value: Any, dump: Callable[[Any], bytes] | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((dump or python_2_pickle)(value))

    def inaturalist(self, root: Path, train: str = "2021_train", val: str = "2021_valid") -> Path:
        """Two training pictures and a validation picture of three species."""
        for i, species in enumerate(self.species):
            for j in range(2):
                self.put(root / train / species / f"{i}{j}-aaaa-bbbb.jpg", 10 * i + j)
            self.put(root / val / species / f"{i}-cccc.jpg", 50 + i)
        return root

    def places365(self, root: Path, size: str = "large", splits: tuple[str, ...] = ("train", "val")) -> Path:
        """The lists, and pictures of some splits in a size: two for training of three classes, four for validation."""
        files = [(f"{place}/{j:08}.jpg", label) for label, place in enumerate(self.places) for j in (1, 2)]
        for seed, (file, _) in enumerate(files if "train" in splits else ()):
            self.put(root / f"data_{size}_standard" / file[1:], seed)
        for number, _ in self.val_places if "val" in splits else ():
            self.put(root / f"val_{size}" / f"Places365_val_{number:08}.jpg", 50 + number)
        (root / "categories_places365.txt").write_text("".join(f"{p} {i}\n" for i, p in enumerate(self.places)))
        (root / "places365_train_standard.txt").write_text("".join(f"{file} {label}\n" for file, label in files))
        val = [f"Places365_val_{number:08}.jpg {label}\n" for number, label in self.val_places]
        (root / "places365_val.txt").write_text("".join(val))
        return root

    @staticmethod
    def both(name: str, root: Path) -> tuple[Pictures, Pictures]:
        """The training and the validation pictures."""
        train, val = (open_pictures(f"torch/{name}", split, root=str(root)) for split in ("train", "val"))
        return train, val

    @staticmethod
    def labels(pictures: Pictures) -> dict[str, int]:
        """The class of each picture by its identity."""
        assert pictures.labels is not None
        return {pictures.identity(i): int(pictures.labels[i]) for i in range(len(pictures))}


class _Python2Pickler(pickle._Pickler):  # type: ignore[misc, name-defined]
    """Text and bytes as Python 2 wrote them, with which CIFAR's authors made the files: both as byte strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, value: Any) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python_2_pickle(value: Any) -> bytes:
    """A value as Python 2 and its numpy pickled it."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def trees() -> Trees:
    """Lays out data sets."""
    return Trees()
