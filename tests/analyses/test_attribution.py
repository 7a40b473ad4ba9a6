"""Attribution against closed forms, slow loops, captum's ablation, `knn`'s vote and scikit-learn's logits."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from captum.attr import FeatureAblation
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kamim_analysis.analyses import attribution as module
from kamim_analysis.analyses._analysis import Subject
from kamim_analysis.analyses._decision import Known, NeighbourVote, ProbeDecision, fit_probe, vote_shares
from kamim_analysis.analyses._deletion import (
    Encoding,
    ablation,
    area_under,
    cells_of,
    deletion_curve,
    differentiable,
    insertion_curve,
    order_of,
    sums_by_cell,
)
from kamim_analysis.analyses._suite import Suite
from kamim_analysis.analyses.attribution import (
    Attribution,
    along_line,
    completeness_gap,
    integrated_gradients,
    path_cuts,
)
from kamim_analysis.analyses.knn import knn_correct
from kamim_analysis.encoders import anatomy, pool
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.reconstruction import MEAN, STD

DECISIONS = ("knn", "probe")
OF_EACH = (
    "probability probability_blank completeness_gap ablation_spearman deletion_auc insertion_auc random_auc "
    "deletion_gain insertion_gain keypoint_spearman keypoint_spearman_control"
).split()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(count: int, classes: int = 4, seed: int = 0, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = draw.normal(size=(count, width)) + np.random.default_rng(99).normal(size=(classes, width))[labels]
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def subject_of(encoder, **options) -> Subject:
    given = {"encoder": encoder, "classes": 3} | options
    return Subject(label="tiny", anatomy=anatomy(encoder), mean=MEAN, std=STD, **given)


def batch(start: int, stop: int) -> ImageBatch:
    """Pictures of three classes, each with a patch of its class's colour on noise."""
    made = []
    for i in range(start, stop):
        image = 0.1 * torch.randn(3, 32, 32, generator=seeded(i))
        image[i % 3, 8:16, 16:24] += 3
        made.append(image)
    return ImageBatch(torch.stack(made), torch.arange(start, stop) % 3, torch.arange(start, stop))


def suite_of(encoder, *parts: tuple[int, int], bank: int = 0, **options) -> Suite:
    suite = Suite(encoder, subject_of(encoder, **options), ["attribution"])
    if bank:
        suite.update_bank([batch(100, 100 + bank)])
    for start, stop in parts:
        suite.update(batch(start, stop))
    return suite


@pytest.fixture
def few(monkeypatch) -> None:
    """Three pictures are explained, to save time."""
    monkeypatch.setattr(module, "PICTURES", 3)


# integrated gradients ------------------------------------------------------------------------------------------------


def test_a_linear_score_is_attributed_as_weight_times_difference():
    patches, baseline, weight = (torch.randn(*s, dtype=torch.float64, generator=seeded(i))
                                 for i, s in enumerate([(9, 5), (5,), (9, 5)]))  # fmt: skip
    found = integrated_gradients(lambda x: (x * weight).sum((1, 2)), patches, baseline)
    torch.testing.assert_close(found, (weight * (patches - baseline)).sum(1), atol=1e-6, rtol=1e-6)


def test_a_polynomial_score_has_its_closed_form():
    # of x_a * x_b from zero each factor gets a half
    patches = torch.tensor([[2.0], [3.0], [5.0]], dtype=torch.float64)
    found = integrated_gradients(lambda x: x[:, 0, 0] * x[:, 1, 0] + x[:, 2, 0] ** 3, patches, torch.zeros(1).double())
    torch.testing.assert_close(found, torch.tensor([3.0, 3.0, 125.0]).double(), atol=1e-5, rtol=1e-6)


