"""Parts of labelled pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.train.labelled import first_of_each_class
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.start import from_random_weights


def test_the_first_of_each_class_by_name(pictures: Path) -> None:
    """The names sort as text: 0, 1, 10, 11, 12, ..., as they do in AttMask's code."""
    whole = open_pictures(str(pictures), "train")
    part = first_of_each_class(whole, 3)
    assert [part.identity(i) for i in range(len(part))] == [
        f"{label}/{name}.png" for label in ("dark", "light") for name in (0, 1, 10)
    ]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (part.read(4)[0] == whole.read(17)[0]).all()
    assert part.stamp(4) == whole.stamp(17)


def test_pictures_that_do_not_lie_class_by_class() -> None:
    """The photographs take turns."""
    part = first_of_each_class(open_pictures("photographs", "train"), 2)
    assert part.labels is not None
    assert part.labels.tolist() == [*range(12), *range(12)]
    assert {part.identity(i).split("#")[1] for i in range(24)} == {"0", "1"}


def test_a_run_takes_so_many_of_each_class(tiny_recipe: Callable[..., Recipe]) -> None:
    assert len(from_random_weights(tiny_recipe("--data.per_class", "5")).pictures) == 10
    with pytest.raises(UserError, match=r"class 'dark' has 16 pictures; set data.per_class to 16 or less"):
        from_random_weights(tiny_recipe("--data.per_class", "17"))
    with pytest.raises(UserError, match=r"data.per_class is 0; it must be greater than 0"):
        tiny_recipe("--data.per_class", "0")


def test_labels_must_be_known(pictures: Path) -> None:
    whole = open_pictures(str(pictures), "train")
    for unknown in (replace(whole, labels=None), replace(whole, unlabelled="they lie in no class folders")):
        with pytest.raises(UserError, match=r"labels missing in 'pictures', of whose classes data.per_class takes 2"):
            first_of_each_class(unknown, 2)
