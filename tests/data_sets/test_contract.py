"""What every data set by name keeps to, on a small tree in its own layout."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kamim_analysis import plugins
from kamim_analysis.data import has_two_splits, open_pictures
from kamim_analysis.decode import UnreadableImage
from kamim_analysis.errors import UserError

SETS = plugins.names("kamim_analysis.data_sets")
IN_FILES = ("imagenet", "inaturalist", "places365")
# what an empty directory lacks first, and how the line goes on
MISSING = {
    "cifar10": ("cifar-10-batches-py", "DIR/cifar-10-batches-py/data_batch_1 to data_batch_5, test_batch and batches"),
    "cifar100": ("cifar-100-python", "DIR/cifar-100-python/train, test and meta"),
    "imagenet": ("val", r"DIR/train/n01440764/\*.JPEG and DIR/val/n01440764/\*.JPEG"),
    "inaturalist": ("2021_valid", "DIR/2021_train/00000_Animalia_.* DIR/2021_valid/00000_"),
    "places365": ("categories_places365.txt", "DIR/categories_places365.txt, DIR/places365_train_standard.txt with"),
}


def test_the_papers_data_sets_are_there():
    assert set(SETS) >= {"cifar10", "cifar100", "imagenet", "inaturalist", "places365"}


@pytest.mark.parametrize("name", SETS)
def test_labels_are_known_without_reading_and_both_splits_agree_on_them(tmp_path, trees, name):
    train, val = trees.both(name, getattr(trees, name)(tmp_path))
    assert has_two_splits(f"torch/{name}")
    assert train.classes == val.classes
    for pictures in (train, val):
        assert pictures.name == f"torch/{name}"
        assert not pictures.unlabelled
        assert [pictures.read(i)[1] for i in range(len(pictures))] == pictures.labels.tolist()
        assert len({pictures.identity(i) for i in range(len(pictures))}) == len(pictures)
        assert pictures.labels.max() < len(pictures.classes) == len(set(pictures.classes))


@pytest.mark.parametrize("name", SETS)
def test_pictures_travel_to_a_worker(tmp_path, trees, name):
    val = trees.both(name, getattr(trees, name)(tmp_path))[1]
    sent = pickle.loads(pickle.dumps(val))
    np.testing.assert_array_equal(sent.read(1)[0], val.read(1)[0])
    assert sent.stamp(1) == val.stamp(1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("there", [True, False])
def test_what_is_missing_is_said_in_one_line_with_what_must_lie_where(tmp_path, name, there):
    root = tmp_path if there else tmp_path / "nowhere"
    lacking, needed = MISSING[name]
    with pytest.raises(
        UserError, match=rf"^'torch/{name}' in DIR = .* lacks '{root}/{lacking}'; .*{needed}"
    ) as refused:
        open_pictures(f"torch/{name}", "val", root=str(root))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SETS)
def test_without_its_directory_it_says_where_to_give_it(name):
    with pytest.raises(UserError, match=rf"^'torch/{name}' needs --data_root DIR .*; there must be {MISSING[name][1]}"):
        open_pictures(f"torch/{name}", "train")


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/meta"),
        ("places365", "places365_val.txt"),
        ("places365", "val_large"),
    ],
)
def test_each_missing_part_is_named(tmp_path, trees, name, lacking):
    path = getattr(trees, name)(tmp_path) / lacking
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=f"lacks '{path}'"):
        open_pictures(f"torch/{name}", "val", root=str(tmp_path))


@pytest.mark.parametrize("name", ["imagenet", "inaturalist"])
def test_class_folders_without_pictures_are_refused(tmp_path, trees, name):
    getattr(trees, name)(tmp_path)
    for file in [*tmp_path.rglob("*.JPEG"), *tmp_path.rglob("*.jpg")]:
        file.unlink()
    with pytest.raises(UserError, match=r"val(id)?' holds no images in class folders"):
        open_pictures(f"torch/{name}", "val", root=str(tmp_path))


@pytest.mark.parametrize("name", IN_FILES)
def test_files_are_stamped_by_size_and_named_when_they_cannot_be_read(tmp_path, trees, name):
    _, pictures = trees.both(name, getattr(trees, name)(tmp_path))
    identity = pictures.identity(0)
    file = tmp_path / identity
    assert pictures.stamp(0) == f"{identity} {len(file.read_bytes())}"
    file.write_bytes(b"no picture")
    assert pictures.stamp(0) == f"{identity} 10"
    with pytest.raises(UnreadableImage, match=f"^'{identity}': "):
        pictures.read(0)
    file.unlink()
    assert pictures.stamp(0) == f"{identity} -1"
    with pytest.raises(UnreadableImage, match="No such file"):
        pictures.read(0)


@pytest.mark.parametrize("name", IN_FILES)
def test_transparency_is_white(tmp_path, trees, name):
    _, pictures = trees.both(name, getattr(trees, name)(tmp_path))
    # one of ImageNet's .JPEG files is a PNG indeed
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / pictures.identity(0), format="PNG")
    assert (pictures.read(0)[0] == 255).all()


def test_names_are_taken_as_timm_spells_them(tmp_path, trees):
    assert len(open_pictures("torch/CIFAR10", "val", root=str(trees.cifar10(tmp_path)))) == 3


def test_files_are_read_without_torch(tmp_path, trees):
    trees.places365(trees.inaturalist(tmp_path))
    program = (
        "import sys\nfrom kamim_analysis.data import open_pictures\n"
        "for name in ('torch/inaturalist', 'torch/places365'):\n"
        f"    open_pictures(name, 'val', root={str(tmp_path)!r}).read(0)\n"
        "assert not {'torch', 'timm', 'torchvision'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
