"""timm's names, read from its source, against what timm itself registers."""

import pytest
import timm

from kamim_analysis.errors import UserError
from kamim_analysis.timm_names import SHORT_NAMES, architectures, check_architecture


def test_architectures_are_those_that_timm_lists():
    assert architectures() == sorted(timm.list_models())


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_short_names_stand_for_timm_models(short):
    assert timm.is_model(SHORT_NAMES[short])


def test_a_pretrained_tag_is_kept():
    assert check_architecture("vit_small_patch14_dinov2.lvd142m") == "vit_small_patch14_dinov2.lvd142m"


def test_every_pretrained_name_of_timm_passes():
    for name in timm.list_models(pretrained=True):
        assert check_architecture(name) == name


@pytest.mark.parametrize(
    ("name", "near"),
    [("vit_small_patch16_244", "vit_small_patch16_224"), ("swin_tinny", "swin_tiny"), ("vit_smal", "vit_small")],
)
def test_a_mistyped_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"timm has no architecture '{name}'; did you mean '{near}'"):
        check_architecture(name)


def test_a_name_like_no_other_is_refused_with_where_to_look():
    with pytest.raises(UserError, match=r"timm has no architecture 'qqqqq'; timm\.list_models\(\) lists all \d+"):
        check_architecture("qqqqq")
