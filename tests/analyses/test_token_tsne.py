"""t-SNE of tokens: the settings of KAMIM's notebook, repeatable, and near tokens stay near."""

import numpy as np
import pytest
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from kamim_analysis.analyses.token_tsne import token_tsne


def clusters() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    return (draw.normal(size=(90, 8)) + 8 * draw.normal(size=(3, 8))[labels]).astype(np.float32), labels


def test_scikit_learn_s_with_the_notebook_s_settings():
    tokens, _ = clusters()
    expected = TSNE(perplexity=20, max_iter=1000, init="random", random_state=5).fit_transform(tokens)
    np.testing.assert_array_equal(token_tsne(tokens, seed=5), expected)


def test_neighbours_are_of_one_cluster():
    tokens, labels = clusters()
    plane = token_tsne(tokens)
    nearest = NearestNeighbors(n_neighbors=6).fit(plane).kneighbors(return_distance=False)
    assert (labels[nearest] == labels[:, None]).mean() > 0.95


@pytest.mark.parametrize("count", [4, 16, 61])
def test_few_tokens_lower_the_perplexity(count):
    plane = token_tsne(clusters()[0][:count])
    assert plane.shape == (count, 2)
    assert np.isfinite(plane).all()
