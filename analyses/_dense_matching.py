"""Nearest patches: between two pictures, and between a picture and a mirrored crop of it, where the truth is known."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ._directions import unit

#: sides of the crop over those of the picture
CROP = 0.8
# of the grid: how far apart the matches that are shown lie at least
_APART = 8


def nearest(queries: Float[Tensor, "b m d"], keys: Float[Tensor, "b n d"]) -> Int64[Tensor, "b m"]:
    """For each query token of a picture the number of its key token of greatest cosine: [B, M, C], [B, N, C] -> [B, M].

    >>> nearest(torch.tensor([[[0.0, 2.0], [3.0, 1.0]]]), torch.eye(2)[None])
    tensor([[1, 0]])
    """
    return (unit(queries.float()) @ unit(keys.float()).mT).argmax(-1)


def nearest_colours(
    queries: Float[Tensor, "b 3 y x"], keys: Float[Tensor, "b 3 y x"], grid: tuple[int, int]
) -> Int64[Tensor, "b n"]:
    """As `nearest`, with the mean colour of each cell of a grid instead of a token, by Euclidean distance: [B, N].

    What can be found without any model: features that are to know a place by its content should do better.
    """
    of_queries, of_keys = (adaptive_avg_pool2d(some.float(), (grid[0], grid[1])) for some in (queries, keys))
    return torch.cdist(of_queries.flatten(2).mT, of_keys.flatten(2).mT).argmin(-1)


def mutual_nearest(
    tokens_a: Float[Tensor, "n d"], tokens_b: Float[Tensor, "m d"]
) -> tuple[Int64[Tensor, "p 2"], Float[Tensor, " p"]]:
    """Patches of two pictures that are each other's nearest by cosine: pairs [P, 2] (of A, of B) and cosines [P].

    The greatest cosine first. At least one pair, at most min(N, M): the best of all is always mutual.

    >>> mutual_nearest(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]]))
    (tensor([[0, 1],
            [2, 0]]), tensor([1., 1.]))
    """
    cosines = unit(tokens_a.float()) @ unit(tokens_b.float()).T
    to_b, to_a = cosines.argmax(1), cosines.argmax(0)
    own = torch.arange(len(to_b), device=to_b.device)
    first = own[to_a[to_b] == own]
    pairs = torch.stack([first, to_b[first]], dim=1)
    found = cosines[pairs[:, 0], pairs[:, 1]]
    order = found.argsort(descending=True, stable=True)
    return pairs[order], found[order]


def spread(pairs: Int64[Tensor, "p 2"], grid: tuple[int, int], count: int) -> list[int]:
    """Numbers of up to `count` pairs, in their order, that lie an eighth of the grid apart in both pictures.

    The best matches alone would crowd on one object or on the background. Apart: by rows or by columns.

    >>> spread(torch.tensor([[0, 0], [1, 1], [15, 15]]), (4, 4), 10), spread(torch.tensor([[0, 0]] * 3), (1, 1), 10)
    ([0, 1, 2], [0])
    """
    apart = max(round(max(grid) / _APART), 1)
    places = torch.stack([pairs // grid[1], pairs % grid[1]], dim=-1)  # [P, picture, (row, column)]
    chosen: list[int] = []
    for i, place in enumerate(places):
        distances = (places[chosen] - place).abs().amax(-1)
        if len(chosen) < count and bool((distances >= apart).all()):
            chosen.append(i)
    return chosen


def mirrored_crop(
    image: Float[Tensor, "3 y x"], generator: torch.Generator
) -> tuple[Float[Tensor, "3 y x"], tuple[int, int, int, int]]:
    """A crop of four fifths of a picture's sides, mirrored and enlarged to its size; and its top, left, height, width.

    Where it lies is drawn, uniformly. Cropped and not only mirrored, since a mirrored patch keeps its mean colour to
    the last bit: on photographs that alone finds 9 of 10 patches among 256, and 1 of 10 in a crop.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    height, width = image.shape[-2:]
    tall, wide = max(round(CROP * height), 1), max(round(CROP * width), 1)
    down, right = torch.rand(2, generator=generator).tolist()
    top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
    view: Float[Tensor, "3 y x"] = resized_crop(
        image, top, left, tall, wide, size=[height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return view.flip(-1), (top, left, tall, wide)


def true_places(box: tuple[int, int, int, int], size: tuple[int, int], grid: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Where the centres of a mirrored crop's patches lie in the picture: [N, 2], row and column in patches.

    0 is the centre of the first row or column of patches. `box` is of `mirrored_crop`, `size` the picture's in pixels.

    >>> true_places((0, 0, 8, 8), (8, 8), (1, 2))     # no crop, only mirrored
    tensor([[0., 1.],
            [0., 0.]])
    """
    top, left, tall, wide = box
    rows = (torch.arange(grid[0]) + 0.5) / grid[0] * tall + top
    columns = (grid[1] - torch.arange(grid[1]) - 0.5) / grid[1] * wide + left
    scaled = (rows / size[0] * grid[0] - 0.5, columns / size[1] * grid[1] - 0.5)
    return torch.cartesian_prod(*scaled)


def match_shares(
    found: Int64[Tensor, "b n"], places: Float[Tensor, "b n 2"], grid: tuple[int, int]
) -> Float[Tensor, "b 3"]:
    """How many patches of a view were found where they are in the picture: [B, 3], shares in [0, 1] of each picture.

    `found` [B, N]: the picture's patch that each of the view's patches is matched with; `places` [B, N, 2]: where it
    truly lies. The first share: the patch is the very one that the place lies in (half a patch at most from its centre,
    by rows and by columns). The second: it is at most one whole patch away. The third: it has the same row and column
    of the grid as the view's patch, out of those for which that is wrong by more than a patch; 0 if there are none.
    Patches drawn at random give about 1/N, 4/N and 1/N.

    >>> own = torch.arange(6)[None]
    >>> mirrored = true_places((0, 0, 8, 12), (8, 12), (2, 3))[None]
    >>> match_shares(torch.tensor([[2, 1, 0, 5, 4, 3]]), mirrored, (2, 3)), match_shares(own, mirrored, (2, 3))
    (tensor([[1., 1., 0.]]), tensor([[0.3333, 0.3333, 1.0000]]))
    """
    own = torch.arange(found.shape[1], device=found.device).expand_as(found)
    places = places.to(found.device)
    error, if_same = _error(found, places, grid), _error(own, places, grid)
    elsewhere = if_same > 1
    same = ((found == own) & elsewhere).sum(1) / elsewhere.sum(1).clamp_min(1)
    return torch.stack([(error <= 0.5).float().mean(1), (error <= 1).float().mean(1), same], dim=1)


def _error(found: Int64[Tensor, "b n"], places: Float[Tensor, "b n 2"], grid: tuple[int, int]) -> Float[Tensor, "b n"]:
    """Patches between where a match lies and the truth, by rows or by columns, whichever are more."""
    at = torch.stack([found // grid[1], found % grid[1]], dim=-1)
    return (at - places).abs().amax(-1)
