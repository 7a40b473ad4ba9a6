"""Plug-ins by file name."""

import pytest

from kamim_analysis import plugins
from kamim_analysis.errors import UserError


def test_private_modules_are_no_plug_ins():
    assert plugins.names("kamim_analysis.data_sets") == ["cifar10", "cifar100", "imagenet", "inaturalist", "places365"]


def test_a_new_file_is_a_plug_in_at_once(tmp_path, monkeypatch):
    package = tmp_path / "made_up_plugins"
    package.mkdir()
    for name in ("__init__", "_hidden", "beta", "alpha"):
        (package / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.names("made_up_plugins") == ["alpha", "beta"]
    assert plugins.load("made_up_plugins", "beta", "thing").NAME == "beta"
    assert list(plugins.load_all("made_up_plugins")) == ["alpha", "beta"]


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"unknown colour 'gren' \(did you mean 'green'\?\); there are: green, red"):
        plugins.check("gren", ["green", "red"], "colour")
    with pytest.raises(UserError, match=r"^unknown colour 'x'; there are: green, red$"):
        plugins.check("x", ["green", "red"], "colour")


@pytest.mark.parametrize("package", ["kamim_analysis.version", "kamim_analysis.nowhere"])
def test_what_is_no_package_is_a_programming_error(package):
    with pytest.raises(ValueError, match="is not a package"):
        plugins.names(package)
