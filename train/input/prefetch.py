"""Batches on their way to the devices, made while the steps before them run."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from unet_spec import UNetConfig
from unet_spec.environment import usable_cores

from ..config import DataConfig
from ..devices.placement import Placement
from .crops import Batch, cut_batch
from .samples import Sample

AHEAD = 2  # batches that are made while one is used
MOST_DECODERS = 8  # threads; a step's other work needs cores as well


def prefetch_batches(
    samples: Sequence[Sample],
    placement: Placement,
    *,
    data: DataConfig,
    net: UNetConfig,
    seed: int,
    steps: range,
) -> Generator[Future[Batch], None, None]:
    """Yield the batches of these steps, on the devices, while the next ones are made.

    The images of a batch are decoded side by side. They are not augmented: the step does that; a
    program beside it would take cores from it.
    """
    rows = placement.local(data.batch)

    with (
        ThreadPoolExecutor(min(usable_cores(), MOST_DECODERS)) as decoders,
        ThreadPoolExecutor(1) as reader,
    ):

        def make_batch(step: int) -> Batch:
            """Cut the batch of a step and put it on the devices."""
            batch = cut_batch(
                samples, step, data=data, net=net, seed=seed, rows=rows, decode=decoders.map
            )
            return placement.put(batch, batch=data.batch)

        ahead: deque[Future[Batch]] = deque()
        for step in steps:
            ahead.append(reader.submit(make_batch, step))
            if len(ahead) > AHEAD:
                yield ahead.popleft()
        yield from ahead


def read_ahead(samples: Sequence[Sample], indices: Iterable[int]) -> Iterator[tuple[int, Sample]]:
    """Yield the number of each sample and the sample; the next is decoded meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        ahead: deque[tuple[int, Future[Sample]]] = deque()
        for index in indices:
            ahead.append((index, reader.submit(samples.__getitem__, index)))
            if len(ahead) > 1:
                number, sample = ahead.popleft()
                yield number, sample.result()
        for number, sample in ahead:
            yield number, sample.result()
