"""The largest batch that a topology can hold, by trying its compiler."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from unet_plan.plan import Plan
from unet_spec import InputError
from unet_train.config import TrainConfig

MOST_IMAGES = 2**16
Compile = Callable[[TrainConfig, bool], Plan]
"""Returns the plan of a config; whether it is compiled quickly, as in `compile_step`."""


def find_largest(config: TrainConfig, compile_plan: Compile) -> Plan | None:
    """Return the plan with the largest batch that fits; None where a single image does not.

    From 16 images of a device on it is the largest of the round numbers that `find_step` leaves.
    Rematerialisation is turned on only where no image fits without it, and rows are spread only
    where that is not enough.

    Args:
        config: a run, of whose batch nothing is taken but where to begin.
        compile_plan: is asked for quick plans, and at last for that of the batch that they find.

    Raises:
        InputError: the run does not fit the devices.
    """
    for variant in _list_variants(config):
        try:
            plan = _find_largest_batch(variant, compile_plan)
        except InputError:
            if variant == config:
                raise
            continue  # these rows do not divide the image, or the devices
        if plan is not None:
            return plan
    return None


def _list_variants(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield the run as it is, then with what makes each device's part of it smaller."""
    yield config
    if not config.remat:
        config = replace(config, remat=True)
        yield config
    if config.net.padding == "valid":
        return
    for doubling in range(1, 7):
        rows = config.mesh.rows * 2**doubling
        yield replace(config, mesh=replace(config.mesh, rows=rows, data=None))


def _find_largest_batch(config: TrainConfig, compile_plan: Compile) -> Plan | None:
    """Return the plan with the largest batch that fits by a config that is otherwise this one."""
    first = compile_plan(config, True)
    plans = {max(1, first.at_once): first}
    confirmed: set[int] = set()

    def compile_batch(images: int, quick: bool) -> None:
        batch = images * first.data * config.accumulate
        data, mesh = replace(config.data, batch=batch), replace(config.mesh, data=first.data)
        plans[images] = compile_plan(replace(config, data=data, mesh=mesh), quick)

    while True:
        following = next_to_try(plans)
        if following is not None:
            compile_batch(following, True)
            continue
        largest = max((number for number, plan in plans.items() if plan.fits), default=0)
        if not largest or largest in confirmed:
            return plans.get(largest)
        confirmed.add(largest)
        compile_batch(largest, False)


def next_to_try(plans: dict[int, Plan]) -> int | None:
    """Return the number of images of a device to try next; None where the largest is known.

    Memory is nearly a straight line over the images, so the next guess is where it meets the limit.
    Near the limit compilers save memory, and the line bends: where guesses stay on one side, the
    middle of what is left is tried instead. From 16 images on, only round numbers are tried, since
    each takes minutes to compile.

    Args:
        plans: those that were tried, by their images, in that order; at least one.
    """
    fitting = max((n for n, plan in plans.items() if plan.fits), default=0)
    failing = min((n for n, plan in plans.items() if not plan.fits), default=MOST_IMAGES + 1)
    lowest = fitting + find_step(fitting)
    if lowest >= failing:
        return None
    is_bounded = failing <= MOST_IMAGES
    highest = failing - 1 if is_bounded else max(2, 8 * fitting)
    last_two = [plan.fits for plan in list(plans.values())[-2:]]
    if is_bounded and fitting and len(plans) > 2 and last_two[0] == last_two[1]:
        guess = (lowest + highest) // 2
    else:
        guess = min(_meet_limit(plans), highest, MOST_IMAGES)
    return max(lowest, guess - guess % find_step(guess))


def find_step(images: int) -> int:
    """Return how far apart the numbers of images are that are tried: at most an eighth.

    >>> [find_step(images) for images in (7, 15, 16, 31, 64, 100)]
    [1, 1, 2, 2, 8, 8]
    """
    return 2 ** max(0, images.bit_length() - 4)


def _meet_limit(plans: dict[int, Plan]) -> int:
    """Return for how many images the straight line through two plans meets the limit."""
    whole = [n for n, plan in plans.items() if plan.is_whole]
    if not whole:
        return min(plans) // 4
    images = sorted(whole, key=lambda n: abs(plans[n].memory.needed - plans[n].memory.limit))
    near = plans[images[0]].memory
    if len(images) == 1:
        fixed, count = near.state + near.code, images[0]
        slope = (near.needed - fixed) / count
        return int((near.limit - fixed) / slope) if slope > 0 else 8 * count
    low, high = sorted(images[:2])
    slope = (plans[high].memory.needed - plans[low].memory.needed) / (high - low)
    if slope <= 0:
        return (low + high) // 2
    return int(low + (near.limit - plans[low].memory.needed) / slope)
