"""Geometry of features against loops over pairs, decompositions without each image, ANOVA tables and known ranks."""

import math

import numpy as np
import pytest
import torch

from kamim_analysis.analyses._analysis import Batch, Subject
from kamim_analysis.analyses._suite import Suite
from kamim_analysis.analyses.geometry import (
    SPECTRA,
    Geometry,
    closeness_to_others,
    cosine_to_others,
    normalised_spectrum,
    of_pairs,
    rankme,
    rankme_parts,
    ranks_shown,
    ratio_parts,
    variance_parts,
)
from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.encoders import anatomy
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.reconstruction import MEAN, STD
from kamim_analysis.recorder import record


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rankme_of(vectors: np.ndarray, epsilon: float = 0.0) -> float:
    """As Garrido et al. write it, from numpy's singular values."""
    values = np.linalg.svd(vectors, compute_uv=False)
    p = values / values.sum() + epsilon
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def subject_of(encoder, **options) -> Subject:
    return Subject(label="tiny", anatomy=anatomy(encoder), mean=MEAN, std=STD, encoder=encoder, **options)


def pictures(count: int, classes: int = 3) -> ImageBatch:
    images = draw(count, 3, 32, 32).float() + torch.eye(3)[torch.arange(count) % 3][:, :, None, None]
    return ImageBatch(images, torch.arange(count) % classes, torch.arange(count))


def values_of(encoder, batch: ImageBatch, **options) -> dict[tuple[str, int | None], float]:
    suite = Suite(encoder, subject_of(encoder, **options), ["geometry"])
    suite.update(batch)
    return {(row.statistic, row.layer): row.value for row in suite.outcome().rows}


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (12, 12), (3, 7, 5)])
def test_spectrum_is_numpy_s_singular_values_over_their_sum(shape):
    vectors = draw(*shape).float() + 1
    values = np.linalg.svd(vectors.double().numpy(), compute_uv=False)
    expected = values / values.sum(-1, keepdims=True)
    np.testing.assert_allclose(normalised_spectrum(vectors).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 32), (50, 16)])
