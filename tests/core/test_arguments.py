"""Options that several commands share."""

import pytest

from kamim_analysis.arguments import Parser, add_models_and_data, shared_settings
from kamim_analysis.errors import UserError


def images(*arguments: str, default: int | None = 512) -> int | None:
    parser = Parser("knn", "help")
    add_models_and_data(parser, images=default)
    chosen = parser.parse_args(["random:vit_tiny", "--data", "photographs", "--out", "out", *arguments])
    found: int | None = shared_settings(chosen)["images"]
    return found


def test_a_number_of_pictures_or_all():
    assert images("--images", "7") == 7
    assert images("--images", "all") is None
    assert images() == 512
    assert images(default=None) is None


@pytest.mark.parametrize("text", ["1", "-3", "1.5", "every", ""])
def test_what_is_neither_is_refused(text):
    with pytest.raises(UserError, match=f"--images: {text!r} is not a whole number from 2 up, nor 'all'"):
        images("--images", text)