def test_a_jump_near_the_baseline_is_not_missed():
    """What transformers do: three nats within a hundredth of the line. Equal steps lose most of it."""
    patches, baseline = torch.ones(4, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def score(x):
        return 3 * torch.sigmoid((x.mean((1, 2)) - 0.07) / 0.003)

    found = integrated_gradients(score, patches, baseline)
    assert float(found.sum()) == pytest.approx(3, rel=0.02)
    from captum.attr import IntegratedGradients

    plain = IntegratedGradients(score).attribute(patches[None], torch.zeros_like(patches[None]), n_steps=32)
    assert abs(float(plain.sum()) - 3) > 0.2


def test_cuts_go_from_baseline_to_picture_and_lie_where_the_score_changes():
    seen = along_line(lambda x: torch.sigmoid((x.mean((1, 2)) - 0.3) / 0.01), torch.ones(4, 1), torch.zeros(1))
    assert (float(seen[0]), float(seen[-1])) == pytest.approx((0, 1), abs=1e-6)
    cuts = path_cuts(seen, 10)
    assert (cuts[0], cuts[-1]) == (0, 1)
    assert (cuts.diff() > 0).all()
    assert ((cuts > 0.23) & (cuts < 0.37)).sum() >= 5
    torch.testing.assert_close(path_cuts(torch.zeros(25), 10), torch.linspace(0, 1, 11).square(), atol=0.003, rtol=0)


@pytest.mark.parametrize("make", ["tiny_vit", "tiny_swin"])
def test_attributions_of_a_tiny_model_are_complete(make, request):
    encoder = request.getfixturevalue(make)().double()
    encoding = Encoding(subject_of(encoder))
    direction = torch.randn(anatomy(encoder).width, dtype=torch.float64, generator=seeded(0))
    with differentiable(encoder):
        patches = encoding.embeddings(batch(0, 3).images.double())
        baseline = patches.mean((0, 1))
        cuts = torch.linspace(0, 1, 65).square()
        found = integrated_gradients(lambda x: encoding.features(x) @ direction, patches[0], baseline, cuts)
        ends = encoding.features(torch.stack([patches[0], baseline.expand_as(patches[0])])) @ direction
    gap = completeness_gap(found, ends[0], ends[1])
    assert float(gap) < 1e-4 * float((ends[0] - ends[1]).abs())


def test_attributions_do_not_depend_on_how_many_are_passed_at_once(tiny_vit, monkeypatch):
    encoder = tiny_vit()
    encoding = Encoding(subject_of(encoder))
    found = []
    for tokens in (1, 64, 100_000):
        monkeypatch.setattr(module, "_TOKENS", tokens)
        with differentiable(encoder):
            patches = encoding.embeddings(batch(0, 2).images)
            found.append(integrated_gradients(lambda x: encoding.features(x)[:, 0], patches[0], patches.mean((0, 1))))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


# pictures with patches replaced --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_features_of_embeddings_are_those_of_the_picture(tiny_vit, tiny_swin, pooling):
    for encoder in [tiny_vit(reg_tokens=2), tiny_vit(dynamic_img_size=True), *([tiny_swin()] * (pooling == "mean"))]:
        encoding = Encoding(subject_of(encoder, pooling=pooling))
        images = batch(0, 4).images
        found = encoding.features(encoding.embeddings(images))
        expected = pool(encoder.forward_features(images), anatomy(encoder), pooling)
        torch.testing.assert_close(found, expected)
        assert not any(m._forward_hooks for m in encoder.modules())


def test_hooks_are_removed_and_flags_restored_after_an_error(tiny_vit):
    encoder = tiny_vit().train()
    encoder.norm.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}
    encoding = Encoding(subject_of(encoder))
    with differentiable(encoder):
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        with pytest.raises(RuntimeError):
            encoding.features(torch.zeros(2, 7, 5))
    assert encoder.training
    assert {name: parameter.requires_grad for name, parameter in encoder.named_parameters()} == before
    assert not any(m._forward_hooks for m in encoder.modules())


