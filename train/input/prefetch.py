"""Batches on their way to the devices, made while the steps before them run."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from unet_spec import UNetConfig

from ..config import DataConfig
from ..devices.placement import Placement
from .crops import Batch, cut_batch
from .samples import Sample

AHEAD = 2  # batches that are made while one is used


def prefetch_batches(
    samples: list[Sample],
    placement: Placement,
    *,
    data: DataConfig,
    net: UNetConfig,
    seed: int,
    steps: range,
) -> Generator[Future[Batch], None, None]:
    """Yield the batches of these steps, on the devices, while the next ones are made.

    They are not augmented: the step does that; a program beside it would take cores from it.
    """
    rows = placement.local(data.batch)

    def make_batch(step: int) -> Batch:
        """Cut the batch of a step and put it on the devices."""
        batch = cut_batch(samples, step, data=data, net=net, seed=seed, rows=rows)
        return placement.put(batch, batch=data.batch)

    with ThreadPoolExecutor(1) as reader:
        ahead = deque(reader.submit(make_batch, steps.start + i) for i in range(AHEAD))
        for step in steps:
            ahead.append(reader.submit(make_batch, step + AHEAD))
            yield ahead.popleft()
