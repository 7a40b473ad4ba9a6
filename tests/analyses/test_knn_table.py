"""What `kamim knn` prints, on rows made by hand."""

from kamim_analysis.analyses.evaluation.knn_table import knn_table
from kamim_analysis.results import Row


def row(layer: int, statistic: str, value: float, pooling: str = "mean") -> Row:
    analysis = "few_shot" if "_v" in statistic else "knn"
    told = f"evaluation={analysis}; pooling={pooling}; seeds=5"
    return Row(analysis, layer, None, statistic, value, value - 0.1, value + 0.05, 64, told)


def test_one_layer_has_a_line_for_each_k():
    table = knn_table({"a": [row(12, "top1_k1", 0.5), row(12, "top1_k20", 0.25)], "b": [row(8, "top1_k1", 0.75)]})
    assert table.splitlines() == [
        "model                            layer  pooling          k  top-1 [95% interval]",
        "a                                   12  mean             1  0.5000 [0.4000, 0.5500]",
        "a                                   12  mean            20  0.2500 [0.1500, 0.3000]",
        "b                                    8  mean             1  0.7500 [0.6500, 0.8000]",
    ]


def test_several_layers_mark_each_model_s_highest_at_k_20_and_say_what_that_is_worth():
    a = [row(0, "top1_k1", 0.9), row(0, "top1_k20", 0.3), row(3, "top1_k1", 0.2), row(3, "top1_k20", 0.4)]
    a += [row(3, "top1_k1_cls", 0.2, "cls"), row(3, "top1_k20_cls", 0.35, "cls")]
    lines = knn_table({"a": a, "b": [row(0, "top1_k1", 0.1), row(0, "top1_k20", 0.2)]}).splitlines()
    assert lines[0] == "top-1 [95% interval] by number of neighbours"
    assert lines[1].split() == ["layer", "pooling", "k", "=", "1", "k", "=", "20"]
    assert [line[0] for line in lines] == list("t a * b**"), "both models', and the note"
    assert lines[4] == "*    3 mean           0.200 [0.100, 0.250]  0.400 [0.300, 0.450]"
    assert lines[-1] == "* highest at k = 20 on the very pictures it is measured on: not to be reported as the model's"


def test_few_shot_shows_k_20_or_the_nearest_below_that_fits():
    few = [row(12, f"top1_{name}", value) for name, value in
           {"v1_k1": 0.1, "v1_k10": 0.15, "v5_k10": 0.2, "v5_k20": 0.3, "v5_k100": 0.4}.items()]  # fmt: skip
    table = knn_table({"a": [row(12, "top1_k1", 0.5), *few, row(12, "seed_deviation_v5_k20", 0.01)]})
    assert table.split("\n\n")[1].splitlines() == [
        "few-shot top-1 [95% interval over pictures and 5 draws] from v pictures of each class",
        " layer pooling        v = 1, k = 10         v = 5, k = 20",
        "a",
        "    12 mean           0.150 [0.050, 0.200]  0.300 [0.200, 0.350]",
    ]