def test_ablation_is_captums_and_a_slow_loop(tiny_vit):
    encoder = tiny_vit()
    encoding, cells = Encoding(subject_of(encoder)), cells_of((4, 4), 4)
    with differentiable(encoder):
        patches = encoding.embeddings(batch(0, 2).images)
        picture, baseline = patches[0], patches.mean((0, 1))

        def score(x):
            return encoding.features(x)[:, 0]

        found = ablation(score, picture, baseline, cells)
        slow = []
        for cell in range(4):
            changed = picture.clone()
            for patch in range(16):
                if cells[patch] == cell:
                    changed[patch] = baseline
            slow.append(float(score(picture[None]) - score(changed[None])))
        start, mask = baseline.expand_as(picture)[None], cells[None, :, None]
        captums = FeatureAblation(score).attribute(picture[None], start, feature_mask=mask)[0, :, 0]
    np.testing.assert_allclose(found, slow, atol=1e-6)
    torch.testing.assert_close(found[cells], captums.detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("grid", "most", "cells"),
    [((4, 4), 16, 16), ((4, 4), 15, 4), ((16, 16), 64, 64), ((14, 14), 64, 49), ((37, 37), 256, 169), ((1, 5), 2, 2)],
)
def test_cells_tile_the_grid(grid, most, cells):
    found = cells_of(grid, most)
    assert found.shape == (grid[0] * grid[1],)
    assert found.unique().tolist() == list(range(cells))
    sides = [torch.nonzero(found.view(grid) == cell) for cell in range(cells)]
    for places in sides:
        height, width = (places.amax(0) - places.amin(0) + 1).tolist()
        assert height * width == len(places), "a rectangle without gaps"
    values = torch.randn(2, len(found), generator=seeded(0))
    expected = torch.stack([values[:, found == cell].sum(1) for cell in range(cells)], dim=1)
    torch.testing.assert_close(sums_by_cell(values, found), expected)


def test_patches_come_in_order_of_their_cell():
    cells = torch.tensor([0, 0, 1, 1, 2, 2])
    assert order_of(torch.tensor([0.1, 0.9, 0.5]), cells).tolist() == [2, 3, 4, 5, 0, 1]
    values = torch.randn(9, generator=seeded(0))
    assert order_of(values, torch.arange(9)).tolist() == values.argsort(descending=True).tolist()
    assert sorted(order_of(torch.zeros(3), cells).tolist()) == list(range(6))


def test_curves_by_loop_and_their_ends(tiny_vit):
    encoder = tiny_vit()
    encoding, order = Encoding(subject_of(encoder)), torch.randperm(16, generator=seeded(0))
    shares = [0.0, 0.25, 0.5, 1.0]
    with differentiable(encoder), torch.no_grad():
        patches = encoding.embeddings(batch(0, 2).images)
        picture, baseline = patches[0], patches.mean((0, 1))
        deleted = deletion_curve(encoding.features, picture, baseline, order, shares)
        inserted = insertion_curve(encoding.features, picture, baseline, order, shares)
        blank = baseline.expand_as(picture)
        for share, fewer, more in zip(shares, deleted, inserted, strict=True):
            chosen = torch.zeros(16, 1, dtype=torch.bool)
            chosen[order[: round(16 * share)]] = True
            torch.testing.assert_close(fewer, encoding.features(torch.where(chosen, blank, picture)[None])[0])
            torch.testing.assert_close(more, encoding.features(torch.where(chosen, picture, blank)[None])[0])
        ends = encoding.features(torch.stack([picture, blank]))
    torch.testing.assert_close(deleted[[0, -1]], ends)
    torch.testing.assert_close(inserted[[-1, 0]], ends)


def test_the_right_order_falls_fastest_and_rises_fastest():
    weight = torch.rand(12, generator=seeded(0))
    patches, baseline, shares = weight[:, None], torch.zeros(1), [i / 12 for i in range(13)]
    best, worst = weight.argsort(descending=True), weight.argsort()
    for curve, sign in ((deletion_curve, 1), (insertion_curve, -1)):
        areas = [float(area_under(curve(lambda x: x.sum((1, 2)), patches, baseline, order, shares)))
                 for order in (best, torch.arange(12), worst)]  # fmt: skip
        assert areas == sorted(areas, reverse=sign < 0)


def test_the_area_is_numpys():
    curves = torch.rand(3, 9, generator=seeded(0))
    np.testing.assert_allclose(area_under(curves), scipy.integrate.trapezoid(curves, dx=1 / 8), rtol=1e-6)


# decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_vote_is_that_of_knn(k):
    (queries, labels), (bank, bank_labels) = clusters(40, seed=1), clusters(60, seed=2)
    shares = vote_shares(queries, bank, bank_labels, k)
    correct = knn_correct(queries, labels, bank, bank_labels, [k])[k]
    assert torch.equal(shares.argmax(1) == labels, correct)
    torch.testing.assert_close(shares.sum(1), torch.ones(40).double())
    for i in range(40):
        cosines = torch.nn.functional.cosine_similarity(queries[i].double(), bank.double())
        votes = [0.0] * 4
        for j in sorted(range(60), key=lambda j: -cosines[j])[:k]:
            votes[int(bank_labels[j])] += math.exp(float(cosines[j]) / 0.07)
        np.testing.assert_allclose(shares[i], np.array(votes) / sum(votes), rtol=1e-4, atol=1e-7)


def test_log_odds_of_the_vote_are_votes_for_against_all_that_could_oppose():
    (queries, _), (bank, bank_labels) = clusters(20, seed=3), clusters(60, seed=4)
    votes = Known(bank, bank_labels, is_bank=True).neighbour_votes(queries)
    others = torch.randn(7, 6, generator=seeded(0))
    for query, vote in zip(queries, votes, strict=True):
        cosines = torch.nn.functional.cosine_similarity(query.double(), bank.double())
        nearest = cosines.argsort(descending=True)[:20]
        for feature, found in zip(others, vote.log_odds(others), strict=True):
            weights = (torch.nn.functional.cosine_similarity(feature.double(), bank.double()) / 0.07).exp()
            mine = sum(float(weights[j]) for j in nearest if bank_labels[j] == vote.predicted)
            theirs = sum(float(w) for w, label in zip(weights, bank_labels, strict=True) if label != vote.predicted)
            assert float(found) == pytest.approx(math.log(mine / theirs), abs=1e-5)
        # all that could oppose are no fewer than those that do
        share = vote.probability(query[None])
        assert float(vote.log_odds(query[None])) <= float(share.logit()) + 1e-5 or float(share) == 1
        assert vote.predicted == int(vote_shares(query[None], bank, bank_labels, 20).argmax())


def test_unanimous_neighbours_can_be_left():
    bank = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    vote = NeighbourVote(torch.tensor([1.0, 0.1]), bank, torch.tensor([0, 0, 0, 1]), 3)
    feature = torch.tensor([[1.0, 0.1]], requires_grad=True)
    assert float(vote.probability(feature.detach())) == 1
    (gradient,) = torch.autograd.grad(vote.log_odds(feature).sum(), feature)
    assert gradient[0, 0] > 0 > gradient[0, 1]


@pytest.mark.parametrize("classes", [2, 4])
def test_logits_are_scikit_learns(classes):
    (train, labels), (test, _) = clusters(60, classes, seed=5), clusters(30, classes, seed=6)
    probe = fit_probe(train, labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-5, max_iter=10_000))
    model.fit(train.double().numpy(), labels.numpy())
    expected = model.decision_function(test.double().numpy())
    logits = probe.logits(test)
    np.testing.assert_allclose(logits[:, 1] if classes == 2 else logits, expected, atol=1e-6)
    probabilities = model.predict_proba(test.double().numpy())
    for i, feature in enumerate(test):
        decision = ProbeDecision(feature, probe)
        own = probabilities[i].max()
        assert decision.predicted == probabilities[i].argmax()
        assert float(decision.probability(feature[None])) == pytest.approx(own, abs=1e-6)
        assert float(decision.log_odds(feature[None])) == pytest.approx(math.log(own / (1 - own)), abs=1e-5)


def test_classes_keep_their_numbers_where_some_are_missing():
    train, labels = clusters(40, 2)
    decision = ProbeDecision(train[0], fit_probe(train, 3 + 4 * labels))
    assert decision.predicted in (3, 7)


