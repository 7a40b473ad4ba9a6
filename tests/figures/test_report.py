"""`report.html`: complete, self-contained, and nothing from files or users is taken for markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._figure import figure_modules
from kamim_analysis.results import Results

VOID = {"meta", "img", "br"}
DATA_TYPES = {"application/json", "application/octet-stream"}


class Page(HTMLParser):
    """Elements with their attributes, the text to be read, and whether every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.unread: list[tuple[str, dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.unread.append((*self.elements[-1], data))
        else:
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
    assert not {"link", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    targets = {value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")}
    anchors = {attributes.get("id") for _, attributes in page.elements}
    for target in targets:
        assert target
        assert target.startswith("data:image/png") or target.removeprefix("#") in anchors
    source = (drawn.directory / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", source)


def test_one_script_runs_and_the_policy_names_it_and_the_style(page: Page, drawn: Results) -> None:
    (policy,) = [meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    run = [
        (tag, text)
        for tag, attributes, text in page.unread
        if tag == "style" or attributes.get("type") not in DATA_TYPES
    ]
    for (tag, text), rule in zip(run, ("style-src", "script-src"), strict=True):
        assert tag in rule
        assert rules.pop(rule) == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        assert not re.search(
            r"fetch\(|XMLHttpRequest|eval\(|innerHTML|insertAdjacentHTML|import\(|document\.write", text
        )
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}
    # the policy would not let these through
    assert not any("style" in attributes for _, attributes in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_data_stand_in_elements_that_nothing_runs(page: Page, drawn: Results) -> None:
    blocks = {attributes["id"]: text for tag, attributes, text in page.unread if attributes.get("type") in DATA_TYPES}
    assert len(blocks) == len([1 for script in page.all("script") if script.get("type") in DATA_TYPES])
    shared = json.loads(blocks["explorer-data"])
    assert [model["label"] for model in shared["attention"]["models"]] == drawn.models
    assert [picture["name"] for picture in shared["attention"]["models"][0]["pictures"]] == [
        "cat",
        "<script>alert(1)</script>",
    ]
    assert json.loads(blocks["number-data"])["rows"] == len(drawn.metrics)


def test_what_needs_the_script_is_hidden_until_it_runs(page: Page) -> None:
    needing = [(tag, attributes) for tag, attributes in page.elements if "data-script" in attributes]
    assert all("hidden" in attributes for _, attributes in needing)
    assert {attributes.get("id") for tag, attributes in needing if tag == "section"} == {"attention", "tokens"}


def test_what_cannot_be_explored_is_told_with_the_reason(empty: Results) -> None:
    draw_all(empty.directory, [])
    text = page_of(empty.directory).text
    assert "What does a patch attend to?: no model was analysed with explorer" in text
    assert "Which tokens lie together?: no model was analysed with token_tsne or self_attention_tokens" in text


def test_what_users_wrote_is_text(page: Page, drawn: Results) -> None:
    assert not {"b", "birds", "mask"} & {tag for tag, _ in page.elements}
    assert drawn.models[2] in page.text
    assert "64 images of /data/<birds>" in page.text
    assert "its weights hold no <mask> token" in page.text
    assert "<script>alert(1)</script>" in page.text, "the manifest's classes"


def test_key_numbers_are_the_last_layers(page: Page, drawn: Results) -> None:
    table = drawn.metrics.set_index(["model", "analysis", "statistic"]).sort_index()
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
    assert page.text.index("About the weights") < page.text.index(next(iter(figure_modules().values())).TITLE)
    draw_all(control_only.directory, [])
    assert "About the weights" not in page_of(control_only.directory).text


def test_all_means_over_heads_are_listed_and_no_single_head(page: Page, drawn: Results) -> None:
    count = int(drawn.metrics["head"].isna().sum())
    assert f"All {count} numbers" in page.text
    assert len(page.all("tr")) == count + 1 + len(drawn.models) + 1


def test_skipped_figure_is_listed_with_its_reason(control_only: Results) -> None:
    draw_all(control_only.directory, ["reconstructions", "knn"])
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
