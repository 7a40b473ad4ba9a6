"""Similarity of layers against CKA of recorded features, and neighbours against a sorted matrix of cosines."""

import numpy as np
import pytest
import torch

from kamim_analysis.analyses._analysis import Findings, Subject
from kamim_analysis.analyses._suite import Suite
from kamim_analysis.analyses.similarity import nearest
from kamim_analysis.cka import cka_of_grams, linear_cka
from kamim_analysis.encoders import anatomy
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.reconstruction import MEAN, STD
from kamim_analysis.recorder import record


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int) -> ImageBatch:
    images = draw(count, 3, 32, 32) + torch.eye(3)[torch.arange(count) % 3][:, :, None, None]
    return ImageBatch(images, torch.arange(count) % 3, torch.arange(count))


def findings_of(encoder, batch: ImageBatch) -> Findings:
    subject = Subject(label="tiny", anatomy=anatomy(encoder), mean=MEAN, std=STD)
    suite = Suite(encoder, subject, ["similarity"])
    for images, labels, indices in zip(*(part.split(30) for part in vars(batch).values()), strict=True):
        suite.update(ImageBatch(images, labels, indices))
    (analysis,) = suite.analyses.values()
    return analysis.compute()


@torch.no_grad()
def features_of(encoder, batch: ImageBatch) -> list[np.ndarray]:
    with record(encoder, attention=()) as recording:
        encoder.forward_features(batch.images)
    blocks = anatomy(encoder).blocks
    return [
        tokens[:, blocks[max(layer - 1, 0)].prefix_tokens :].mean(1).numpy()
        for layer, tokens in sorted(recording.tokens.items())
    ]


@pytest.mark.parametrize("rows", [128, 7])
def test_nearest_are_the_largest_cosines_but_the_image_s_own(rows, monkeypatch):
    monkeypatch.setattr("kamim_analysis.analyses.similarity._ROWS", rows)
    features = draw(40, 6) + 1
    cosine = torch.nn.functional.cosine_similarity(features[:, None], features, dim=-1)
    cosine.fill_diagonal_(-2)
    expected = cosine.argsort(1, descending=True)[:, :5].sort(1).values
    found = nearest(features, 5)
    assert torch.equal(found, expected.int())
    assert torch.equal(nearest(100 * features, 5), found)


def test_the_copy_of_an_image_is_its_neighbour_and_itself_is_not():
    features = draw(10, 4)
    features[7] = features[2]
    found = nearest(features, 3)
    assert 7 in found[2]
    assert 2 in found[7]
    assert not (found == torch.arange(10)[:, None]).any()


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("images", [20, 70])
def test_maps_are_the_cka_of_recorded_features(tiny_vit, tiny_swin, family, images):
    encoder, batch = {"vit": tiny_vit, "swin": tiny_swin}[family](), pictures(images)
    findings, features = findings_of(encoder, batch), features_of(encoder, batch)
    expected = [[linear_cka(one, other) for other in features] for one in features]
    arrays = findings.arrays
    np.testing.assert_allclose(arrays["cka"], expected, atol=1e-4)
    np.testing.assert_allclose(np.diag(arrays["cka"]), 1, atol=1e-6)
    assert (arrays["cka_low"] <= arrays["cka"] + 1e-9).all()
    assert (arrays["cka"] <= arrays["cka_high"] + 1e-9).all()
    rows = {(row.statistic, row.layer): row for row in findings.rows}
    last = len(features) - 1
    assert sorted(layer for name, layer in rows if name == "cka_with_last") == list(range(last))
    for layer in range(last):
        row = rows["cka_with_last", layer]
        assert row.value == pytest.approx(expected[layer][last], abs=1e-4)
        assert row.ci_low == pytest.approx(arrays["cka_low"][layer, last], abs=1e-6)
        assert row.images == images


def test_grams_of_two_models_are_enough_to_compare_them(tiny_vit, tiny_swin):
    batch, encoders = pictures(70), (tiny_vit(), tiny_swin())
    one, other = (findings_of(encoder, batch).arrays for encoder in encoders)
    found = cka_of_grams(one["grams"], other["grams"], int(one["gram_images"]))
    features = [features_of(encoder, batch) for encoder in encoders]
    np.testing.assert_allclose(found, [[linear_cka(a, b) for b in features[1]] for a in features[0]], atol=1e-4)
    assert one["grams"].shape == (4, 2, 35, 35)
    assert one["grams"].dtype == np.float32


def test_shared_neighbours_of_recorded_features(tiny_vit):
    encoder, batch = tiny_vit(), pictures(40)
    findings, features = findings_of(encoder, batch), features_of(encoder, batch)
    sets = [nearest(torch.from_numpy(layer), 10).numpy() for layer in features]
    np.testing.assert_array_equal(findings.arrays["neighbours"], sets)
    assert findings.arrays["neighbours"].dtype == np.int32
    rows = {row.layer: row.value for row in findings.rows if row.statistic == "mutual_knn_with_last"}
    for layer in range(3):
        shared = [len({*a} & {*b}) / 10 for a, b in zip(sets[layer].tolist(), sets[3].tolist(), strict=True)]
        assert rows[layer] == pytest.approx(np.mean(shared))


@pytest.mark.parametrize(("images", "left"), [(4, set()), (5, {"grams", "gram_images", "cka", "cka_low", "cka_high"})])
def test_few_images_leave_what_can_be_said_of_them(tiny_vit, images, left):
    findings = findings_of(tiny_vit(), pictures(images))
    assert set(findings.arrays) == left
    assert {row.statistic for row in findings.rows} == ({"cka_with_last"} if left else set())
    assert np.isfinite([row.ci_low for row in findings.rows]).all()


def test_pictures_without_a_difference_have_no_similarity(tiny_vit):
    same = draw(1, 3, 32, 32).expand(20, -1, -1, -1)
    findings = findings_of(tiny_vit(), ImageBatch(same, torch.zeros(20).long(), torch.arange(20)))
    assert np.isnan(findings.arrays["cka"]).all()
    assert all(np.isnan(row.value) for row in findings.rows if row.statistic == "cka_with_last")