def test_a_picture_never_teaches_the_probe_or_neighbours_that_judge_it():
    features, labels = clusters(23)
    known = Known(features, labels, is_bank=False)
    for i, vote in enumerate(known.neighbour_votes(features[:6])):
        assert not (vote.bank == features[i]).all(1).any()
        assert (len(vote.bank), vote.k) == (22, 20)
    for i, decision in enumerate(known.probe_decisions(features[:6])):
        kept = torch.arange(23) % 5 != i % 5
        expected = fit_probe(features[kept], labels[kept])
        torch.testing.assert_close(decision.probe.weight, expected.weight)
    bank = Known(features, labels, is_bank=True)
    assert len(bank.neighbour_votes(features[:1])[0].bank) == 23
    assert len({id(decision.probe) for decision in bank.probe_decisions(features[:6])}) == 1


def test_one_class_decides_nothing():
    features = clusters(8)[0]
    known = Known(features, torch.zeros(8, dtype=torch.int64), is_bank=False)
    assert known.neighbour_votes(features) == known.probe_decisions(features) == []


# the analysis --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", [0, 24])
@pytest.mark.parametrize("make", ["tiny_vit", "tiny_swin"])
def test_it_leaves_every_number_and_every_array(make, bank, request, few):
    encoder = request.getfixturevalue(make)()
    outcome = suite_of(encoder, (0, 30), bank=bank).outcome()
    rows = {row.statistic: row for row in outcome.rows}
    assert set(rows) == {f"{name}_{statistic}" for name in DECISIONS for statistic in OF_EACH}
    for row in rows.values():
        assert (row.analysis, row.layer, row.images) == ("attribution", None, 3)
        assert np.isfinite(row[4:7]).all()
    arrays, grid = outcome.arrays["attribution"], anatomy(encoder).blocks[0].grid
    for name in DECISIONS:
        assert arrays[f"{name}_maps"].shape == (3, *grid)
        assert arrays[f"{name}_predicted"].shape == (3,)
        for kind, ends in (("deletion", (1, 0)), ("insertion", (0, 1)), ("random", (1, 0))):
            np.testing.assert_allclose(arrays[f"{name}_{kind}"][0, [0, -1]], ends, atol=1e-6)
            area = scipy.integrate.trapezoid(arrays[f"{name}_{kind}"][0], dx=1 / 6)
            assert rows[f"{name}_{kind}_auc"].value == pytest.approx(area, abs=1e-6)
        for kind, sign in (("deletion", -1), ("insertion", 1)):
            gain = sign * (rows[f"{name}_{kind}_auc"].value - rows[f"{name}_random_auc"].value)
            assert rows[f"{name}_{kind}_gain"].value == pytest.approx(gain, abs=1e-6)
    assert arrays["pixels"].shape == (3, 32, 32, 3)
    assert arrays["labels"].tolist() == [0, 1, 2]


def test_numbers_of_a_picture_by_hand(tiny_vit, few):
    encoder = tiny_vit()
    suite = suite_of(encoder, (0, 12))
    maps = suite.outcome().arrays["attribution"]["probe_maps"]
    with differentiable(encoder), torch.no_grad():
        encoding = Encoding(subject_of(encoder))
        patches = encoding.embeddings(batch(0, 3).images)
        features = encoding.features(encoding.embeddings(batch(0, 12).images))
        probe = fit_probe(features[torch.arange(12) % 5 != 0], torch.arange(12)[torch.arange(12) % 5 != 0] % 3)
        decision = ProbeDecision(features[0], probe)
        baseline = patches.mean((0, 1))
        ends = decision.log_odds(encoding.features(torch.stack([patches[0], baseline.expand_as(patches[0])])))
        dropped = ablation(lambda x: decision.log_odds(encoding.features(x)), patches[0], baseline, torch.arange(16))
    assert maps[0].sum() == pytest.approx(float(ends[0] - ends[1]), rel=0.02)
    samples = suite.analyses["attribution"].compute().samples
    expected = spearmanr(maps[0].ravel(), dropped).statistic
    assert samples["attribution", "probe_ablation_spearman", None][0] == pytest.approx(expected, abs=1e-3)


