from unet_train.input.split import draw_split


def test_split_holds_out_a_part_and_loses_nothing():
    training, validation = draw_split(8, holdout=0.25, seed=0)
    assert (len(training), len(validation)) == (6, 2)
    assert sorted(training + validation) == list(range(8))


def test_another_seed_is_another_split():
    held_out = {tuple(draw_split(8, holdout=0.25, seed=seed)[1]) for seed in range(6)}
    assert len(held_out) > 2
