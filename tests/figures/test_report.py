"""`report.html`: complete, self-contained, and nothing from files or users is taken for markup."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._figure import figure_modules
from kamim_analysis.results import Results

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text of the page, and whether every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(drawn: Results) -> Page:
    return page_of(drawn.directory)


def test_every_figure_is_inside_with_title_sentence_and_alternative(page: Page, drawn: Results) -> None:
    images = page.all("img")
    for (name, module), image in zip(figure_modules().items(), images, strict=True):
        assert module.TITLE in page.text
        assert module.HOW_TO_READ in page.text
        assert (image["alt"] or "").startswith(f"{module.TITLE}, for SimMIM, ")
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (drawn.directory / "figures" / f"{name}.png").read_bytes()


def test_page_is_well_formed_and_fetches_nothing(page: Page, drawn: Results) -> None:
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    targets = {value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")}
    anchors = {attributes.get("id") for _, attributes in page.elements}
    for target in targets:
        assert target
        assert target.startswith("data:image/png") or target.removeprefix("#") in anchors
    source = (drawn.directory / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", source)


def test_what_users_wrote_is_text(page: Page, drawn: Results) -> None:
    assert not {"b", "birds", "mask"} & {tag for tag, _ in page.elements}
    assert drawn.models[2] in page.text
    assert "64 images of /data/<birds>" in page.text
    assert "its weights hold no <mask> token" in page.text
    assert "<script>alert(1)</script>" in page.text, "the manifest's classes"


def test_key_numbers_are_the_last_layers(page: Page, drawn: Results) -> None:
    table = drawn.metrics.set_index(["model", "analysis", "statistic"])
    row = table.loc[("SimMIM", "knn", "top1_k10")].squeeze()
    assert "%, k = 10" in page.text, "the k nearest to 20"
    assert f"{100 * row.value:.1f}[{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]" in page.text
    row = table.loc[("SimMIM", "reconstruction", "masked_l1")].squeeze()
    assert f"{row.value:.3f}[{row.ci_low:.3f}, {row.ci_high:.3f}]" in page.text
    nmi = drawn.select("attention_nmi")
    (last,) = nmi[(nmi.model == drawn.models[2]) & (nmi.layer == 3)].itertuples()
    assert f"{last.value:.4f}[{last.ci_low:.4f}, {last.ci_high:.4f}]" in page.text


def test_controls_are_marked_and_missing_numbers_are_dashes(page: Page) -> None:
    # in the table of key numbers and in the list of skipped analyses
    assert page.text.count("random control") == 2
    assert page.text.count("—") == 4, "two models without reconstruction"


def test_what_was_guessed_or_left_out_of_weights_is_said_before_the_numbers(page: Page, control_only: Results) -> None:
    assert "left out: <b>head</b>.weight" in page.text
    assert page.text.index("About the weights") < page.text.index("Figures")
    draw_all(control_only.directory)
    assert "About the weights" not in page_of(control_only.directory).text


def test_all_means_over_heads_are_listed_and_no_single_head(page: Page, drawn: Results) -> None:
    count = int(drawn.metrics["head"].isna().sum())
    assert f"All {count} numbers" in page.text
    assert len(page.all("tr")) == count + 1 + len(drawn.models) + 1


def test_skipped_figure_is_listed_with_its_reason(control_only: Results) -> None:
    draw_all(control_only.directory)
    page = page_of(control_only.directory)
    title = figure_modules()["reconstructions"].TITLE
    assert f"{title} (reconstructions): untrained (random): its weights hold no <mask> token" in page.text
    assert "untrained (random)random control: reconstruction, its weights hold no <mask> token" in page.text


def test_nothing_to_draw_is_said_with_reasons(empty: Results) -> None:
    assert draw_all(empty.directory) == []
    page = page_of(empty.directory)
    assert page.all("img") == []
    assert "(knn): SimMIM: a single class" in page.text
    assert "(fourier): SimMIM: nothing of fourier to draw" in page.text
    assert page.open == []
