"""Few-shot k-NN against a loop that draws, votes and counts one picture at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from kamim_analysis.analyses.evaluation.few_shot import check_labels, few_shot_correct, few_shot_rows, fitting_ks, shots
from kamim_analysis.analyses.knn import knn_correct
from kamim_analysis.bootstrap import crossed_interval
from kamim_analysis.errors import UserError


def clusters(count: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    features = draw.normal(size=(count, 6)) + 0.8 * np.random.default_rng(99).normal(size=(classes, 6))[labels]
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def elected(query: list[float], bank: list[list[float]], bank_labels: list[int], k: int) -> int:
    """The class of most votes, in plain floats."""
    near = sorted(
        ((sum(a * b for a, b in zip(query, o, strict=True)) / math.hypot(*query) / math.hypot(*o), i)
         for i, o in enumerate(bank)), reverse=True,
    )[:k]  # fmt: skip
    votes: dict[int, float] = {}
    for cosine, i in near:
        votes[bank_labels[i]] = votes.get(bank_labels[i], 0.0) + math.exp(cosine / 0.07)
    return max(sorted(votes), key=lambda label: votes[label])


def test_a_draw_has_so_many_of_each_class_and_a_smaller_one_is_within_it():
    labels = torch.tensor([5, 0, 5, 0, 2, 2, 5, 2, 0])
    drawn = shots(labels, 3, seed=1)
    for row, label in zip(drawn.tolist(), (0, 2, 5), strict=True):
        assert sorted(row) == (labels == label).nonzero()[:, 0].tolist()
    assert torch.equal(shots(labels, 2, seed=1), drawn[:, :2])


def test_every_picture_of_a_class_is_drawn_about_as_often():
    labels = torch.arange(40) // 10
    firsts = torch.stack([shots(labels, 3, seed)[:, 0] for seed in range(1200)])
    counts = torch.bincount(firsts.flatten(), minlength=40)
    # binomial with mean 120 and deviation 10.4
    assert counts.min() > 75
    assert counts.max() < 165


def test_two_splits_by_loop():
    (queries, labels), (bank, bank_labels) = clusters(30, seed=1), clusters(60, seed=2)
    drawn = shots(bank_labels, 5, seed=3)
    right = few_shot_correct(queries, labels, (bank, bank_labels), drawn, [1, 7])
    chosen = drawn.flatten().tolist()
    for i, query in enumerate(queries.tolist()):
        for column, k in enumerate((1, 7)):
            winner = elected(query, bank[chosen].tolist(), bank_labels[chosen].tolist(), k)
            assert right[i, column] == (winner == labels[i])
    assert 0 < right.mean() < 1


def test_of_a_single_split_the_drawn_are_learned_from_and_the_others_judged():
    features, labels = clusters(40, seed=4)
    drawn = shots(labels, 3, seed=0)
    right = few_shot_correct(features, labels, None, drawn, [1, 5])
    chosen = drawn.flatten().tolist()
    assert np.isnan(right[chosen]).all()
    for i in set(range(40)) - set(chosen):
        winner = elected(features[i].tolist(), features[chosen].tolist(), labels[chosen].tolist(), 5)
        assert right[i, 1] == (winner == labels[i])


def test_of_one_picture_a_class_every_k_elects_the_nearest():
    (queries, labels), bank = clusters(80, seed=1), clusters(60, seed=2)
    right = few_shot_correct(queries, labels, bank, shots(bank[1], 1, seed=0), [1, 2, 4])
    assert (right == right[:, :1]).all()
    assert 0 < right.mean() < 1


def test_all_pictures_of_each_class_are_k_nn_of_the_whole():
    (queries, labels), (bank, bank_labels) = clusters(50, seed=1), clusters(60, seed=2)
    whole = bank_labels.sort(stable=True).values.unique_consecutive(return_counts=True)[1].min()
    keep = shots(bank_labels, int(whole), seed=0).flatten()
    right = few_shot_correct(queries, labels, (bank, bank_labels), keep.view(4, -1), [10])
    expected = knn_correct(queries, labels, bank[keep], bank_labels[keep], [10])[10]
    np.testing.assert_array_equal(right[:, 0], expected.numpy())


def test_rows_are_mean_crossed_interval_and_deviation_over_seeds():
    right = (np.random.default_rng(0).random((4, 30, 2)) < 0.6).astype(float)
    right[0, 3] = right[:, 5] = np.nan
    rows, samples = few_shot_rows(right, ["v5_k1", "v5_k20"], 8, "told")
    of_name = {row.statistic: row for row in rows}
    assert list(of_name) == ["top1_v5_k1", "seed_deviation_v5_k1", "top1_v5_k20", "seed_deviation_v5_k20"]
    assert {(row.analysis, row.layer, row.images, row.protocol) for row in rows} == {("few_shot", 8, 29, "told")}
    mean, low, high = crossed_interval(right[..., 1])
    np.testing.assert_allclose(of_name["top1_v5_k20"][4:7], [mean, low, high])
    assert of_name["top1_v5_k20"].value == pytest.approx(np.nanmean(right[..., 1]))
    by_seed = [np.nanmean(one) for one in right[..., 1]]
    assert of_name["seed_deviation_v5_k20"].value == pytest.approx(np.std(by_seed, ddof=1))
    # each judged picture's share of seeds, the picture that was always drawn left out
    assert len(samples["top1_v5_k1"]) == 29
    assert samples["top1_v5_k1"][3] == pytest.approx(right[1:, 3, 0].mean())


def test_a_single_seed_has_no_deviation_and_wilsons_interval_of_the_judged():
    right = np.array([1.0, 1.0, np.nan, 0.0, 1.0, np.nan])[None, :, None]
    rows, _ = few_shot_rows(right, ["v1_k1"], 1, "")
    assert np.isnan(rows[1].value)
    expected = binomtest(3, 4).proportion_ci(method="wilson")
    assert rows[0][4:8] == pytest.approx((0.75, expected.low, expected.high, 4))


@pytest.mark.parametrize(
    ("shots_of_class", "ks", "left", "message"),
    [
        ([1, 5], [], False, "class 'owl' has 3 pictures, fewer than the v = 5 of --few_shot; choose smaller numbers"),
        ([3], [], True, "class 'owl' has 3 pictures: v = 3 of --few_shot would leave none to be judged"),
        ([1, 3], [3], False, "k = 3 exceeds the 2 images that can be neighbours"),
    ],
)
def test_what_the_data_do_not_allow_is_refused(shots_of_class, ks, left, message):
    labels = torch.tensor([0] * 6 + [1] * 3)
    with pytest.raises(UserError) as refused:
        check_labels(labels, ("cat", "owl"), shots_of_class, ks, left=left)
    assert message in str(refused.value)
    check_labels(labels, ("cat", "owl"), [2], [4], left=True)


def test_usual_ks_are_those_that_fit():
    assert fitting_ks((), 20) == [1, 10, 20]
    assert fitting_ks((5, 2), 20) == [2, 5]
