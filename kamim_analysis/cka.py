"""Linear centred kernel alignment of features, unbiased (Nguyen et al., arXiv 2010.15327); numpy only, for figures too.

Images are compared within groups of about 64. Each layer leaves one small matrix for each group, enough to compare it
afterwards with any layer of any model that saw the same images, without the features.
"""

import numpy as np
from jaxtyping import Float

#: most images of a group: 64 x 64 numbers are kept for each group and layer
GROUP = 64
#: least images for the number, and for each image's part in it
LEAST, LEAST_BY_IMAGE = 4, 5
# features of float32 that differ less than this share of their size differ by rounding
_ROUNDING = 1e-6


def group_sizes(images: int) -> list[int]:
    """Images in each group: as few groups as hold at most 64, of sizes that differ by one at most.

    Image i is in group i modulo their number, so that data ordered by class give groups of all classes.

    >>> group_sizes(150), group_sizes(20)
    ([50, 50, 50], [20])
    """
    groups = max(-(-images // GROUP), 1)
    return [len(range(group, images, groups)) for group in range(groups)]


def u_centred(gram: Float[np.ndarray, "*g n n"]) -> Float[np.ndarray, "*g n n"]:
    """A symmetric Gram matrix with its diagonal zero and its rows, without the diagonal, summing to zero.

    G_ij - r_i / (n - 2) - r_j / (n - 2) + s / ((n - 1)(n - 2)), with r the row sums and s the sum without diagonal:
    Szekely and Rizzo's U-centring. It leaves out what every image shares, as centring features does, without bias.
    """
    images = gram.shape[-1]
    off_diagonal = 1 - np.eye(images)
    gram = gram * off_diagonal
    rows = gram.sum(-1, keepdims=True) / (images - 2)
    whole = rows.sum(-2, keepdims=True) / (images - 1)
    centred: Float[np.ndarray, "*g n n"] = (gram - rows - rows.swapaxes(-1, -2) + whole) * off_diagonal
    return centred


def unbiased_hsic(
    one: Float[np.ndarray, "*g n n"], other: Float[np.ndarray, "*g n n"]
) -> Float[np.ndarray, "*g"] | float:
    """Unbiased Hilbert-Schmidt independence criterion of two Gram matrices of the same n images (n >= 4).

    HSIC_1 = (tr KL + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)) / (n (n - 3)), K and L with zero diagonals:
    the inner product of the U-centred matrices over n (n - 3). Its mean is 0 where features are independent.

    Source: Song et al., Journal of Machine Learning Research 13 (2012), equation 5.

    >>> round(float(unbiased_hsic(np.eye(5)[[1, 0, 2, 3, 4]], np.eye(5)[[1, 0, 2, 3, 4]])), 2)
    0.1
    """
    images = one.shape[-1]
    if images < LEAST:
        raise ValueError(f"the unbiased estimate needs {LEAST} images; there are {images}")
    product: Float[np.ndarray, "*g"] = (u_centred(one) * u_centred(other)).sum((-2, -1)) / (images * (images - 3))
    return product


def linear_cka(one: Float[np.ndarray, "i d"], other: Float[np.ndarray, "i e"]) -> float:
    """Unbiased linear CKA of two sets of features of the same images, [images, C] and [images, D] -> at most 1.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X' and L = Y Y', each HSIC the unbiased one, averaged over
    groups of at most 64 images before the ratio. 1: equal up to rotation, scale and shift; about 0, and as often below
    as above, for unrelated features however many channels they have: the biased estimate gives 0.93 to two random
    sets of 60 images and 768 channels. NaN where all images have the same features.

    Source: Nguyen et al., arXiv 2010.15327, section 2 (its minibatches are our groups).

    >>> x, unrelated = np.random.default_rng(0).normal(size=(2, 60, 768))
    >>> round(linear_cka(x, 3 * x[:, ::-1] + 1), 6), abs(linear_cka(x, unrelated)) < 0.1
    (1.0, True)
    """
    return float(cka_of_grams(grams_of(one)[None], grams_of(other)[None], len(one))[0, 0])


def grams_of(features: Float[np.ndarray, "i d"]) -> Float[np.ndarray, "g n n"]:
    """U-centred Gram matrices of a layer's features by group, float32, [images, C] -> [groups, n, n].

    n is the size of the greatest group; smaller ones end in a row and a column of zeros. In units of the features'
    variance. Raises ValueError for fewer than four images.
    """
    sizes = group_sizes(len(features))
    if min(sizes) < LEAST:
        raise ValueError(f"the unbiased estimate needs {LEAST} images; there are {len(features)}")
    features = features.astype(np.float64)
    deviations = features - features.mean(0)
    variance = np.square(deviations).sum(1).mean()
    if variance <= _ROUNDING**2 * np.square(features).sum(1).mean():
        deviations, variance = np.zeros_like(deviations), 1.0
    found = np.zeros((len(sizes), max(sizes), max(sizes)), np.float32)
    for group, size in enumerate(sizes):
        part = deviations[group :: len(sizes)]
        found[group, :size, :size] = u_centred(part @ part.T) / variance
    return found


def cka_of_grams(
    one: Float[np.ndarray, "a g n n"], other: Float[np.ndarray, "b g n n"], images: int
) -> Float[np.ndarray, "a b"]:
    """CKA of every layer of one model with every layer of another, from what `grams_of` left of each layer.

    The HSIC of each group counts by its images. In [-1, 1]; NaN for layers in which all images are the same.
    """
    weights = 1 / (np.array(group_sizes(images)) - 3) / images
    crossed = np.einsum("gnab,g->ab", _products(one, other), weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Float[np.ndarray, "a b"] = crossed / np.sqrt(np.outer(*(_own(gram) @ weights for gram in (one, other))))
    return ratio


def cka_by_image(
    one: Float[np.ndarray, "a g n n"], other: Float[np.ndarray, "b g n n"], images: int
) -> Float[np.ndarray, "i a b"]:
    """Each image's part in `cka_of_grams`, of which it is the mean exactly: [images, layers, layers].

    The parts are the jackknife's pseudo-values of each HSIC (n HSIC - (n - 1) HSIC without the image, in closed form),
    put through the ratio to first order. Resampling them gives CKA an interval over images that resampling images
    cannot give: an image drawn twice would be similar to itself. NaN for fewer than five images.
    """
    crossed = _by_image(_products(one, other), images)
    own_one, own_other = (
        _by_image(np.einsum("agij,agij->gia", gram, gram, dtype=np.float64)[..., None], images)[..., 0]
        for gram in (one, other)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.outer(own_one.mean(0), own_other.mean(0)))
        share = (own_one / own_one.mean(0))[:, :, None] + (own_other / own_other.mean(0))[:, None, :]
        ratio: Float[np.ndarray, "i a b"] = crossed / scale + crossed.mean(0) / scale * (1 - share / 2)
    return ratio


def _products(one: Float[np.ndarray, "a g n n"], other: Float[np.ndarray, "b g n n"]) -> Float[np.ndarray, "g n a b"]:
    """Inner product of each image's row of one layer with its row of another."""
    groups = zip(one.swapaxes(0, 1), other.swapaxes(0, 1), strict=True)
    return np.stack([
        a.transpose(1, 0, 2).astype(np.float64) @ b.transpose(1, 2, 0).astype(np.float64) for a, b in groups
    ])  # fmt: skip


def _own(gram: Float[np.ndarray, "a g n n"]) -> Float[np.ndarray, "a g"]:
    squared: Float[np.ndarray, "a g"] = np.square(gram, dtype=np.float64).sum((-2, -1))
    return squared


def _by_image(products: Float[np.ndarray, "g n a b"], images: int) -> Float[np.ndarray, "i a b"]:
    """Pseudo-values of HSIC, in the order of the images.

    U-centred matrices make leaving an image out simple: of the sum T of inner products it takes its own, t, twice,
    and 2 t / (n - 3) for the row and column sums that are then no longer zero.
    """
    sizes = group_sizes(images)
    found = np.full((images, *products.shape[2:]), np.nan)
    for group, size in enumerate(sizes):
        if size < LEAST_BY_IMAGE:
            continue
        own = products[group, :size]
        mean = own.mean(0)
        spread = 2 * (size - 2) / ((size - 3) * (size - 4))
        found[group :: len(sizes)] = mean / (size - 3) + spread * (own - mean)
    return found
