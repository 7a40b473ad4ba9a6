"""The figure of poolings: marks are the table's numbers, in the units of their panels."""

import numpy as np
from numpy.testing import assert_allclose

from kamim_analysis.figures import aggregation
from kamim_analysis.results import Results


def test_marks_are_the_table_of_the_deepest_layer(drawable: Results) -> None:
    figure = aggregation.draw(drawable)
    assert figure is not None
    accuracy, gain, entropy = figure.axes
    table = drawable.select("aggregation")
    rows = [label.get_text() for label in accuracy.get_yticklabels()]
    assert rows == ["mean", "cls token", "attention of cls", "central patches", "AbMILP", "attentive"]
    names = ["mean", "cls", "cls_attention", "central", "abmilp", "attentive"]
    for axes, prefix, unit in ((accuracy, "top1", 100), (gain, "gain_over_mean", 100), (entropy, "entropy", 1)):
        assert len(axes.containers) == 3
        for marks, model in zip(axes.containers, drawable.models, strict=True):
            of_model = table[(table.model == model) & (table.layer == table[table.model == model].layer.max())]
            values = of_model.set_index("statistic")
            x, y = (np.asarray(part) for part in marks.lines[0].get_data())
            drawn = {names[round(float(place))]: at for at, place in zip(x, y, strict=True)}
            expected = {n: unit * values.value[f"{prefix}_{n}"] for n in names if f"{prefix}_{n}" in values.index}
            assert drawn.keys() == expected.keys()
            assert_allclose([drawn[n] for n in expected], list(expected.values()))
            (bars,) = marks.lines[2]
            ends = {names[round(float(s[0, 1]))]: s[:, 0] for s in bars.get_segments()}
            for name, (low, high) in ends.items():
                row = values.loc[f"{prefix}_{name}"]
                assert_allclose([low, high], [unit * row.ci_low, unit * row.ci_high])


def test_caption_tells_layers_and_seeds(drawable: Results) -> None:
    text = aggregation.caption(drawable)
    assert text.startswith("Tokens of layer 4 of SimMIM, 4 of untrained (random), 3 of <b>wide</b>")
    assert "3 seeds. The cls token weights no patches itself" in text
