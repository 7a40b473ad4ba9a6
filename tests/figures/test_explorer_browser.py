"""The report in a real browser: what people click, hover, slide, type and sort, against numpy on the arrays."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from kamim_analysis.results import Results

SHOWN = {"light": "rgb(253, 253, 252)", "dark": "rgb(23, 24, 26)"}


class Page:
    """The opened report."""

    def __init__(self, browser: Chrome, results: Results) -> None:
        self.browser, self.results = browser, results

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def settle(self) -> None:
        """Two frames: what was asked for before the first is drawn."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
        )

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "waited ten seconds in vain"
            time.sleep(0.02)

    def point(self, element: WebElement, x: float, y: float) -> ActionChains:
        """The pointer on shares of an element's width and height."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        size = element.size
        return ActionChains(self.browser, duration=0).move_to_element_with_offset(
            element, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        )

    def click(self, element: WebElement) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()
        self.settle()

    def slide(self, layer: int) -> None:
        """The slider, by its keys."""
        slider = self.one("#attention-layer")
        slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * (layer - 1))
        self.settle()

    def press(self, element: WebElement, *keys: str) -> None:
        element.send_keys(*keys)
        self.settle()


@pytest.fixture
def page(browser: Chrome, explorable: Results) -> Iterator[Page]:
    """The report, opened anew from disk; whatever a test does must leave the console empty."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get((explorable.directory / "report.html").as_uri())
    opened = Page(browser, explorable)
    opened.until(lambda: len(opened.all("[data-explorer][data-ready]")) == 3)
    opened.settle()
    yield opened
    assert browser.get_log("browser") == []


def attention_of(results: Results, label: str, layer: int, head: int | None, query: int, picture: int = 0) -> Any:
    """Entropy, distance and attention over uniform attention, by numpy from the arrays."""
    arrays = results.arrays("explorer", label)
    height, width, _ = arrays[f"grid{layer}"]
    codes, largest = arrays[f"codes{layer}"][picture] / 255, arrays[f"largest{layer}"][picture].astype(float)
    rows = (largest[..., None] * codes**2)[:, query] * height * width
    entropy, distance = arrays[f"entropy{layer}"][picture][:, query], arrays[f"distance{layer}"][picture][:, query]
    if head is None:
        return entropy[-1], distance.mean(), rows.mean(0)
    return entropy[head], distance[head], rows[head]


def tile_numbers(page: Page, model: int) -> np.ndarray:
    """Entropy and distance as they stand under each map of a model."""
    texts = page.run(
        "return [...document.querySelectorAll('.rows > .row')[arguments[0]].querySelectorAll('.tile')]"
        ".map(t => [...t.querySelectorAll('.number')].map(n => n.textContent))",
        model,
    )
    return np.array([[float(entropy.removeprefix("H ")), float(px.removesuffix(" px"))] for entropy, px in texts])


def assert_tiles_are(page: Page, model: int, expected: list[Any]) -> None:
    numbers = [(entropy, distance) for entropy, distance, _ in expected]
    found = tile_numbers(page, model)
    assert found.shape == (len(numbers), 2)
    assert_allclose(found[:, 0], [entropy for entropy, _ in numbers], atol=0.51e-4)
    assert_allclose(found[:, 1], [distance for _, distance in numbers], atol=0.051 + 0.05)


def test_a_click_shows_that_patch_in_every_layer_of_every_model(page: Page) -> None:
    # row 1, column 2 of the finest grid, 4 x 4 cells
    page.point(page.one("#attention .query"), 2.5 / 4, 1.5 / 4).click().perform()
    page.settle()
    assert page.one("#attention-status").text == "Row 2, column 3 of 4 × 4 · picture 1, cat"  # noqa: RUF001
    for model, label in enumerate(page.results.models[:2]):
        assert_tiles_are(page, model, [attention_of(page.results, label, i, None, 6) for i in range(1, 5)])
    # 2 x 3 patches: the point lies in row 0, column 1; layer 1 in cells of four patches likewise
    wide = page.results.models[2]
    assert_tiles_are(page, 2, [attention_of(page.results, wide, i, None, 1) for i in range(1, 4)])