def test_rankme_is_the_paper_s_to_the_paper_s_epsilon(shape):
    vectors = draw(*shape)
    found = float(rankme(normalised_spectrum(vectors)))
    assert found == pytest.approx(rankme_of(vectors.numpy()), rel=1e-5)
    assert found == pytest.approx(rankme_of(vectors.numpy(), epsilon=1e-7), rel=1e-4)
    assert 1 <= found <= min(shape)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rankme_of_directions_used_alike_is_their_number(rank):
    basis, _ = torch.linalg.qr(draw(20, rank))
    assert float(rankme(normalised_spectrum(basis @ basis.T))) == pytest.approx(rank, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_collapsed_tokens_have_rank_one_in_any_precision(dtype):
    tokens = draw(1, 1, 48).expand(1, 64, 48).to(dtype)
    assert float(rankme(normalised_spectrum(tokens))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("images", "channels"), [(9, 20), (20, 9), (12, 12), (3, 2)])
def test_parts_of_rankme_are_what_leaving_each_image_out_changes(images, channels):
    features = draw(images, channels) / torch.arange(1, channels + 1) + 0.5
    without = np.array([rankme_of(np.delete(features.numpy(), i, 0)) for i in range(images)])
    whole = rankme_of(features.numpy())
    found = rankme_parts(features).numpy()
    np.testing.assert_allclose(found, whole + (images - 1) * (without.mean() - without), atol=2e-4)
    assert found.mean() == pytest.approx(whole, abs=1e-5)


def test_parts_of_rankme_where_images_are_equal_or_channels_dead_or_all_collapsed():
    features = draw(12, 6) * torch.tensor([1.0, 1, 1, 1, 0, 0])
    features[3] = features[4]
    without = np.array([rankme_of(np.delete(features.numpy(), i, 0)) for i in range(12)])
    found = rankme_parts(features).numpy()
    np.testing.assert_allclose(found, rankme_of(features.numpy()) + 11 * (without.mean() - without), atol=1e-3)
    np.testing.assert_allclose(rankme_parts(torch.ones(8, 5)), 1, atol=1e-4)


@pytest.mark.parametrize(("images", "channels", "offset"), [(64, 24, 0.0), (32, 96, 0.0), (32, 96, 1.0)])
def test_interval_of_rankme_is_as_wide_as_sets_of_images_scatter(images, channels, offset):
    scale = torch.arange(1, channels + 1) ** -0.6
    parts = [rankme_parts(draw(images, channels, seed=i) * scale + offset) for i in range(100)]
    errors = [float(part.std()) / math.sqrt(images) for part in parts]
    assert np.mean(errors) == pytest.approx(np.std([float(part.mean()) for part in parts]), rel=0.3)


def test_cosine_to_others_is_a_mean_over_a_loop():
    features = draw(9, 5) + 0.3
    unit = features / features.norm(dim=1, keepdim=True)
    expected = [np.mean([float(unit[i] @ unit[j]) for j in range(9) if j != i]) for i in range(9)]
    np.testing.assert_allclose(cosine_to_others(features), expected, atol=1e-12)
    np.testing.assert_allclose(cosine_to_others(1000 * features.float()), expected, atol=1e-6)


def test_closeness_is_wang_and_isola_s_over_a_loop_and_by_rows(monkeypatch):
    features = draw(9, 5)
    unit = features / features.norm(dim=1, keepdim=True)
    squared = torch.pdist(unit).square()
    expected = (-2 * squared).exp().mean().log()  # their own two lines
    np.testing.assert_allclose(closeness_to_others(features).mean().log(), expected)
    monkeypatch.setattr("kamim_analysis.analyses.geometry._ROWS", 4)
    np.testing.assert_allclose(closeness_to_others(features).mean().log(), expected)
    np.testing.assert_allclose(closeness_to_others(torch.ones(5, 3)), 1)


def test_uniformity_of_points_all_over_a_wide_sphere_is_near_minus_four():
    assert -4 < float(closeness_to_others(draw(400, 2000)).mean().log()) < -3.9


def test_parts_of_a_mean_over_pairs_are_pseudo_values_and_scatter_like_it():
    features = draw(10, 4) + 0.5
    unit = features / features.norm(dim=1, keepdim=True)
    cosine = (unit @ unit.T).numpy()

    def mean_over_pairs(matrix: np.ndarray) -> float:
        return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())

    without = [mean_over_pairs(np.delete(np.delete(cosine, i, 0), i, 1)) for i in range(10)]
    found = of_pairs(cosine_to_others(features)).numpy()
    np.testing.assert_allclose(found, 10 * mean_over_pairs(cosine) - 9 * np.array(without), atol=1e-12)
    parts = [of_pairs(cosine_to_others(draw(30, 6, seed=i) + 0.5)).numpy() for i in range(300)]
    scatter = np.std([part.mean() for part in parts])
    assert np.mean([part.std() for part in parts]) / math.sqrt(30) == pytest.approx(scatter, rel=0.15)