def test_where_features_are_the_mean_patch_the_whole_analysis_has_a_closed_form(tiny_vit, few):
    """Blocks that add nothing: features are the mean patch embedding, and a probe of two classes is linear in it."""
    encoder = tiny_vit(depth=1)
    with torch.no_grad():
        for layer in (encoder.blocks[0].attn.proj, encoder.blocks[0].mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    encoder.norm = torch.nn.Identity()
    pictures = batch(0, 30)
    suite = Suite(encoder, subject_of(encoder, classes=2), ["attribution"])
    suite.update(ImageBatch(pictures.images, pictures.labels % 2, pictures.indices))
    outcome = suite.outcome()
    arrays, samples = outcome.arrays["attribution"], suite.analyses["attribution"].compute().samples
    with torch.no_grad():
        patches = encoder.patch_embed(pictures.images)
        features = (patches + encoder.pos_embed[:, 1:]).mean(1)
        for i in range(3):
            kept = torch.arange(30) % 5 != i
            probe = fit_probe(features[kept], pictures.labels[kept] % 2)
            sign = 2 * int(arrays["probe_predicted"][i]) - 1
            expected = (
                sign * (patches[i] - patches[:3].mean((0, 1))).double() @ (probe.weight[1] - probe.weight[0]) / 16
            )
            np.testing.assert_allclose(
                arrays["probe_maps"][i].ravel(), expected, atol=1e-4 * float(expected.abs().max())
            )
            assert samples["attribution", "probe_ablation_spearman", None][i] == pytest.approx(1, abs=1e-6)
            # the coloured patch
            assert np.abs(arrays["probe_maps"][i]).argmax() == np.abs(arrays["knn_maps"][i]).argmax() == 6
    rows = {row.statistic: row for row in outcome.rows}
    assert abs(rows["probe_completeness_gap"].value) < 1e-4
    for name in DECISIONS:
        assert (
            rows[f"{name}_deletion_auc"].value < rows[f"{name}_random_auc"].value < rows[f"{name}_insertion_auc"].value
        )


def test_batches_do_not_matter(tiny_vit, few):
    encoder = tiny_vit()
    one, other = (suite_of(encoder, *parts).outcome() for parts in ([(0, 12)], [(0, 1), (1, 2), (2, 12)]))
    for a, b in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(a[4:7], b[4:7], rtol=1e-4, atol=1e-5, err_msg=str(a))


def test_it_leaves_the_encoder_as_it_was(tiny_vit, few):
    encoder = tiny_vit().train()
    encoder.norm.bias.requires_grad_(False)
    flags = [(name, parameter.requires_grad) for name, parameter in encoder.named_parameters()]
    before, state = {k: v.clone() for k, v in encoder.state_dict().items()}, torch.get_rng_state()
    suite_of(encoder, (0, 6)).outcome()
    assert encoder.training
    assert [(name, parameter.requires_grad) for name, parameter in encoder.named_parameters()] == flags
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_it_runs_where_the_suite_runs_in_inference_mode(tiny_vit, few):
    encoder = tiny_vit()
    with torch.inference_mode():
        inside = suite_of(encoder, (0, 6)).outcome()
    outside = suite_of(encoder, (0, 6)).outcome()
    for a, b in zip(inside.rows, outside.rows, strict=True):
        np.testing.assert_allclose(a[4:7], b[4:7], rtol=1e-4, atol=1e-5, err_msg=str(a))


def test_one_picture_of_a_bank_has_no_interval(tiny_vit):
    rows = suite_of(tiny_vit(), (0, 1), bank=12).outcome().rows
    assert rows
    assert all(np.isfinite(row.value) and np.isnan(row.ci_low) for row in rows)


def test_what_cannot_be_decided_leaves_nothing(tiny_vit):
    assert suite_of(tiny_vit(), (0, 1), classes=None).outcome().rows == []
    assert "single class" in str(Attribution.unavailable(subject_of(tiny_vit(), classes=1)))
    assert "no encoder" in str(Attribution.unavailable(subject_of(tiny_vit()).__class__(
        label="x", anatomy=anatomy(tiny_vit()), mean=MEAN, std=STD)))  # fmt: skip
