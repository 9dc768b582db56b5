"""A smoke test of data, net and loss: can the net learn one batch by heart?"""

from dataclasses import replace

import numpy as np

from unet_spec import InputError
from unet_spec.recipe import Optimizer, Schedule

from .config import AugmentConfig, TrainConfig
from .input.crops import cut_batch
from .metrics import foreground_iou
from .report.progress import WINDOW, Progress
from .setup import make_setup
from .step import compile_steps

STEPS, LR, IOU = 400, 2e-3, 0.95


def learn_one_batch(config: TrainConfig, *, progress: Progress) -> bool:
    """Return whether the net can learn its first batch by heart; one that cannot learns nothing.

    Nothing is augmented, dropped, averaged or written.

    Raises:
        InputError: data or a config that cannot be used; a batch of background alone, which
            proves nothing.
    """
    setup = make_setup(config, progress)
    placement = setup.placement
    config = replace(
        setup.config,
        net=replace(setup.config.net, dropout=0.0),
        augment=AugmentConfig(flips=False, quarter_turns=False),
        optimizer=Optimizer(lr=LR),
        schedule=Schedule(),
        ema=0.0,
    )
    progress.say(f"compiling for {placement.describe()}")
    steps = compile_steps(config, placement)
    rows = placement.local(config.data.batch)
    batch = cut_batch(
        setup.dataset.training, 0, data=config.data, net=config.net, seed=config.seed, rows=rows
    )
    crops = placement.put(batch, batch=config.data.batch)
    state, score = steps.init(), 0.0
    with progress.steps(STEPS) as bar:
        for step in range(1, STEPS + 1):
            state, metrics = steps.step(state, crops)
            bar.advance(metrics, images=config.data.batch)
            if step == 1 and not np.asarray(metrics.confusion)[1:].any():
                raise InputError(
                    "the first batch holds background alone, which every net learns: look at the "
                    "masks, or try another --seed"
                )
            score = foreground_iou(np.asarray(metrics.confusion)) if step % WINDOW == 0 else score
            if score >= IOU:
                break
    learned = score >= IOU
    verdict = "the net learns its first batch by heart" if learned else (
        "the net does not learn even its first batch: look at augmented.png of a run for masks "
        "that do not fit, and at the learning rate"
    )  # fmt: skip
    progress.say(f"{verdict} (IoU {score:.3f} after {step} steps)")
    return learned