def test_a_ratio_is_the_mean_of_its_parts_and_scatters_like_them():
    a, b = draw(300, 40).exp(), draw(300, 40, seed=1).exp() + 2
    parts = [ratio_parts(x, y + x) for x, y in zip(a, b, strict=True)]
    ratios = [float(x.mean() / (y + x).mean()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose([float(part.mean()) for part in parts], ratios)
    assert np.mean([float(part.std()) for part in parts]) / math.sqrt(40) == pytest.approx(np.std(ratios), rel=0.15)


def test_variance_within_and_between_classes_is_the_anova_table_s():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    means, within = draw(9, 4) + draw(3, 4, seed=1)[labels], draw(9).square()
    groups = [means[labels == label].numpy() for label in range(3)]
    inside = sum(np.square(group - group.mean(0)).sum() for group in groups)
    outside = sum(len(group) * np.square(group.mean(0) - means.mean(0).numpy()).sum() for group in groups)
    mean_square = inside / (9 - 3)
    parts = {name: float(part.mean()) for name, part in variance_parts(means, within, labels).items()}
    assert parts["within_images"] == pytest.approx(float(within.mean()))
    assert parts["within_classes"] == pytest.approx(mean_square)
    assert parts["between_classes"] == pytest.approx((outside - (3 - 1) * mean_square) / 9)


def test_components_of_variance_are_those_the_data_were_made_with():
    labels = torch.arange(3000) % 6
    centres = draw(6, 20, seed=5)
    means = centres[labels] + 0.5 * draw(3000, 20)
    parts = {name: float(part.mean()) for name, part in variance_parts(means, torch.ones(3000), labels).items()}
    assert parts["within_classes"] == pytest.approx(0.25 * 20, rel=0.03)
    between = float((centres - centres.mean(0)).square().sum(1).mean())
    assert parts["between_classes"] == pytest.approx(between, rel=0.03)


def test_random_classes_of_few_images_explain_nothing():
    shares = []
    for seed in range(60):
        labels = torch.randint(0, 10, (32,), generator=torch.Generator().manual_seed(seed))
        parts = variance_parts(draw(32, 16, seed=seed), torch.zeros(32), labels)
        both = parts["between_classes"] + parts["within_classes"]
        shares.append(float(parts["between_classes"].mean() / both.mean()))
    # sums of squares would give 9 / 31
    assert abs(np.mean(shares)) < 0.02


@pytest.mark.parametrize("labels", [None, torch.zeros(7).long(), torch.arange(7)], ids=["none", "one", "each"])
def test_without_classes_to_tell_apart_images_are_not_divided(labels):
    means = draw(7, 3)
    parts = variance_parts(means, torch.ones(7), labels)
    assert list(parts) == ["within_images", "between_images"]
    assert float(parts["between_images"].mean()) == pytest.approx(float(means.var(0).sum()))


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {}, {"reg_tokens": 4}])
@torch.no_grad()
def test_rows_are_those_of_the_patch_tokens_whatever_the_prefix(tiny_vit, options):
    encoder, batch = tiny_vit(**options), pictures(12)
    values = values_of(encoder, batch, pooling="mean")
    with record(encoder, attention=()) as recording:
        final = encoder.forward_features(batch.images)
    prefix = anatomy(encoder).blocks[0].prefix_tokens
    for layer, recorded in recording.tokens.items():
        tokens = recorded[:, prefix:].double()
        means = tokens.mean(1)
        off_diagonal = ~torch.eye(16, dtype=torch.bool)
        cosines = [torch.nn.functional.cosine_similarity(t[:, None], t, dim=-1)[off_diagonal].mean() for t in tokens]
        assert values["token_cosine", layer] == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
        assert values["token_rankme", layer] == pytest.approx(np.mean([rankme_of(t.numpy()) for t in tokens]), rel=1e-4)
        assert values["image_rankme", layer] == pytest.approx(rankme_of(means.numpy()), rel=1e-4)
        whole = (tokens - means[:, None]).square().sum(-1).mean()
        parts = variance_parts(means, (tokens - means[:, None]).square().sum(-1).mean(1), batch.labels)
        total = float(sum(part.mean() for part in parts.values()))
        assert values["share_within_images", layer] == pytest.approx(float(whole) / total, rel=1e-4)
    pooled = final[:, prefix:].mean(1).double()
    assert values["image_rankme_final", 3] == pytest.approx(rankme_of(pooled.numpy()), rel=1e-4)
    assert values["image_cosine_final", 3] == pytest.approx(float(cosine_to_others(pooled).mean()), abs=1e-5)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_numbers_keep_to_their_ranges_and_shares_make_one(tiny_vit, tiny_swin, family):
    encoder = {"vit": tiny_vit, "swin": tiny_swin}[family]()
    values = values_of(encoder, pictures(12))
    last = len(anatomy(encoder).blocks)
    for layer in range(last + 1):
        shares = [values[f"share_{name}", layer] for name in ("within_images", "within_classes", "between_classes")]
        assert sum(shares) == pytest.approx(1)
        assert shares[2] / (shares[1] + shares[2]) == pytest.approx(values["class_share_of_images", layer])
        assert -1 <= values["token_cosine", layer] <= 1
        assert 1 <= values["image_rankme", layer] <= 12
        assert 1 <= values["token_rankme", layer] <= 64
        assert -4 <= values["uniformity", layer] <= 0
    assert {layer for name, layer in values if name.endswith("_final")} == {last}


