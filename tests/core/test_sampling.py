"""Which pictures are chosen, and in what order they are shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kamim_analysis.data import Pictures, open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.sampling import ChosenPictures, check_classes, choose, open_data


def pictures(labels: list[int] | None, count: int = 60) -> Pictures:
    known = None if labels is None else np.array(labels)
    return Pictures("made", (), known, count if known is None else len(known), lambda _i: None, str)


LABELS = [0] * 9 + [1] * 30 + [2] * 21


def test_a_seeded_permutation_without_repeats():
    chosen = choose(pictures(None), 25, 4)
    assert len(set(chosen)) == 25
    assert set(chosen) <= set(range(60))
    assert chosen == choose(pictures(None), 25, 4)
    assert chosen != choose(pictures(None), 25, 5)
    assert all(type(i) is int for i in chosen)


@pytest.mark.parametrize("count", [None, 60, 1000])
def test_all_pictures(count):
    assert sorted(choose(pictures(LABELS), count, 0, shown=(6, 6, 4))) == list(range(60))


def test_fewer_pictures_are_the_beginning_of_more():
    more = choose(pictures(LABELS), 50, 0, shown=(6, 6, 4))
    assert choose(pictures(LABELS), 20, 0, shown=(6, 6, 4)) == more[:20]


@pytest.mark.parametrize("seed", range(4))
def test_pictures_to_show_come_first_and_their_classes_take_turns(seed):
    chosen = choose(pictures(LABELS), None, seed, shown=(6, 6, 4))
    classes = [LABELS[i] for i in chosen[:16]]
    first, second, third = classes[:3]
    assert {first, second, third} == {0, 1, 2}
    assert classes == [first, second, third] * 4 + [first, second] * 2


def test_classes_to_show_are_drawn_among_those_with_enough_pictures():
    labels = [i // 10 for i in range(80)] + [99] * 5
    seen = [{labels[i] for i in choose(pictures(labels), 3, seed, shown=(6, 6, 4))} for seed in range(40)]
    assert set().union(*seen) == set(range(8))


def test_the_rest_stays_in_random_order():
    chosen = choose(pictures(LABELS), None, 0, shown=(6, 6, 4))
    order = [i for i in choose(pictures(LABELS), None, 0) if i not in chosen[:16]]
    assert chosen[16:] == order


def test_a_small_class_shows_fewer():
    labels = [0] * 2 + [1] * 3 + [2] * 10
    classes = [labels[i] for i in choose(pictures(labels), None, 0, shown=(6, 6, 4))[:11]]
    assert [classes.count(label) for label in (2, 1, 0)] == [6, 3, 2]


def test_fewer_classes_than_places():
    chosen = choose(pictures([5] * 20), None, 0, shown=(6, 6, 4))
    assert sorted(chosen) == list(range(20))


def test_unknown_labels_give_plain_random_order():
    assert choose(pictures(None), 30, 0, shown=(6, 6, 4)) == choose(pictures(None), 30, 0)


def test_photographs_have_a_bank_twice_as_large_and_apart():
    data = open_data("photographs", None, 24, 0, max_unreadable=0.01, shown=(6, 6, 4))
    assert (len(data.test_indices), len(data.bank_indices), data.neighbours) == (24, 48, 48)
    assert data.unreadable.total == 72
    assert not data.single_class


def test_all_training_pictures_may_be_neighbours():
    data = open_data("photographs", None, 24, 0, max_unreadable=0.01, bank_all=True)
    assert sorted(data.bank_indices) == list(range(len(open_pictures("photographs", "train"))))


def test_a_directory_without_splits_leaves_one_out(tmp_path):
    for i in range(5):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    data = open_data(str(tmp_path), None, 4, 0, max_unreadable=0.01)
    assert (data.bank, data.bank_indices, data.neighbours) == (None, [], 3)
    assert data.single_class
    assert data.classes == 1


def put(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return str(root)


def opened(source: str, images: int | None = None) -> ChosenPictures:
    return open_data(source, None, images, 0, max_unreadable=0.01, bank_all=True)


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("train/1.png", "train/2.png", "val/1.png", "val/2.png")])
def test_pictures_in_no_class_folders_have_no_labels(tmp_path, names):
    data = opened(put(tmp_path, *names))
    with pytest.raises(UserError, match=r"^labels missing in '.*': they lie in no class folders; k-NN and probes need"):
        check_classes(data)


@pytest.mark.parametrize(
    ("names", "which"),
    [
        (("cat/1.png", "cat/2.png"), "the pictures"),
        (("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/cat/2.png"), "the pictures"),
        (("train/cat/1.png", "train/cat/2.png", "val/cat/1.png", "val/dog/2.png"), "the training pictures"),
    ],
)
def test_a_single_class_cannot_be_told_apart(tmp_path, names, which):
    with pytest.raises(UserError, match=f"^{which} of '.*' have a single class; k-NN and probes need two"):
        check_classes(opened(put(tmp_path, *names)))


def test_a_single_class_among_those_drawn_is_refused(tmp_path):
    source = put(tmp_path, *(f"cat/{i}.png" for i in range(30)), "dog/1.png")
    check_classes(opened(source))
    with pytest.raises(UserError, match="single class"):
        check_classes(opened(source, 2))


def test_two_classes_suffice(tmp_path):
    check_classes(opened(put(tmp_path, "cat/1.png", "dog/2.png")))
    check_classes(opened("photographs", 50))