def test_the_slider_changes_the_layer_of_all_heads(page: Page) -> None:
    page.click(page.one("input[value='heads']"))
    for layer in (2, 4):
        page.slide(layer)
        assert page.one("#attention output").text == f"{layer} of 4"
        label = page.results.models[0]
        assert_tiles_are(page, 0, [attention_of(page.results, label, layer, head, 10) for head in (None, 0, 1)])
    assert "This model has 3 layers." in page.all(".row")[2].text


def test_the_chosen_map_tells_its_numbers(page: Page) -> None:
    page.click(page.one("input[value='heads']"))
    page.slide(3)
    page.click(page.all(".rows > .row")[0].find_elements(By.CSS_SELECTOR, ".tile")[2])
    assert page.one(".selected-title").text == "● SimMIM, layer 3, head 1"
    entropy, distance, row = attention_of(page.results, "SimMIM", 3, 1, 10)
    texts = {node.get_attribute("data-fact"): node.text for node in page.all(".facts dd")}
    assert texts["entropy"].startswith(f"{entropy:.4f} of uniform")
    assert texts["distance"].startswith(f"{distance:.1f} px")
    # attention itself comes in 64 steps
    for name, value in (("largest", row.max()), ("own patch", row[10])):
        assert float(texts[name].split(" ×")[0]) == pytest.approx(value, abs=row.max() / 60)  # noqa: RUF001
    at = int(row.argmax())
    assert texts["largest"].endswith(f"at row {at // 4 + 1}, column {at % 4 + 1}")
    # the pointer on the map reads off any patch
    page.point(page.one(".selected"), 0.5 / 4, 3.5 / 4).perform()
    page.settle()
    value, _, where = page.one(".probe").text.partition(" × ")  # noqa: RUF001
    assert where == "uniform at row 4, column 1"
    assert float(value) == pytest.approx(row[12], abs=row.max() / 60)


def test_maps_are_drawn_in_viridis(page: Page) -> None:
    page.run("const o = document.querySelectorAll('#attention input[type=range]')[1]; o.value = 100;"
             "o.dispatchEvent(new Event('input'))")  # fmt: skip
    page.settle()
    _, _, row = attention_of(page.results, "SimMIM", 4, None, 10)
    colours = np.array(
        page.run(
            "const c = document.querySelector('.selected'), s = c.width / 4;"
            "const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return [...Array(16).keys()].map(i => {"
            "  const at = 4 * (((i >> 2) + .5) * s * c.width + (i % 4 + .5) * s);"
            "  return [...pixels.slice(at, at + 3)]; })"
        )
    )
    import matplotlib

    viridis = matplotlib.colormaps["viridis"](np.clip(row / row.max(), 0, 1), bytes=True)[:, :3].astype(int)
    # the steps of single heads are averaged: within a few of 256 colours
    assert np.abs(colours - viridis).max() < 16
    bright = np.argsort(row)[-1]
    assert_allclose(colours[bright], [253, 231, 37], atol=3)


def test_scales_of_colour(page: Page) -> None:
    tops = []
    for choice in ("zero", "shared", "contrast"):
        Select(page.one(".pair label:nth-child(2) select")).select_by_value(choice)
        page.settle()
        low, high = page.one(".ends").text.split("\n") if "\n" in page.one(".ends").text else (
            page.one(".ends span:first-child").text, page.one(".ends span:last-child").text)  # fmt: skip
        tops.append((float(low), float(high.split(" ")[0])))
    (zero, own), (_, shared), (least, contrast) = tops
    assert zero == 0 < least
    assert own == contrast < shared


