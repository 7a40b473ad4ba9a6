"""How a batch is shared out."""

import pytest

from kamim_analysis.errors import UserError
from kamim_analysis.train.recipe import Efficiency
from kamim_analysis.train.split import accumulation, check_split


@pytest.mark.parametrize(
    ("batch_size", "processes"),
    [(size, count) for size in (1, 6, 48, 210, 2048) for count in (1, 2, 3, 8) if size % count == 0],
)
@pytest.mark.parametrize("most", [1, 5, 7, 64])
def test_micro_batches_are_the_largest_equal_ones_that_fit(batch_size: int, processes: int, most: int) -> None:
    parts = accumulation(Efficiency(micro_batch=most), batch_size, processes)
    micro = batch_size / processes / parts
    fitting = [size for size in range(1, most + 1) if (batch_size / processes / size).is_integer()]
    assert micro == max(fitting)


def test_a_given_number_of_micro_batches_is_kept() -> None:
    assert accumulation(Efficiency(accumulate=4), 64, 2) == 4


def test_two_ways_of_dividing_are_refused() -> None:
    with pytest.raises(UserError, match=r"micro_batch 16 and efficiency\.accumulate 4 both say"):
        accumulation(Efficiency(accumulate=4, micro_batch=16), 64, 1)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes", "sizes", "devices"),
    [(100, 1, 8, [96, 104], [5, 10]), (100, 2, 3, [96, 102], [2, 5]), (6, 4, 1, [4, 8], []), (3, 1, 4, [4], [3])],
)
def test_an_impossible_split_names_what_fits(
    batch_size: int, accumulate: int, processes: int, sizes: list[int], devices: list[int]
) -> None:
    with pytest.raises(UserError) as refused:
        check_split(batch_size, accumulate, processes)
    message = str(refused.value)
    assert message.startswith(f"optim.batch_size {batch_size} does not split")
    assert " and ".join(map(str, sizes)) in message
    assert ("take " + " or ".join(map(str, devices)) + " devices" in message) == bool(devices)
    for size, count in [*((size, processes) for size in sizes), *((batch_size, count) for count in devices)]:
        check_split(size, accumulate, count)
