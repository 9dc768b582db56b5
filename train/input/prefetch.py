"""Batches on their way to the devices, made while the steps before them run."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from ..config import TrainConfig
from ..devices.placement import Placement
from ..input.crops import Batch, cut_batch
from ..input.samples import Sample

AHEAD = 2  # batches that are made while one is used


def prefetch_batches(
    config: TrainConfig, placement: Placement, training: list[Sample], *, first: int
) -> Generator[Future[Batch], None, None]:
    """The batches of the steps from `first` on, on the devices; the next ones are made while one
    is used. Not augmented: the step does that; a program beside it would take cores from it."""
    rows = placement.local(config.data.batch)

    def made(step: int) -> Batch:
        batch = cut_batch(
            training, step, data=config.data, net=config.net, seed=config.seed, rows=rows
        )
        return placement.put(batch, batch=config.data.batch)

    with ThreadPoolExecutor(1) as reader:
        ahead = deque(reader.submit(made, step) for step in range(first, first + AHEAD))
        for step in range(first, config.steps):
            ahead.append(reader.submit(made, step + AHEAD))
            yield ahead.popleft()