def test_a_single_class_leaves_two_shares(tiny_vit):
    values = values_of(tiny_vit(), pictures(6, classes=1))
    assert {name for name, _ in values if name.startswith(("share", "class"))} == {
        "share_within_images",
        "share_between_images",
    }
    assert values["share_within_images", 2] + values["share_between_images", 2] == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_leave_the_numbers_of_tokens(tiny_vit, count):
    assert {name for name, _ in values_of(tiny_vit(), pictures(count))} == {"token_cosine", "token_rankme"}


def test_spectra_are_those_of_the_first_pictures_and_of_all_image_features(tiny_vit, monkeypatch):
    monkeypatch.setattr("kamim_analysis.analyses.geometry.SPECTRA", 5)
    encoder, batch = tiny_vit(), pictures(12)
    suite = Suite(encoder, subject_of(encoder), ["geometry"])
    for start, stop in [(0, 3), (3, 9), (9, 12)]:
        suite.update(ImageBatch(batch.images[start:stop], batch.labels[start:stop], batch.indices[start:stop]))
    outcome = suite.outcome()
    images = {row.statistic: row.images for row in outcome.rows}
    assert (images["token_rankme"], images["token_cosine"], images["image_rankme"]) == (5, 12, 12)
    with record(encoder, attention=(), tokens=[2]) as recording, torch.no_grad():
        encoder.forward_features(batch.images)
    tokens = recording.tokens[2][:, 1:]
    spectra = normalised_spectrum(tokens[:5]).double().numpy()
    rank, *found = outcome.arrays["geometry"]["token_spectrum2"]
    np.testing.assert_array_equal(rank, ranks_shown(16))
    np.testing.assert_allclose(found, mean_interval(spectra[:, rank.astype(int) - 1]), atol=1e-5)
    rank, value = outcome.arrays["geometry"]["image_spectrum2"]
    expected = normalised_spectrum(tokens.mean(1)).numpy()
    np.testing.assert_allclose(value, expected[rank.astype(int) - 1], atol=1e-5)
    assert len(expected) == rank[-1] == 12


def test_a_spectrum_is_kept_at_few_ranks_the_first_and_the_last_among_them():
    assert SPECTRA == 64
    assert ranks_shown(1).tolist() == [1]
    assert ranks_shown(256)[-1] == 256
    assert len(ranks_shown(4096)) <= 24


def test_tokens_in_half_precision_are_measured_in_full(tiny_vit):
    encoder = tiny_vit()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        analysis = Geometry(subject_of(encoder))
        tokens = (draw(8, 17, 32) + 3).to(torch.bfloat16).to(dtype)
        for layer in range(4):
            analysis.observe("tokens", layer, tokens)
        batch = pictures(8)
        analysis.update(Batch(images=batch.images, labels=batch.labels, indices=batch.indices,
                              features=tokens.mean(1)))  # fmt: skip
        found.append([row.value for row in analysis.compute().rows if not row.statistic.endswith("_final")])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_trained_difference_of_classes_shows(tiny_vit):
    """Pictures of classes that differ in colour, against the same pictures with classes drawn by lot."""
    encoder, batch = tiny_vit(), pictures(30)
    lot = batch.labels[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    true, drawn = (
        values_of(encoder, ImageBatch(batch.images, labels, batch.indices)) for labels in (batch.labels, lot)
    )
    assert true["class_share_of_images", 3] > 0.5
    assert abs(drawn["class_share_of_images", 3]) < 0.15
    assert true["share_within_images", 3] == pytest.approx(drawn["share_within_images", 3], rel=0.1)
