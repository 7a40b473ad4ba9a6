"""Names that are markup, code or mathematics: as they are in folders and labels, so they stand in a real browser."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from kamim_analysis.cli import main
from kamim_analysis.results import Results

#: what each would do if it were markup: a script, a handler, an element, a style, a link; the last is mathematics
LABELS = (  # no = in a label: it ends there
    "\"'><svg><script>Object.assign(window,{hacked:1})</script>",
    "javascript:Object.assign(window,{hacked:1})",
    "</style><style>body{display:none}</style></script><marquee>injected</marquee>",
    r"${template} $\frac{1$ _a^b_ {0} %s \\ & # ~ `code` | [a](b)",
)
CLASSES = (
    "<img src=x onerror=window.hacked=1>",
    r"<h1 id=injected>$\undefined{$ & 'a' \"b\"",
    "⟨script⟩ &lt;b&gt; -- ]]> <!--",
)


@pytest.fixture(scope="module")
def results(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What `kamim analyze` makes of them, figures and all."""
    root = tmp_path_factory.mktemp("hostile")
    for i, name in enumerate(CLASSES):
        (root / "data" / name).mkdir(parents=True)
        for j in range(2):
            picture = Image.effect_noise((32, 32), 40 + 20 * i + 5 * j).convert("RGB")
            picture.save(root / "data" / name / f"{j}<b onclick=x>.png")
    given = ["--data", str(root / "data"), "--images", "6", "--image_size", "32", "--workers", "0"]
    given += ["--analyses", "attention_distance,token_tsne,explorer,knn", "--out", str(root / "out")]
    main(["analyze", *[f"{label}=random:{tiny_run}" for label in LABELS], *given])
    return Results.open(root / "out")


@pytest.fixture
def page(browser: Chrome, results: Results) -> Chrome:
    """The report, its explorers ready."""
    browser.get((results.directory / "report.html").as_uri())
    browser.set_script_timeout(30)
    browser.execute_async_script(
        "const done = arguments[0], look = () => document.querySelectorAll('[data-explorer][data-ready]').length == 3"
        " ? done() : setTimeout(look, 50); look();"
    )
    return browser


def test_no_name_becomes_markup(page: Chrome, results: Results) -> None:
    assert [label.removesuffix(" (random)") for label in results.models] == list(LABELS)
    everything: dict[str, Any] = page.execute_script(
        "const all = [...document.querySelectorAll('*')];"
        "return {hacked: window.hacked ?? null, injected: document.querySelectorAll('#injected, marquee').length,"
        " shown: getComputedStyle(document.body).display, styles: document.querySelectorAll('style').length,"
        " handlers: all.filter(one => [...one.attributes].some(a => a.name.startsWith('on'))).length,"
        " links: all.filter(one => /^javascript/i.test(one.getAttribute('href') ?? '')).length,"
        " images: [...document.images].filter(one => !/^(data|blob):/.test(one.src)).length}"
    )
    found = {"hacked": None, "injected": 0, "shown": "block", "styles": 1, "handlers": 0, "links": 0, "images": 0}
    assert everything == found
    assert page.get_log("browser") == []


def test_every_name_can_be_read_as_it_is(page: Chrome, results: Results) -> None:
    text = page.execute_script("return document.body.textContent")
    for label in results.models:
        assert label in text
        assert label in page.execute_script(
            "return [...document.querySelectorAll('#numbers *')].map(one => one.textContent).join('\\n')"
        )
    said = []
    for _ in range(6):  # the explorer tells the class of the picture that it shows
        said.append(page.find_element(By.ID, "attention-status").text)
        page.find_element(By.CSS_SELECTOR, "#attention .query").send_keys("\ue00f")
    assert {name for name in CLASSES if any(name in one for one in said)}


def test_no_name_becomes_a_file_s_or_draws_mathematics(results: Results) -> None:
    """Labels with mathematics are drawn as they are: what matplotlib cannot parse would have left figures out."""
    written = {path.relative_to(results.directory) for path in results.directory.rglob("*")}
    assert len([path for path in written if path.suffix == ".png"]) >= 3
    assert not any(sign in str(path) for path in written for sign in "<>$")
    assert not (Path.cwd() / "injected").exists()
    for model in results.manifest["models"]:
        assert not set(model.get("skipped", {})) & {"attention_distance", "token_tsne", "explorer"}