def test_arrow_keys_move_the_query_and_page_keys_the_picture(page: Page) -> None:
    picture = page.one("#attention .query")
    page.press(picture, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.one("#attention-status").text.startswith("Row 2, column 1 of")
    label = page.results.models[0]
    assert_tiles_are(page, 0, [attention_of(page.results, label, i, None, 4) for i in range(1, 5)])
    page.press(picture, Keys.PAGE_DOWN)
    page.until(lambda: page.one("#attention-status").text.endswith("picture 2, <script>alert(1)</script>"))
    page.settle()
    assert_tiles_are(page, 0, [attention_of(page.results, label, i, None, 4, picture=1) for i in range(1, 5)])
    assert [button.get_attribute("aria-pressed") for button in page.all(".thumb")] == ["false", "true"]


def test_all_layers_and_heads_stand_in_one_matrix(page: Page) -> None:
    page.click(page.one("input[value='all']"))
    canvas = page.all(".matrix canvas")[1]
    page.press(canvas, Keys.HOME)  # a key of no meaning here
    page.press(canvas, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    entropy, distance, _ = attention_of(page.results, page.results.models[1], 2, 0, 10)
    assert page.all(".matrix-now")[1].text == f"layer 2, head 0: H {entropy:.4f}, {distance:.1f} px"
    # a click on the last layer's last head: rows are layers below 18 px of names, columns heads right of 26
    width, height = canvas.size["width"], canvas.size["height"]
    page.point(canvas, 1 - 0.3 * (width - 26) / 3 / width, 1 - 0.3 * (height - 18) / 4 / height).click().perform()
    page.settle()
    assert "layer 4, head 1" in page.one(".selected-title").text


def test_playing_goes_through_the_layers_until_it_is_stopped(page: Page) -> None:
    play, output = page.one(".slider button"), page.one("#attention output")
    page.click(play)
    page.until(lambda: output.text == "1 of 4")
    page.until(lambda: output.text == "2 of 4")
    page.click(play)
    assert play.get_attribute("aria-pressed") == "false"


def hover_nearest(page: Page, model: int, index: int, title: str = "tsne") -> None:
    """The pointer on one point of a model's plane."""
    points = page.results.arrays("tokens", page.results.models[model])[title].reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    share = (points[index] - (low + high) / 2) / (high - low).max() + 0.5
    canvas = page.all("#tokens .plane canvas")[model]
    side = canvas.size["width"]
    inside = (10 + share * (side - 20)) / side
    page.point(canvas, inside[0], 1 - inside[1]).perform()
    page.settle()


def lonely(page: Page, model: int) -> int:
    """A point with no other near, which a pointer cannot miss."""
    points = page.results.arrays("tokens", page.results.models[model])["tsne"].reshape(-1, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    return int(distance.min(1).argmax())


def test_hovering_a_point_shows_its_patch_and_picture(page: Page) -> None:
    index = lonely(page, 0)
    hover_nearest(page, 0, index)
    image, patch = divmod(index, 16)
    name = ["cat", "<script>alert(1)</script>", "$x_1$ owl$", "cat", "cat", "cat"][image]
    where = f"picture {image + 1}, row {patch // 4 + 1}, column {patch % 4 + 1} of 4 × 4"  # noqa: RUF001
    assert page.one(".token-facts").text == f"{name} · {where}"
    shown = page.run("return [...document.querySelector('.patch').getContext('2d').getImageData(90, 30, 1, 1).data]")
    # pixel (1, 4) of the 8 x 8 pixels of the patch, enlarged twenty-fold
    pixels = page.results.arrays("tokens", "SimMIM")["self_attention_pixels"][image]
    assert shown[:3] == pixels[8 * (patch // 4) + 1, 8 * (patch % 4) + 4].tolist()


def test_keys_walk_over_the_points_and_planes_can_be_changed(page: Page) -> None:
    plane = page.all("#tokens .plane canvas")[2]
    page.press(plane, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.PAGE_UP)
    assert page.one(".token-facts").text.endswith("picture 6, row 1, column 1 of 2 × 3")  # noqa: RUF001
    Select(page.one(".plane-controls select")).select_by_visible_text(
        "PCA before self-attention, two pictures, second-last layer"
    )
    page.settle()
    assert page.one(".token-facts").text.endswith("picture 2, row 1, column 1 of 2 × 3")  # noqa: RUF001
    captions = [caption.text.split("\n")[-1] for caption in page.all(".plane figcaption")]
    assert captions == ["layer 3 of 4, 2 pictures"] * 2 + ["layer 2 of 3, 2 pictures"]


def column(page: Page, number: int) -> list[str]:
    return page.run(
        "return [...document.querySelectorAll('.long tbody tr')].map(r => r.children[arguments[0]].textContent)", number
    )


def test_the_table_sorts_by_keyboard_and_filters(page: Page) -> None:
    table = page.results.metrics
    means = table[table["head"].isna()]
    assert page.one("#all [role=status]").text == f"{len(means)} of {len(table)} numbers, to five digits"
    head = page.one("th[data-column=value] button")
    page.press(head, Keys.ENTER)
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    values = np.array(column(page, 5), float)
    assert_allclose(values, np.sort(means.value)[: len(values)], rtol=1e-4)
    page.press(head, Keys.SPACE)
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    values = np.array(column(page, 5), float)
    assert_allclose(values, np.sort(means.value)[::-1][: len(values)], rtol=1e-4)
    page.one("#number-search").send_keys("distance layer 1")
    page.settle()
    expected = means[(means.analysis == "attention_distance") & (means.layer == 1)]
    assert_allclose(np.array(column(page, 5), float), np.sort(expected.value)[::-1], rtol=1e-4)


def test_the_table_filters_by_model_analysis_and_head(page: Page) -> None:
    table, label = page.results.metrics, page.results.models[2]
    models, analyses, heads = (Select(select) for select in page.all(".filters select"))
    models.select_by_visible_text(label)
    analyses.select_by_visible_text("attention_nmi")
    heads.select_by_visible_text("single heads")
    page.settle()
    expected = table[(table.model == label) & (table.analysis == "attention_nmi") & table["head"].notna()]
    assert set(column(page, 0)) == {label}
    assert column(page, 3) == [str(head) for head in expected["head"]]
    page.click(page.one("th[data-column=layer] button"))
    assert column(page, 2) == sorted(str(layer) for layer in expected.layer)
    models.select_by_visible_text("all")
    analyses.select_by_visible_text("all")
    heads.select_by_visible_text("all rows")
    page.settle()
    assert page.one("#all [role=status]").text.startswith(f"{len(table)} of {len(table)}")


def test_thousands_of_rows_are_drawn_as_they_are_scrolled_to(page: Page) -> None:
    page.run(
        """
        const rows = 30000, data = JSON.parse(document.getElementById('number-data').textContent);
        for (const [name, column] of Object.entries(data.columns)) {
          const list = column.codes ?? column;
          while (list.length < rows) list.push(list[list.length % 50]);
        }
        document.getElementById('number-data').textContent = JSON.stringify({...data, rows});
        """
    )
    source = page.run("return document.querySelector('body > script:last-of-type').textContent")
    assert "startTable" in source
    seconds = page.run("const from = performance.now();" + source + "return (performance.now() - from) / 1000;")
    assert seconds < 5
    page.until(lambda: "of 30000" in page.one("#all [role=status]").text)
    Select(page.all(".filters select")[2]).select_by_visible_text("all rows")
    page.settle()
    assert 100 < len(page.all(".long tbody tr")) < 1000
    page.run("const t = document.querySelector('.long'); t.scrollTop = t.scrollHeight;")
    page.settle()
    assert len(page.all(".long tbody tr")) > 150


def paper(page: Page) -> str:
    return str(page.run("return getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_button(page: Page, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.settle()
    other = "dark" if scheme == "light" else "light"
    button = page.one("#theme")
    assert paper(page) == SHOWN[scheme]
    assert button.text == f"{other.capitalize()} page"
    page.press(button, Keys.ENTER)
    assert paper(page) == SHOWN[other]
    assert button.text == f"{scheme.capitalize()} page"
    page.press(button, Keys.ENTER)
    assert paper(page) == SHOWN[scheme]


def phone(page: Page) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.settle()


@pytest.mark.parametrize("view", ["layers", "heads", "all"])
def test_a_phone_scrolls_in_one_direction_only(page: Page, view: str) -> None:
    phone(page)
    page.run("document.querySelector(`input[value='${arguments[0]}']`).click()", view)
    page.settle()
    assert page.run("return innerWidth") == 400
    assert page.run("return document.documentElement.scrollWidth") <= 400
    # nothing that is to be touched hangs over the edge, or is too small for a finger
    boxes = page.run(
        "return [...document.querySelectorAll("
        "  'main button, main select, main input, #attention canvas, #tokens canvas')]"
        ".filter(n => !n.closest('.scroll, .segments') && n.offsetParent)"
        ".map(n => { const b = n.getBoundingClientRect(); return [b.left, b.right]; })"
    )
    assert boxes
    assert min(left for left, _ in boxes) >= 0
    assert max(right for _, right in boxes) <= 400


def test_a_tap_chooses_a_point_on_a_phone(page: Page) -> None:
    phone(page)
    canvas = page.all("#tokens .plane canvas")[0]
    page.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    page.until(lambda: canvas.size["width"] <= 400)
    index = lonely(page, 0)
    points = page.results.arrays("tokens", "SimMIM")["tsne"].reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    share = (points[index] - (low + high) / 2) / (high - low).max() + 0.5
    box = page.run("const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.width];", canvas)
    x = box[0] + 10 + share[0] * (box[2] - 20)
    y = box[1] + 10 + (1 - share[1]) * (box[2] - 20)
    for kind, touches in (("touchStart", [{"x": float(x), "y": float(y)}]), ("touchEnd", [])):
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    page.settle()
    assert (
        f"picture {index // 16 + 1}, row {index % 16 // 4 + 1}, column {index % 4 + 1}" in page.one(".token-facts").text
    )


def test_everything_can_be_reached_and_has_a_name(page: Page) -> None:
    nameless = page.run(
        """
        const named = (n) => n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length || n.title;
        return [...document.querySelectorAll('button, select, input, [tabindex], [role=application]')]
          .filter(n => n.offsetParent && !named(n)).map(n => n.outerHTML.slice(0, 200));
        """
    )
    assert nameless == []
    seen = []
    body = page.one("body")
    body.click()
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(90):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        seen.append(page.run("const a = document.activeElement; return a.id || a.className || a.tagName"))
    assert {"theme", "thumb", "query", "attention-layer", "tile", "number-search"} <= set(seen)
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_names_never_become_markup(page: Page) -> None:
    assert page.all("b > *, main birds, main mask") == []
    assert not page.all("main script")
    label = page.results.models[2]
    assert any(label in row.text for row in page.all(".row-title"))
    assert "<script>alert(1)</script>" in page.one(".legend").text
    assert label in [option.text for option in Select(page.all(".filters select")[0]).options]
    assert page.all(".thumb")[1].get_attribute("title") == "<script>alert(1)</script>"


def test_without_script_the_report_is_there_to_be_read(browser: Chrome, page: Page) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        shown = {node.get_attribute("id") for node in page.all("section") if node.is_displayed()}
        assert shown == {"numbers", "figures", "left-out", "all"}
        assert page.one("#numbers-static summary").is_displayed()
        assert not page.one("#theme").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_policy_stops_what_is_not_the_page_s_own(page: Page) -> None:
    ran = page.run(
        """
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        return Boolean(window.ran);
        """
    )
    assert ran is False
    (entry,) = page.browser.get_log("browser")
    assert "Content Security Policy" in entry["message"]
