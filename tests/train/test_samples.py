"""The order of pictures and the randomness of samples."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.shapes import Grid
from kamim_analysis.train.masks import MaskDraws
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.samples import Order, TrainingSamples, load_samples
from kamim_analysis.train.views import Augmentation, MaskedView

AUGMENTATION = Augmentation((0.67, 1.0), (3 / 4, 4 / 3), 0.5, 0.5)


def order(**changes: int) -> Order:
    return Order(**{"length": 22, "batch_size": 6, "seed": 3} | changes)


def test_an_epoch_visits_each_picture_at_most_once_and_drops_the_partial_batch() -> None:
    epochs = list(islice(order(), 6))
    for number, epoch in enumerate((epochs[:3], epochs[3:])):
        seen = [index for batch in epoch for _epoch, index in batch]
        assert len(set(seen)) == len(seen) == 18
        assert {e for batch in epoch for e, _index in batch} == {number}


def test_epochs_differ_in_order() -> None:
    first, second = list(islice(order(), 6))[::3]
    assert [i for _e, i in first] != [i for _e, i in second]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7])
def test_starting_at_a_step_continues_the_sequence(step: int) -> None:
    assert list(islice(order(), step, step + 5)) == list(islice(order(first_step=step), 5))


def test_processes_and_accumulation_share_out_the_same_global_batch() -> None:
    whole = next(iter(order()))
    parts = [list(islice(order(accumulate=3, processes=2, rank=rank), 3)) for rank in (0, 1)]
    assert sorted(sample for rank in parts for micro in rank for sample in micro) == sorted(whole)
    assert all(len(micro) == 1 for rank in parts for micro in rank)


def test_a_batch_that_does_not_split_names_sizes_that_do() -> None:
    with pytest.raises(UserError, match=r"batch_size 6 does not split into 4 micro-batches .* are 4 and 8"):
        order(accumulate=4)


def test_more_batch_than_pictures_is_refused() -> None:
    with pytest.raises(UserError, match="22 training images are fewer than one batch"):
        order(batch_size=23)


def samples(source: str) -> TrainingSamples:
    view = MaskedView(AUGMENTATION, 32, MaskDraws(SimMIM(mask_unit=16), Grid(4, 4), 8))
    return TrainingSamples(open_pictures(source, "train"), view, seed=1)


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    data = samples("photographs")
    first = data[(0, 5)][0]
    torch.rand(7)
    data[(0, 9)]
    again = data[(0, 5)][0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], data[(1, 5)][0]["image"])


def test_making_a_sample_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    samples("photographs")[(0, 0)]
    assert torch.equal(before, torch.get_rng_state())


def test_any_number_of_workers_gives_the_same_batches() -> None:
    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        micro = Order(length=24, batch_size=8, seed=0)
        return [
            batch
            for batch, _failed in islice(load_samples(samples("photographs"), micro, workers=workers, pin=False), 4)
        ]

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_an_unreadable_picture_is_replaced_and_reported(pictures: Path) -> None:
    (pictures / "dark" / "3.png").write_text("not a picture")
    data = samples(str(pictures))
    bad = next(i for i in range(len(data.pictures)) if data.pictures.identity(i) == "dark/3.png")
    sample, failed = data[(0, bad)]
    assert [error.name for error in failed] == ["dark/3.png"]
    assert sample["image"].shape == (3, 32, 32)


def test_no_readable_picture_at_all_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 images"):
        samples(str(tmp_path))[(0, 0)]
