import optax

from train.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run; its learning rate rises to the peak and falls along a cosine."""
    rise = max(1, round(config.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(
        config.learning_rate / 25, config.learning_rate, rise, max(steps, rise + 1)
    )
    if config.name == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )
