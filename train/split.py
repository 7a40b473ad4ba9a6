"""How a batch is shared out among devices and over micro-batches. Imports no torch."""

from kamim_analysis.errors import UserError

from .recipe import Efficiency


def accumulation(efficiency: Efficiency, batch_size: int, processes: int) -> int:
    """Micro-batches of a step on each device: as given, or the fewest equal ones of at most `micro_batch` pictures.

    So the same recipe takes as many pictures a step on any number of devices. Raises UserError where both are given,
    and for a batch that does not split.

    >>> accumulation(Efficiency(micro_batch=256), 2048, processes=2)
    4
    >>> accumulation(Efficiency(micro_batch=100), 2048, processes=8)          # 64 pictures: the most that divides 256
    4
    """
    most = efficiency.micro_batch
    if most is None:
        check_split(batch_size, efficiency.accumulate, processes)
        return efficiency.accumulate
    if efficiency.accumulate > 1:
        raise UserError(
            f"efficiency.micro_batch {most} and efficiency.accumulate {efficiency.accumulate} both say how a batch is "
            "divided; give one of them"
        )
    check_split(batch_size, 1, processes)
    share = batch_size // processes
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= most)


def check_split(batch_size: int, accumulate: int, processes: int) -> None:
    """Raises UserError, naming what would fit, unless each process gets as many equal micro-batches."""
    parts = accumulate * processes
    if batch_size % parts == 0:
        return
    below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
    sizes = f"nearest that do are {below} and {above}" if below else f"smallest that does is {above}"
    into = f"into {accumulate} micro-batches " if accumulate > 1 else ""
    others = _fitting(batch_size, accumulate, processes)
    devices = f", or take {' or '.join(map(str, others))} devices" if others else ""
    raise UserError(f"optim.batch_size {batch_size} does not split {into}on {processes} devices; the {sizes}{devices}")


def _fitting(batch_size: int, accumulate: int, processes: int) -> list[int]:
    """The nearest smaller and larger number of devices that the batch would split on."""
    fit = [count for count in range(1, batch_size + 1) if batch_size % (count * accumulate) == 0]
    return [count for count in fit if count < processes][-1:] + [count for count in fit if count > processes][:1]
