"""The explorers' data: what a browser unpacks is what the results hold, and the page keeps its limit."""

import base64
import json
import zlib
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from kamim_analysis.figures import _explorer_attention, _report
from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._explorer import Blocks, as_json, script
from kamim_analysis.figures._explorer_attention import STEPS, attention_data, coarse
from kamim_analysis.figures._explorer_table import table_data
from kamim_analysis.figures._explorer_tokens import in_frame, token_data
from kamim_analysis.results import Results

PLENTY = 10**9


def unpacked(blocks: Blocks, name: str) -> bytes:
    return zlib.decompress(base64.b64decode(blocks._blocks[name]))


def codes_of(content: bytes, steps: int, entries: int) -> tuple[np.ndarray, bytes]:
    """The first codes of a block, decoded one by one, and what follows them."""
    if steps > 16:
        return np.frombuffer(content[:entries], np.uint8), content[entries:]
    size = -(-entries // 2)
    both = [nibble for byte in content[:size] for nibble in (byte // 16, byte % 16)]
    return np.array(both[:entries]), content[size:]


@pytest.mark.parametrize("steps", STEPS)
def test_a_block_holds_every_map_and_number_of_a_picture(
    drawable: Results, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_explorer_attention, "STEPS", (steps,))
    blocks = Blocks()
    data = attention_data(drawable, blocks, PLENTY)
    assert isinstance(data, dict)
    assert data["steps"] == steps
    for m, label in enumerate(drawable.models):
        arrays = drawable.arrays("explorer", label)
        for picture in range(2):
            rest = unpacked(blocks, f"maps-{m}-{picture}")
            layers = range(1, drawable.model(label)["layers"] + 1)
            for layer in layers:
                expected = arrays[f"codes{layer}"][picture]
                codes, rest = codes_of(rest, steps, expected.size)
                assert np.abs(codes.reshape(expected.shape) / (steps - 1) - expected / 255).max() <= 0.5 / (steps - 1)
            low, high = np.frombuffer(rest, np.uint8).reshape(2, -1).astype(int)
            numbers = iter(low + 256 * high)
            for layer in layers:
                for name in ("largest", "entropy", "distance"):
                    exact = arrays[f"{name}{layer}"][picture].astype(float)
                    found = np.array([next(numbers) for _ in range(exact.size)]).reshape(exact.shape)
                    if name == "largest":
                        assert_allclose(2.0 ** (-found / data["octave"]), exact, rtol=0.003)
                    else:
                        scale = {"entropy": 1e4, "distance": 10}[name]
                        assert_allclose(found / scale, exact, atol=0.501 / scale)
            assert next(numbers, None) is None


def test_geometry_of_layers_and_pictures(drawable: Results) -> None:
    blocks = Blocks()
    data: Any = attention_data(drawable, blocks, PLENTY)
    wide = data["models"][2]
    assert wide["layers"][0] == {"heads": 2, "grid": [4, 6], "cell": 2}
    assert wide["layers"][1] == {"heads": 2, "grid": [2, 3], "cell": 1}
    assert [model["control"] for model in data["models"]] == [False, True, False]
    # the first two models saw the same pictures, which stand in the page once
    assert [[picture["picture"] for picture in model["pictures"]] for model in data["models"]] == [
        [0, 1],
        [0, 1],
        [2, 3],
    ]
    url = blocks.picture_urls[2].removeprefix("data:image/png;base64,")
    assert_array_equal(
        Image.open(BytesIO(base64.b64decode(url))), drawable.arrays("explorer", wide["label"])["pixels"][0]
    )


def test_two_codes_share_a_byte_where_they_fit() -> None:
    assert coarse(np.array([0, 255, 128], np.uint8), 16) == bytes([0x0F, 0x80])
    assert coarse(np.array([0, 255, 128], np.uint8), 64) == bytes([0, 63, 32])


def test_less_room_takes_steps_and_then_pictures(drawable: Results) -> None:
    found = []
    for budget in np.geomspace(100_000, 100, 40):
        blocks = Blocks()
        data = attention_data(drawable, blocks, int(budget))
        if isinstance(data, str):
            assert data == "the maps of these models are too large for a page, even of one picture"
            break
        assert sum(map(len, blocks._blocks.values())) <= budget * 1.02, "base64 pads"
        found.append((len(data["models"][0]["pictures"]), data["steps"]))
    assert isinstance(data, str), "an impossible budget"
    assert found == sorted(found, reverse=True)
    assert found[0] == (2, 64)
    assert {pictures for pictures, _ in found} == {1, 2}
    assert len({steps for _, steps in found}) >= 3


def test_a_page_keeps_its_limit(drawable: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_all(drawable.directory, [])
    page = drawable.directory / "report.html"
    whole = page.stat().st_size
    limit = whole - 8_000
    monkeypatch.setattr(_report, "LIMIT_BYTES", limit)
    monkeypatch.setattr(_report, "_SPARE_BYTES", 100_000)
    draw_all(drawable.directory, [])
    assert page.stat().st_size < limit


def test_a_model_without_maps_is_left_out_of_the_explorer(drawable: Results) -> None:
    archive = drawable.directory / "explorer.npz"
    with np.load(archive) as arrays:
        kept = {name: arrays[name] for name in arrays.files if not name.startswith("1.")}
    np.savez_compressed(archive, **kept)
    drawable.manifest.pop("sha256", None)  # as in results of before there were check sums
    blocks = Blocks()
    data: Any = attention_data(drawable, blocks, PLENTY)
    assert [model["label"] for model in data["models"]] == [drawable.models[0], drawable.models[2]]
    assert "maps-1-1" in blocks._blocks
    assert "maps-2-0" not in blocks._blocks


def test_points_are_those_of_the_planes_up_to_one_scale(drawable: Results) -> None:
    blocks = Blocks()
    data: Any = token_data(drawable, blocks)
    for m, label in enumerate(drawable.models):
        arrays, model = drawable.arrays("tokens", label), data["models"][m]
        points = np.frombuffer(unpacked(blocks, model["block"]), "<u2").astype(float)
        last = drawable.model(label)["layers"]
        expected = ["tsne", *(f"{key}{i}" for key in ("all_after",) for i in (last, last - 1))]
        assert [plane["title"] for plane in model["planes"]][:3] == [
            "t-SNE, last layer",
            "PCA after self-attention, all pictures, last layer",
            "PCA after self-attention, all pictures, second-last layer",
        ]
        for name, plane in zip(expected, model["planes"], strict=False):
            count = plane["images"] * plane["tokens"]
            found, points = points[: 2 * count].reshape(-1, 2), points[2 * count :]
            exact = arrays[name].reshape(-1, 2)
            slope = np.ptp(exact, axis=0).max() / 65535
            assert_allclose(found * slope - (found * slope).mean(0), exact - exact.mean(0), atol=slope)
        assert [p["name"] for p in model["pictures"]][:2] == ["cat", "<script>alert(1)</script>"]
        assert model["pictures"][0]["picture"] is not None


def test_before_and_after_share_a_frame() -> None:
    before, after = np.zeros((1, 2, 2)), np.array([[[0.0, 0.0], [4.0, 2.0]]])
    (_, _, first), (_, _, second) = in_frame([("before", 1, before), ("after", 1, after)])
    assert_array_equal(second[0], [[0, 16384], [65535, 49151]])
    assert_array_equal(first[0], [[0, 16384]] * 2)
    (_, _, alone) = in_frame([("before", 1, before)])[0]
    assert len(np.unique(alone)) == 1, "points that coincide"


def test_results_without_pictures_still_show_points(drawable: Results) -> None:
    archive = drawable.directory / "tokens.npz"
    with np.load(archive) as arrays:
        kept = {name: arrays[name] for name in arrays.files if not name.endswith("pixels")}
    np.savez_compressed(archive, **kept)
    drawable.manifest.pop("sha256", None)  # as in results of before there were check sums
    data: Any = token_data(drawable, Blocks())
    assert {picture["picture"] for model in data["models"] for picture in model["pictures"]} == {None}


def test_the_table_is_metrics_csv(drawable: Results) -> None:
    columns, table = table_data(drawable)["columns"], drawable.metrics
    for name in ("model", "analysis", "statistic"):
        assert [columns[name]["names"][code] for code in columns[name]["codes"]] == table[name].tolist()
    for name in ("layer", "head", "images"):
        assert columns[name] == [None if pd.isna(value) else value for value in table[name]]
    for name in ("value", "ci_low", "ci_high"):
        assert_allclose(np.array(columns[name], float), table[name], rtol=1e-5)  # None: not a number


def test_missing_numbers_are_none(drawable: Results) -> None:
    table = drawable.metrics.assign(ci_low=float("nan"), value=float("inf"))
    results = replace(drawable)
    results.__dict__["metrics"] = table
    columns = json.loads(as_json(table_data(results)))["columns"]
    assert set(columns["ci_low"]) == set(columns["value"]) == {None}


@pytest.mark.parametrize("text", ["</script>", "</SCRIPT ", "<!--", "<script", "&lt;", "\u2028", "\N{SNOWMAN}"])
def test_json_cannot_leave_its_element(text: str) -> None:
    written = as_json({text: text})
    assert not set("<>&") & set(written)
    assert written.isascii()
    assert json.loads(written) == {text: text}


def test_the_script_can_stand_in_an_element() -> None:
    assert "</script" not in script().lower()
    assert "<!--" not in script()
    assert "\r" not in script(), "a browser would read it as a line feed, and the policy's hash would not match"
