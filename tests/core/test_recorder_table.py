"""docs/RECORDER.md names every family of timm, and its rows are what trying out gives."""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm

ROOT = Path(__file__).parents[2]
TRIED_AGAIN = {
    "vit_small_patch14_reg4_dinov2": "fully",
    "eva02_tiny_patch14_224": "fully",
    "swinv2_tiny_window8_256": "fully",
    "cait_xxs24_224": "not",
    "hiera_tiny_224": "not",
    "xcit_nano_12_p16_224": "not",
}


@cache
def document() -> str:
    return (ROOT / "docs" / "RECORDER.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table() -> Any:
    """The script that writes the document, loaded as a module."""
    spec = importlib.util.spec_from_file_location("recorder_table", ROOT / "tests" / "coverage" / "recorder_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _of_the_installed_timm() -> None:
    (version,) = re.findall(r"with timm (\S+);", document())
    if version != timm.__version__:
        pytest.skip(f"docs/RECORDER.md is of timm {version}, installed is {timm.__version__}")


def rows() -> list[list[str]]:
    """Cells of the table's rows."""
    lines = [line for line in document().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_family_of_timm_has_rows_or_is_listed_without_attention():
    families = {module for module in timm.list_modules() if timm.list_models(module=module)}
    in_table = {row[0] for row in rows()}
    (last,) = [line for line in document().splitlines() if line.startswith("Without attention")]
    without = set(re.findall(r"`(\w+)`", last))
    assert in_table | without == families
    assert in_table & without == set()
    assert len(timm.list_models()) == sum(len(timm.list_models(module=family)) for family in families)


def test_rows_name_architectures_of_their_family_and_say_what_records():
    for family, architecture, special, records, reason in rows():
        assert architecture.split("`")[1] in timm.list_models(module=family)
        assert special
        assert records in ("fully", "partly", "not")
        assert bool(reason) == (records != "fully")


@pytest.mark.parametrize("architecture", TRIED_AGAIN)
def test_a_row_tried_again_gives_what_the_document_says(table, architecture):
    row = next(row for row in table.ROWS if row.architecture == architecture)
    outcome = table.classify(row)
    assert outcome.records == TRIED_AGAIN[architecture]
    assert table.line(row, outcome) in document().splitlines()


def test_the_row_that_records_partly_names_what_is_missing(table, caplog):
    (row,) = [row for row in table.ROWS if row.options.get("attn_block")]
    outcome = table.classify(row)
    assert (outcome.records, len(caplog.messages)) == ("partly", 1)
    assert "`blocks_token_only.0.attn`" in outcome.reason
    assert table.line(row, outcome) in document().splitlines()


def test_a_family_with_attention_and_without_a_row_is_an_error(table, monkeypatch):
    monkeypatch.setattr(table, "families", lambda: ["hiera", "vgg"])
    assert list(table.without_attention()) == ["vgg"]
    monkeypatch.setattr(table, "ROWS", ())
    with pytest.raises(SystemExit, match="hiera has no row, but hiera_base_224 attends in blocks"):
        list(table.without_attention())
