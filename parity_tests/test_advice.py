"""What a message advises is done: each command that it names is run, and is not refused."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import unet_torch
from parity_tests import shown
from parity_tests.foreign_nets import NETS
from parity_tests.shown import Message, run_unet
from unet_parity import RunRecorder, record
from unet_spec import InputError, UNetConfig
from unet_spec.recipe import Recipe, Schedule
from unet_torch import training_state as torch_state

TRAIN = ("unet train cells --net.widths 4 6 --data.synthetic 4 --data.batch 2 --data.crop-px 32 "
         "--steps 2 --validate-every 2 --checkpoint-every 2 --mesh.data 1")  # fmt: skip
PAPER = TRAIN.replace("cells", "paper").replace("--data.crop-px 32", "--data.crop-px 44")
IMAGES = "--data.images IMAGES --data.masks"
SPLIT = "--data.split split.txt"
HELD_OUT = "--data.validation-images IN_COLOUR --data.validation-masks MASKS"
VERIFY = "unet verify cells.safetensors --steps 0 --no-other-sizes"
VERIFY_NET = "unet verify --config.widths 4 6 --steps 0 --no-other-sizes"


@dataclasses.dataclass(frozen=True)
class Advice:
    """A message that advises something, and what happens to somebody who does it.

    Attributes:
        code: a part of the message as it stands in the code, {} for what is filled in.
        command: ends with the message.
        says: a pattern that the printed message matches; its groups are what is advised.
        advised: commands, {0} for the first group, that have to end well.
        status: of the command: 2 for a refusal, 0 for a finding of the data doctor.
        whole: training runs to their end, because something may be refused after compiling.
    """

    code: str
    command: str
    says: str
    advised: tuple[str, ...]
    status: int = 2
    whole: bool = False


ADVICE = (
    Advice("no verb is given", "unet", r"(unet --help) lists all", ("{0}",)),
    Advice(
        "is no verb of unet", "unet trian cells",
        r"trian is no verb of unet; (train) is near it; (unet --help) lists all",
        ("unet {0} --help", "{1}"),
    ),
    Advice(
        "data.crop_px={} is not legal", f"{TRAIN} --data.crop-px 33",
        r"--data\.crop-px 33 is not legal for the net; use (\d+) or (\d+)",
        (f"{TRAIN} --data.crop-px {{0}}", f"{TRAIN} --data.crop-px {{1}}"),
    ),
    Advice(
        "data.crop_px={} leaves 1 x 1 pixel at the deepest level, of one image at a time",
        f"{TRAIN} --net.norm batch --data.crop-px 2 --data.batch 1",
        r"use (--data\.batch 2) or (--data\.crop-px 4)",
        (f"{TRAIN} --net.norm batch --data.crop-px 2 {{0}}",
         f"{TRAIN} --net.norm batch --data.batch 1 {{1}}"),
    ),
    Advice(
        "of each image, and data.crop_px={} leaves 1 x 1 pixel",
        f"{TRAIN} --net.norm instance --data.crop-px 2", r"use (--data\.crop-px 4)",
        (f"{TRAIN} --net.norm instance {{0}}",),
    ),
    Advice(
        "preprocessing.window_px={} leaves 1 x 1 pixel",
        f"{TRAIN} --net.norm instance --preprocessing.window-px 2",
        r"use (--preprocessing\.window-px 4)", (f"{TRAIN} --net.norm instance {{0}}",),
    ),
    Advice(
        "there are no images to train on", f"{TRAIN} --data.synthetic 0",
        r"by (--data\.images) and that of their masks by (--data\.masks), or "
        r"(--data\.synthetic 48)",
        (f"{TRAIN} --data.synthetic 0 {{0}} IMAGES {{1}} MASKS", f"{TRAIN} {{2}}"),
    ),
    Advice(
        "accumulate={} does not divide", f"{TRAIN} --accumulate 2 --data.batch 3",
        r"(--accumulate) 2 does not divide (--data\.batch) 3; change either",
        (f"{TRAIN} {{0}} 3 --data.batch 3", f"{TRAIN} --accumulate 2 {{1}} 2"),
    ),
    Advice(
        "mesh.rows spreads rows of padded nets only",
        f"{TRAIN} --mesh.rows 2 --net.padding valid --data.crop-px 44",
        r"use (--mesh\.data), or (--net\.padding same)",
        (f"{TRAIN} --net.padding valid --data.crop-px 44 {{0}} 2", f"{TRAIN} --mesh.rows 2 {{1}}"),
    ),
    Advice(
        "schedule.total_steps={} ends before", f"{TRAIN} --schedule.total-steps 1",
        r"use (--steps 1), or begin a new schedule from the weight file alone: (--start) FILE",
        (f"{TRAIN} --schedule.total-steps 1 {{0}}", f"{TRAIN} {{1}} cells.safetensors"), whole=True,
    ),
    Advice(
        "cross_entropy, dice and focal are all 0",
        f"{TRAIN} --loss.cross-entropy 0", r"(--loss\.dice) and (--loss\.focal) are all 0; give",
        (f"{TRAIN} --loss.cross-entropy 0 {{0}} 1", f"{TRAIN} --loss.cross-entropy 0 {{1}} 1"),
    ),
    Advice(
        "data.mask_values=instances takes every number",
        f"{TRAIN} {IMAGES} MASKS --data.mask-values instances --loss.ignore-index 255",
        "leave out --loss.ignore-index", (f"{TRAIN} {IMAGES} MASKS --data.mask-values instances",),
    ),
    Advice(
        "data.mask_values=instances makes 2 classes",
        f"{TRAIN} {IMAGES} MASKS --data.mask-values instances --net.classes 3 --class-names a b c",
        r"(--net\.classes) 3; use (2)",
        (f"{TRAIN} {IMAGES} MASKS --data.mask-values instances {{0}} {{1}}",),
    ),
    Advice(
        "if 255 marks pixels that count nothing", f"{TRAIN} {IMAGES} WITH_255",
        r"count nothing: (--loss\.ignore-index 255)", (f"{TRAIN} {IMAGES} WITH_255 {{0}}",),
    ),
    Advice(
        "numbers of objects need", f"{TRAIN} {IMAGES} NUMBERS",
        r"numbers of objects need (--data\.mask-values instances)",
        (f"{TRAIN} {IMAGES} NUMBERS {{0}}",),
    ),
    Advice(
        "say which are which by patterns",
        f"{TRAIN} --data.images TOGETHER --data.masks TOGETHER",
        r"patterns: '(TOGETHER/\*_img\.png)' for one, '(TOGETHER/\*_masks\.png)' for the other",
        (f"{TRAIN} --data.images '{{0}}' --data.masks '{{1}}'",),
    ),
    Advice(
        "as one object for each number", f"{TRAIN} {IMAGES} OF_254",
        r"for each number: (--data\.mask-values instances)", (f"{TRAIN} {IMAGES} OF_254 {{0}}",),
    ),
    Advice(
        "if the labels begin at 1", f"{TRAIN} {IMAGES} FROM_1",
        r"store them from 0, or use (--net\.classes 3) with as many (--class-names)",
        (f"{TRAIN} {IMAGES} MASKS", f"{TRAIN} {IMAGES} FROM_1 {{0}} {{1}} a b c"),
    ),
    Advice(
        "if there are more classes", f"{TRAIN} {IMAGES} UP_TO_2",
        r"classes: (--net\.classes 3) with as many (--class-names); numbers of objects need "
        r"(--data\.mask-values instances)",
        (f"{TRAIN} {IMAGES} UP_TO_2 {{0}} {{1}} a b c", f"{TRAIN} {IMAGES} UP_TO_2 {{2}}"),
    ),
    Advice(
        "pixels that count nothing as 255 with", f"{TRAIN} {IMAGES} BELOW_0",
        r"pixels that count nothing as 255 with (--loss\.ignore-index 255)",
        (f"{TRAIN} {IMAGES} WITH_255 {{0}}",),
    ),
    Advice(
        "a mask in colours; say which", f"{TRAIN} {IMAGES} COLOURS",
        r"say which with (--data\.mask-values colours) and (--data\.palette)",
        (f"{TRAIN} {IMAGES} COLOURS {{0}} {{1}} 000000 FF0000",),
    ),
    Advice(
        "pixels have a colour that is not in palette",
        f"{TRAIN} {IMAGES} COLOURS --data.mask-values colours --data.palette 000000 00FF00",
        r"pixels have a colour that is not in (--data\.palette), \d+ of them (\w{6}); add it",
        (f"{TRAIN} {IMAGES} COLOURS --data.mask-values colours {{0}} 000000 00FF00 {{1}} "
         "--net.classes 3 --class-names a b c",),
    ),
    Advice(
        "mesh.data={} x mesh.rows={} does not fit", f"{TRAIN} --mesh.data 99",
        r"change or leave out either", (TRAIN,),
    ),
    Advice(
        "devices do not divide the {} images", f"{TRAIN} --mesh.data 3",
        r"change (--data\.batch) or (--mesh\.data)",
        (f"{TRAIN} --mesh.data 3 {{0}} 3", f"{TRAIN} {{1}} 2"),
    ),
    Advice(
        "has 2 rows, one for each part of",
        f"{TRAIN} --mesh.data 2 --mesh.rows 2 --data.crop-px 4",
        r"of (--data\.crop-px) 4 has 2 rows, one for each part of .*; use (8) or more",
        (f"{TRAIN} --mesh.data 2 --mesh.rows 2 {{0}} {{1}}",),
    ),
    Advice(
        "mesh.rows={} does not divide the rows", f"{TRAIN} --mesh.rows 4 --data.crop-px 36",
        r"use a multiple of (\d+), or fewer rows",
        (f"{TRAIN} --mesh.rows 4 --data.crop-px {{0}}0", f"{TRAIN} --mesh.rows 2"),
    ),
    Advice(
        "window_px={} is not legal", f"{TRAIN} --preprocessing.window-px 33",
        r"(--preprocessing\.window-px) 33 is not legal for the net; use (\d+) or (\d+)",
        (f"{TRAIN} {{0}} {{1}}", f"{TRAIN} {{0}} {{2}}"),
    ),
    Advice(
        "the run there cannot go on with another config", f"{TRAIN} --seed 5 --out OLD",
        r"give the values that it began with, or name another (--out), which .* by (--start)",
        (f"{TRAIN} --out OLD", f"{TRAIN} --seed 5 {{0}} NEW {{1}} OLD/weights.safetensors"),
        whole=True,
    ),
    Advice(
        "the images or masks are not those", f"{TRAIN} {IMAGES} MASKS --out OLD",
        r"name another (--out)", (f"{TRAIN} {IMAGES} MASKS {{0}} OTHER",),
    ),
    Advice(
        "is not finite: {}; lower", f"{TRAIN} --schedule.max-lr 1e6 --steps 4",
        r"lower (--schedule\.max-lr) \((--optimizer\.lr) without one_cycle\), clip with "
        r"(--optimizer\.clip-norm), or mend that image, in a run with another (--out)",
        (f"{TRAIN} {{0}} 1e-3 {{2}} 1 {{3}} CLIPPED",
         f"{TRAIN} --schedule.name constant {{1}} 1e-3 {{3}} SLOWER"), whole=True,
    ),
    Advice(
        "the net sees luma", f"{TRAIN} --data.images IN_COLOUR --data.masks MASKS",
        r"the net sees luma; (--net\.in-channels 3) sees colours",
        (f"{TRAIN} --data.images IN_COLOUR --data.masks MASKS {{0}}",), 0,
    ),
    Advice(
        "choose as many with --preprocessing.channels",
        f"{TRAIN} --data.images TWO_CHANNELS --data.masks MASKS",
        r"has 2 channels and the net takes 1; choose as many with (--preprocessing\.channels)",
        (f"{TRAIN} --data.images TWO_CHANNELS --data.masks MASKS {{0}} 1",),
    ),
    Advice(
        "smaller than --data.crop-px {}", f"{TRAIN} {IMAGES} MASKS --data.crop-px 44",
        r"smaller than (--data\.crop-px) 44: .* a smaller one needs none",
        (f"{TRAIN} {IMAGES} MASKS {{0}} 32",), 0,
    ),
    Advice(
        "nets learn from values of about 1", f"{TRAIN} {IMAGES} MASKS --preprocessing.normalize "
        "none --schedule.max-lr 1e-6", r"use (--preprocessing\.normalize image)",
        (f"{TRAIN} {IMAGES} MASKS {{0}}",), 0,
    ),
    Advice(
        "is in no image to train on", f"{TRAIN} {IMAGES} MASKS --loss.ignore-index 255",
        r"look at the masks' values, (--data\.mask-values), and (--loss\.ignore-index) 255",
        (f"{TRAIN} {IMAGES} MASKS {{0}} instances", f"{TRAIN} {IMAGES} MASKS {{1}} 254"), 0,
    ),
    Advice(
        "is in no held-out image", f"{TRAIN} {IMAGES} IN_ONE",
        r"use a larger (--data\.holdout), or another (--seed)",
        (f"{TRAIN} {IMAGES} IN_ONE {{0}} 0.5", f"{TRAIN} {IMAGES} IN_ONE {{1}} 1"), 0,
    ),
    Advice(
        "% of the pixels; --loss.dice or", f"{TRAIN} {IMAGES} IN_ONE",
        r"(--loss\.dice) or (--loss\.class-weights) make it count more",
        (f"{TRAIN} {IMAGES} IN_ONE {{0}} 1", f"{TRAIN} {IMAGES} IN_ONE {{1}} 1 5"), 0,
    ),
    Advice(
        "the first batch holds background alone", f"{TRAIN} {IMAGES} IN_ONE --overfit",
        r"try another (--seed)", (f"{TRAIN} {IMAGES} IN_ONE {{0}} 1",),
    ),
    Advice(
        "{} needs a preset", "unet train --out RUN", r"(unet train nuclei --out RUN) \.\.\.",
        (f"{{0}} {TRAIN.partition('cells ')[2]} --net.groups 2",),
    ),
    Advice(
        "optimizer.lr counts nothing", f"{TRAIN} --optimizer.lr 1e-3",
        r"whose peak is (--schedule\.max-lr); give that", (f"{TRAIN} {{0}} 1e-3",),
    ),
    Advice(
        "its config says {}={}, not {}", "unet convert cells.safetensors b.pt --config.padding "
        "valid", r"leave out --config\.padding", ("unet convert cells.safetensors b.pt",),
    ),
    Advice(
        "the run is in {} and stays so", "unet convert run.pt a.safetensors --dtype float16",
        "leave out --dtype", ("unet convert run.pt a.safetensors",),
    ),
    Advice(
        "has the types that its net came in",
        "unet convert cells.safetensors b.pt --dtype float16",
        "leave out --dtype", ("unet convert cells.safetensors b.pt",),
    ),
    Advice(
        "takes its weights alone", "unet convert amsgrad.pt a.safetensors",
        "(--weights-only) takes its weights alone",
        ("unet convert amsgrad.pt a.safetensors {0}",),
    ),
    Advice(
        "a PyTorch checkpoint, not a weight file", "unet predict model.pth IMAGES --out OUT",
        r"make one: (unet convert \S+ \S+)",
        ("{0}", "unet predict model.safetensors IMAGES --out OUT"),
    ),
    Advice(
        "{}, or let it take more memory by --largest-gb {}",
        "unet predict cells.safetensors IMAGES --out OUT --largest-gb 1e-6",
        r"values is too large, .*, or let it take more memory by (--largest-gb \S+)",
        ("unet predict cells.safetensors IMAGES --out OUT {0}",),
    ),
    Advice(
        "{}, or let it take more memory by largest_gb={}",
        f"{TRAIN} {IMAGES} MASKS --data.largest-gb 1e-6",
        r"values is too large, .*, or let it take more memory by (--data\.largest-gb \S+)",
        (f"{TRAIN} {IMAGES} MASKS {{0}}",),
    ),
    Advice(
        "the prediction there {}", "unet predict cells.safetensors IMAGES --out PREDICTED "
        "--threshold 0.3", r"has no --threshold; name another (--out)",
        ("unet predict cells.safetensors IMAGES --threshold 0.3 {0} OTHER",),
    ),
    Advice(
        "a safetensors file without this project's metadata", "unet predict bare.safetensors "
        "IMAGES --out OUT", r"(unet convert \S+ NEW\.safetensors --config\.padding) \.\.\. \(see "
        r"(unet convert --help)\)", ("{0} same", "{1}"),
    ),
    Advice(
        "its norm keeps no statistics", "unet convert group.pth a.safetensors",
        r"say which: (--config\.norm group) \(with (--config\.groups)\) or "
        r"(--config\.norm instance)",
        ("unet convert group.pth a.safetensors {0} {1} 2",
         "unet convert group.pth b.safetensors {2}"),
    ),
    Advice(
        "its up-sampling has no 2x2 kernels", "unet convert bilinear.pth a.safetensors",
        r"say it: (--config\.up bilinear), (--config\.up bilinear_aligned) or "
        r"(--config\.up nearest)",
        ("unet convert bilinear.pth a.safetensors {0}",
         "unet convert bilinear.pth b.safetensors {1}",
         "unet convert bilinear.pth c.safetensors {2}"),
    ),
    Advice(
        "its tensors have {}={}, not", "unet convert model.pth a.safetensors --config.classes 3",
        r"its tensors have classes=2, not --config\.classes 3; leave that out",
        ("unet convert model.pth a.safetensors",),
    ),
    Advice(
        "widths needs multiples of groups={}", f"{TRAIN} --net.norm group --net.groups 4",
        r"(--net\.widths) needs multiples of (--net\.groups) 4 with --net\.norm group, got 4 6; "
        "change either",
        (f"{TRAIN} --net.norm group --net.groups 4 {{0}} 4 8",
         f"{TRAIN} --net.norm group {{1}} 2"),
    ),
    Advice(
        "norm=group needs multiples of groups={}",
        f"{TRAIN} --net.norm group --net.groups 2 --net.up-widths 5",
        r"gives 5 channels; change (--net\.groups), (--net\.up-widths) or --net\.up-middle",
        (f"{TRAIN} --net.norm group --net.up-widths 5 {{0}} 1",
         f"{TRAIN} --net.norm group --net.groups 2 {{1}} 8"),
    ),
    Advice(
        "up_convolution={} needs an interpolation", f"{TRAIN} --net.no-up-convolution",
        r"use (--net\.up nearest), (--net\.up bilinear) or (--net\.up bilinear_aligned)",
        tuple(f"{TRAIN} --net.no-up-convolution {{{number}}}" for number in range(3)),
    ),
    Advice(
        "up_middle=half halves the channels",
        f"{TRAIN} --net.up nearest --net.no-up-convolution --net.up-middle half --net.widths 4 7",
        r"use (--net\.up-middle output) or other (--net\.widths)",
        (f"{TRAIN} --net.up nearest --net.no-up-convolution --net.widths 4 7 {{0}}",
         f"{TRAIN} --net.up nearest --net.no-up-convolution --net.up-middle half {{1}} 4 6"),
    ),
    Advice(
        "fit={} needs padding=same",
        f"{TRAIN} --net.padding valid --data.crop-px 44 --net.fit zeros",
        r"use (--net\.fit error) or (--net\.fit crop)",
        (f"{TRAIN} --net.padding valid --data.crop-px 44 {{0}}",
         f"{TRAIN} --net.padding valid --data.crop-px 44 {{1}}"),
    ),
    Advice(
        "name={} does not use", f"{TRAIN} --optimizer.momentum 0.9",
        r"--optimizer\.name adamw does not use --optimizer\.momentum 0\.9; leave out", (TRAIN,),
    ),
    Advice(
        "name=step needs step_size", f"{TRAIN} --schedule.name step",
        r"(--schedule\.name step) needs (--schedule\.step-size); give it",
        (f"{TRAIN} {{0}} {{1}} 2",),
    ),
    Advice(
        "name=one_cycle needs max_lr", f"{PAPER} --schedule.name one_cycle",
        r"(--schedule\.name one_cycle) needs (--schedule\.max-lr); give it",
        (f"{PAPER} {{0}} {{1}} 1e-3",),
    ),
    Advice(
        "pct_start={} of total_steps={} gives",
        f"{TRAIN} --schedule.total-steps 10 --schedule.pct-start 0.1",
        r"(--schedule\.pct-start) 0\.1 of (--schedule\.total-steps) 10 gives .*; change either",
        (f"{TRAIN} --schedule.total-steps 10 {{0}} 0.5",
         f"{TRAIN} --schedule.pct-start 0.1 {{1}} 20"),
    ),
    Advice(
        "undecayed={} needs weight_decay above 0",
        f"{TRAIN} --optimizer.undecayed vectors --optimizer.weight-decay 0",
        r"(--optimizer\.undecayed vectors) needs (--optimizer\.weight-decay) above 0; give it, or "
        "leave out --optimizer.undecayed",
        (f"{TRAIN} {{0}} {{1}} 0.1", f"{TRAIN} {{1}} 0"),
    ),
    Advice(
        "undecayed names {}, which is no trained tensor", f"{TRAIN} --optimizer.undecayed head",
        r"(--optimizer\.undecayed) names head, which is no .* names of its weight file, or the "
        r"word (\w+)",
        (f"{TRAIN} {{0}} out.weight", f"{TRAIN} {{0}} {{1}}"),
    ),
    Advice(
        "schedule.mode={} waits for a value that rises",
        f"{TRAIN} --schedule.name plateau --schedule.mode max",
        r"--schedule\.mode max waits for a value that rises, and (--schedule\.name plateau) "
        r"watches the loss of each batch, which falls; use (--schedule\.mode min)",
        (f"{TRAIN} {{0}} {{1}}",),
    ),
    Advice(
        "its plateau waits for a value that rises", f"{TRAIN} --start rising.safetensors",
        r"weights alone: (unet convert \S+ NEW\.safetensors --weights-only)",
        ("{0}", f"{TRAIN} --start NEW.safetensors"),
    ),
    Advice(
        "but its tensors do not say", "unet convert theirs.pth a.safetensors",
        r"(--reference) net\.py:UNet settles it .* (--recorded pair\.npz) .* by its flag: "
        r"(--config\.concat), (--config\.padding), (--config\.activation) \(with "
        r"(--config\.negative-slope)\), (--config\.output)",
        ("unet convert theirs.pth a.safetensors {0} theirs.py:Net --reference-arguments 1",
         "unet convert theirs.pth b.safetensors {1}",
         "unet convert theirs.pth c.safetensors {2} skip_first {3} same {4} relu {6} sigmoid"),
    ),
    Advice(
        "its scheduler is none of", "unet convert lambda.pt a.safetensors",
        r"leave it out with (--without-scheduler)",
        ("unet convert lambda.pt a.safetensors {0}",),
    ),
    Advice(
        "SGD does not count its steps", "unet convert sgd.pt a.safetensors",
        r"as `(step)`, or leave the scheduler out with (--without-scheduler)",
        ("unet convert sgd.pt a.safetensors {1}", "unet convert sgd_{0}.pt b.safetensors"),
    ),
    Advice(
        "no file of PyTorch says how the original's were", "unet convert theirs.pth a.safetensors "
        "--recorded pair.npz", r"(--preprocessing\.normalize) image, (range) or (none)",
        ("unet convert theirs.pth b.safetensors --recorded pair.npz {0} {1}",
         "unet convert theirs.pth c.safetensors --recorded pair.npz {0} {2}"), status=0,
    ),
    Advice(
        "does not load it strictly", "unet convert milesial.pth a.safetensors --reference "
        "my_unet.py:UNet --reference-arguments 1,3",
        r"with (--reference-arguments) the numbers",
        ("unet convert milesial.pth a.safetensors --reference my_unet.py:UNet {0} 1,2",),
    ),
    Advice(
        "give them as --reference-arguments", "unet convert theirs.pth a.safetensors --reference "
        "theirs.py:Net",
        r"missing a required argument: 'seed'.*give them as (--reference-arguments) '3, 2'",
        ("unet convert theirs.pth a.safetensors --reference theirs.py:Net {0} 3",),
    ),
    Advice(
        "that is not proven", "unet convert milesial.pth a.safetensors",
        r"(--recorded) or (--reference) prove it",
        ("unet convert milesial.pth b.safetensors {1} my_unet.py:UNet --reference-arguments 1,2",),
        status=0,
    ),
    Advice(
        "both give the original's output", "unet convert theirs.pth a.safetensors --recorded "
        "pair.npz --reference theirs.py:Net", "leave one out",
        ("unet convert theirs.pth a.safetensors --recorded pair.npz",),
    ),
    Advice(
        "no target given", "unet convert theirs.pth", r"name it after theirs\.pth, or give "
        r"(--explain)", ("unet convert {0} theirs.pth",),
    ),
    Advice(
        "--explain writes nothing", "unet convert theirs.pth a.safetensors --explain",
        r"leave out a\.safetensors", ("unet convert theirs.pth --explain",),
    ),
    Advice(
        "its ReduceLROnPlateau waits for", "unet convert rising.pt a.safetensors",
        r"`unet train` watches the loss .* leave the scheduler out with (--without-scheduler)",
        ("unet convert rising.pt a.safetensors {0}",),
    ),
    Advice(
        "as where AMP's GradScaler skips steps", "unet convert skipped.pt a.safetensors",
        r"the scheduler out with (--without-scheduler)",
        ("unet convert skipped.pt a.safetensors {0}",),
    ),
    Advice(
        "AMP's GradScaler, whose state is in the file", "unet convert scaled.pt a.safetensors",
        r"save the number of all steps beside it as `(step)` if none was skipped, or leave the "
        r"scheduler out with (--without-scheduler)",
        ("unet convert scaled_{0}.pt a.safetensors",
         "unet convert scaled.pt b.safetensors {1}"),
    ),
    Advice(
        "which is no whole number for each", "unet convert middle.pt a.safetensors",
        r"save it at the (end of one), or leave the scheduler out with (--without-scheduler)",
        ("unet convert end.pt a.safetensors", "unet convert middle.pt b.safetensors {1}"),
    ),
    Advice(
        "the best value that its plateau saw", "unet convert falling.pt a.safetensors",
        r"the loss of the training batch, so .* the scheduler out with (--without-scheduler)",
        ("unet convert falling.pt b.safetensors {0}",), 0,
    ),
    Advice(
        "{} needs {} as well", f"{TRAIN} --data.images IMAGES",
        r"(--data\.images) needs (--data\.masks) as well; give",
        (f"{TRAIN} {{0}} IMAGES {{1}} MASKS",),
    ),
    Advice(
        "{} needs images and masks; give both", f"{TRAIN} --data.groups 0",
        r"needs (--data\.images) and (--data\.masks); give both",
        (f"{TRAIN} --data.groups ^[0-9] {{0}} IMAGES {{1}} MASKS",),
    ),
    Advice(
        "split and validation_images both say", f"{TRAIN} {IMAGES} MASKS {SPLIT} {HELD_OUT}",
        "both say what is held out; leave out one",
        (f"{TRAIN} {IMAGES} MASKS {SPLIT}", f"{TRAIN} {IMAGES} MASKS {HELD_OUT}"),
    ),
    Advice(
        "{} counts nothing with {}, which says",
        f"{TRAIN} {IMAGES} MASKS {SPLIT} --data.holdout 0.5",
        r"(--data\.holdout) counts nothing with (--data\.split), .*; leave out one",
        (f"{TRAIN} {IMAGES} MASKS {{0}} 0.5", f"{TRAIN} {IMAGES} MASKS {{1}} split.txt"),
    ),
    Advice(
        "image is too few", f"{TRAIN} --data.images IMAGES/0.png --data.masks MASKS/0.png",
        r"by (--data\.validation-images) and (--data\.validation-masks), or .* (--overfit)",
        (f"{TRAIN} --data.images IMAGES/0.png --data.masks MASKS/0.png {{0}} IMAGES/1.png "
         "{1} MASKS/1.png",
         f"{TRAIN} --data.images IMAGES/0.png --data.masks MASKS/0.png {{2}}"),
    ),
    Advice(
        "are held out; leave out those", f"{TRAIN} {IMAGES} MASKS --data.split all.txt",
        "leave out those to train on", (f"{TRAIN} {IMAGES} MASKS {SPLIT}",),
    ),
    Advice(
        "balance takes class_weights from the data",
        f"{TRAIN} --loss.balance --loss.class-weights 1 2",
        r"(--loss\.balance) takes (--loss\.class-weights) from the data; leave out either",
        (f"{TRAIN} {{0}}", f"{TRAIN} {{1}} 1 2"),
    ),
    Advice(
        "other images are held out, or to train on, than in the run",
        f"{TRAIN} {IMAGES} MASKS --data.split other.txt --out SPLIT",
        r"bring back those with which it began, or name another (--out)",
        (f"{TRAIN} {IMAGES} MASKS {SPLIT} --out SPLIT",
         f"{TRAIN} {IMAGES} MASKS --data.split other.txt {{0}} NEW"),
    ),
    Advice(
        "a file for PyTorch has the types", "unet convert run.pt back.pt --dtype float16",
        "leave out --dtype", ("unet convert run.pt back.pt",),
    ),
    Advice(
        "finds no group in the name", f"{TRAIN} {IMAGES} MASKS --data.groups ^[0-2]",
        r"3\.png: (--data\.groups) '\^\[0-2\]' finds no group .*; change the expression",
        (f"{TRAIN} {IMAGES} MASKS {{0}} ^[0-9]",),
    ),
    Advice(
        "it is among images and among validation_images",
        f"{TRAIN} {IMAGES} MASKS --data.validation-images IMAGES --data.validation-masks MASKS",
        r"among (--data\.images) and among (--data\.validation-images); take it out of one",
        (f"{TRAIN} {{0}} 'IMAGES/[!0]*' --data.masks 'MASKS/[!0]*' {{1}} 'IMAGES/0*' "
         "--data.validation-masks 'MASKS/0*'",),
    ),
    Advice(
        "balance takes class_weights from the data",
        f"{TRAIN} --loss.balance --loss.class-weights 1 2",
        r"(--loss\.balance) takes (--loss\.class-weights) from the data; leave out either",
        (f"{TRAIN} {{0}}", f"{TRAIN} {{1}} 1 2"),
    ),
    Advice(
        "its 3 channels are not red, green and blue",
        f"{TRAIN} --data.images THREE_CHANNELS --data.masks MASKS",
        r"choose one with (--preprocessing\.channels) in training",
        (f"{TRAIN} --data.images THREE_CHANNELS --data.masks MASKS {{0}} 1",),
    ),
    Advice(
        "it is at step {} already", f"{TRAIN} --start started.safetensors",
        r"it is at step 2 already, and (--steps) 2; give",
        (f"{TRAIN} --start started.safetensors {{0}} 3",),
    ),
    Advice(
        "the start has {}={}, not {}",
        f"{TRAIN} --start cells.safetensors --net.classes 3 --class-names a b c",
        r"the start has net\.classes=2, not 3; leave out (--net\.classes)",
        (f"{TRAIN} --start cells.safetensors",),
    ),
    Advice(
        "both give the input; leave one out", f"{VERIFY} --image IMAGES/0.png --recorded xy.npz",
        "leave one out", (f"{VERIFY} --image IMAGES/0.png",),
    ),
    Advice(
        "name a file and what it defines", f"{VERIFY} --reference nothing",
        r"(--reference net\.py:UNet)", (f"{VERIFY} {{0}}",),
    ),
    Advice(
        "name the weight file of the reference too",
        f"{VERIFY_NET} --reference my_unet.py:UNet --reference-arguments 1,2",
        r"name the weight file of the reference too, which (unet convert) makes",
        ("{0} milesial.pth mine.safetensors --reference my_unet.py:UNet "
         "--reference-arguments 1,2",),
    ),
    Advice(
        "--certificate needs the exact proof",
        f"{VERIFY_NET} --config.norm batch --certificate new.json", "leave it out",
        (f"{VERIFY_NET} --config.norm batch",),
    ),
    Advice(
        "the certificate is of an architecture, and of no weights",
        "unet check net.json cells.safetensors --framework torch",
        r"leave the weight file out, or make one for it: (unet verify) WEIGHTS --certificate NEW",
        ("unet check net.json --framework torch",
         "{0} cells.safetensors --steps 0 --no-other-sizes --certificate new.json"),
    ),
    Advice(
        "{} is of a U-Net here, and --port of any net; leave one out",
        f"{VERIFY} --reference pair.py:net --inputs own.npz --port pair.py:port",
        r"WEIGHTS is of a U-Net here, and (--port) of any net; leave one out",
        ("unet verify --steps 0 --reference pair.py:net --inputs own.npz --convert pair.py:convert"
         " {0} pair.py:port",),
    ),
    Advice(
        "{} is of a port of your own; give --port or --convert too",
        "unet verify --reference pair.py:net --inputs own.npz",
        r"--inputs is of a port of your own; give (--port) or (--convert) too",
        ("unet verify --steps 0 --reference pair.py:net --inputs own.npz {0} pair.py:port "
         "{1} pair.py:convert",),
    ),
    Advice(
        "a recording of a net, not a weight file", "unet verify ours.safetensors",
        r"compare it with the other side's: (unet verify --recorded) ours\.safetensors",
        ("{0} ours.safetensors linear.safetensors",),
    ),
    Advice(
        "it is no certificate; name a file that", "unet check own.npz",
        r"name a file that (unet verify) (--certificate) wrote",
        ("{0} cells.safetensors --steps 0 --no-other-sizes {1} named.json",
         "unet check named.json cells.safetensors --framework torch"),
    ),
    Advice(
        "--recorded takes two recordings of a pair", "unet verify --recorded ours.safetensors",
        r"(--recorded) takes two recordings of a pair, .* got 1; give both",
        ("unet verify {0} ours.safetensors linear.safetensors",),
    ),
    Advice(
        "stands beside recordings, which say all by themselves",
        "unet verify --recorded ours.safetensors linear.safetensors --steps 3",
        r"--steps stands beside recordings, .*; leave it out",
        ("unet verify --recorded ours.safetensors linear.safetensors",),
    ),
    Advice(
        "--recorded takes one .npz with an output", f"{VERIFY} --recorded cells.npz own.npz",
        r"(--recorded) takes one \.npz .* got 2 files; give one \.npz",
        (f"{VERIFY} {{0}} cells.npz",),
    ),
    Advice(
        "no recording of a training run, which RunRecorder writes",
        "unet verify --recorded first.jsonl again.jsonl own.npz",
        r"give three of them: (unet verify --recorded) FIRST\.jsonl AGAIN\.jsonl REPLAY\.jsonl",
        ("{0} first.jsonl again.jsonl replay.jsonl",),
    ),
    Advice(
        "unet verify --recorded FIRST.jsonl AGAIN.jsonl REPLAY.jsonl",
        "unet verify --recorded first.jsonl again.jsonl",
        r"got 2; give .*: (unet verify --recorded) FIRST\.jsonl AGAIN\.jsonl REPLAY\.jsonl",
        ("{0} first.jsonl again.jsonl replay.jsonl",),
    ),
    Advice(
        "do not tell them apart; name them with --names",
        "unet verify --recorded first.jsonl again.jsonl codes.jsonl",
        r"may be up\.bias, down\.bias of .*; name them with (--names)",
        ("unet verify --recorded first.jsonl again.jsonl codes.jsonl {0} codes.toml",),
    ),
)  # fmt: skip
OTHERWISE = {
    "or name the tensors with --names": "a row with --recorded above names tensors",
    "whose layers are defined in another order": "test_foreign_run.py gives such a net's code",
    "the original drops values in training": "a training with --net.dropout is in test_train.py",
    "there is no file {}; name it": "the rows with --reference above name one",
    "is only a part of its net": "the rows with --reference above name a whole net",
    "their paddings or their classes differ": "test_own_module.py gives it such a net",
    "or name a size that it takes with --size": "test_own_module.py gives it sizes",
    "store each class as": "storing masks anew is no command; MASKS above are stored so",
    "no line gives": "docs/your-own-net.md has a whole map, and its test takes it",
    "two lines give": "docs/your-own-net.md has a whole map, and its test takes it",
    "these are not the slides' names": "test_recognition.py reads such a file in Python",
    "it runs on no small image": "the row with --recorded above",
    "the averaged weights are left out": "test_foreign_run.py takes them with --weights-only",
    "--report PAGE.html or --json FILE shows": "the README has both flags, and its test runs them",
    "is not known yet; give it": "test_a_schedule_gets_its_length_as_the_message_says does it",
    "numpy.savez": "test_a_recording_is_made_as_the_message_says runs it",
    "pip install 'unet-twins[{}]'": "test_installed.py runs it where it is missing",
    "git lfs pull": "it needs a server that has the file",
    "no chip of that name is known": "test_plan.py reads these names",
    "has no such slice": "test_plan.py reads these names",
    "takes a number, as in": "test_plan.py reads these names",
    "needs at least one name, such as": "test_plan.py reads these names",
    "the compiler refuses it": "the names that are left are those that it takes",
    "neither JAX nor PyTorch is installed": "test_installed.py has what is missing",
    "a certificate of format {}, and this version reads": "there is no newer format yet",
    "is not installed; install it: pip install": "`make` installs it as a part of '.[test]'",
    "devices; ask for no more": "test_plan.py asks for as many as there are",
    "too few; {}": "test_a_plan_that_does_not_fit_says_by_how_much does it",
    "of which --largest finds the largest": "test_plan.py has the search",
    "which keeps the batch": "test_advice_makes_a_plan_fit has it",
    "the device has too little memory": "it needs a device that is full",
    "of memory, and {} are free": "test_memory.py has runs that fit and others",
    "that all processes see": "it needs machines with file systems of their own",
    "coordinator and process belong": "test_processes.py starts processes with both",
    "but the cluster has {}": "it needs a cluster manager",
    "processes did not find each other": "test_processes.py starts processes that do",
    "this process cannot listen": "it needs a second port; test_processes.py starts processes",
    "another command is predicting there": "waiting is no command, and --out is named above",
    "another command is training there": "waiting is no command, and --out is named above",
    "it should say how the run began": "--out is named above",
    "it holds weights, and no checkpoint": "--out is named above",
    "and the run has a file of this name": "test_run_folder.py puts folders and pipes there",
    "and the run has a folder of this name": "test_run_folder.py puts files there",
    "it cannot be read and written": "benchmarks/bad_days.py closes folders for another user",
    "which no run writes": "--out is named above",
    "other images are held out": "test_run_folder.py exchanges the sides of a split",
    "it leaves no image for": "test_split.py has files that leave some",
    "another command has just trained there": "the same command again is in test_train.py",
    "begins with the last good weights": "test_a_diverged_run_starts_again_as_the_message_says",
    "its averaged weights are left out": "test_start.py starts with --ema and without",
    "takes too long on these names": "test_split.py has such an expression; it takes seconds",
    "say what is read; give both": "the command refuses one of them alone before",
}
"""Advice that is not followed here, with the reason."""


def is_advice(message: Message) -> bool:
    """Whether a message says what to do, and not only what is wrong: the remedy stands last."""
    return "; " in message.text or re.search(r"\bunet [a-z]+ |pip install|git lfs", message.text) \
        is not None  # fmt: skip


def test_every_message_that_advises_is_followed_or_says_why_not():
    known = [row.code for row in ADVICE] + list(OTHERWISE)
    advice = [message for message in shown.messages() if is_advice(message)]
    unknown = [m for m in advice if not any(code in m.text for code in known)]
    assert not unknown, "\n".join(f"{m.place}: {m.text}" for m in unknown)
    every = " ".join(sentence.text for sentence in shown.sentences())
    assert [code for code in known if code not in every] == []


def test_every_field_that_an_error_marks_is_one_of_its_config():
    """A misspelt one would only be met when somebody gets the error."""
    marks = [mark for error in shown.config_errors() for mark in error.marks]
    assert {"data.batch", "net.padding", "schedule.max_lr", "widths", "window_px"} <= {*marks}
    unknown = [
        (error.place, mark)
        for error in shown.config_errors()
        for mark in error.marks
        if not any(has_field(owner, mark) for owner in error.owners)
    ]
    assert unknown == []


def test_a_field_stands_in_no_sentence_but_as_a_mark_so_the_command_line_can_name_its_flag():
    fields = "|".join(map(re.escape, shown.run_fields()))
    plain = re.compile(rf"(?<![-\w.{{])({fields})\b")
    texts = {m.place: m.text for m in shown.sentences() if not m.names_fields}
    texts |= {error.place: error.template for error in shown.config_errors()}
    assert [(place, text) for place, text in texts.items() if plain.search(text)] == []


def has_field(owner: Any, path: str) -> bool:
    """Return whether a path of names leads to a field of a dataclass."""
    first, _, rest = path.partition(".")
    types = {field.name: field.type for field in dataclasses.fields(owner)}
    return first in types and (not rest or has_field(types[first], rest))


def test_every_flag_that_a_message_names_is_one_of_the_command():
    unknown = [
        (message.place, flag)
        for message in shown.messages()
        for flag in re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", message.text)
        if flag not in shown.flags() and flag not in ("--config", "--schedule")
    ]
    assert unknown == []


@pytest.fixture
def folder(tmp_path_factory, advice_folder):
    copy = tmp_path_factory.mktemp("advice") / "here"
    shutil.copytree(advice_folder, copy)
    return copy


@pytest.fixture(scope="session")
def advice_folder(tmp_path_factory):
    """Data sets of four images, weight files and checkpoints that the commands name."""
    here = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    colours = np.array([(0, 0, 0), (255, 0, 0)], np.uint8)
    for index in range(4):
        image = rng.integers(0, 255, (40, 48, 3), np.uint8)
        cells = (image[..., 0] > 127).astype(np.uint8)
        one = np.zeros_like(cells)
        one[:2, :3] = index == 0
        pictures = {
            "IMAGES": image[..., 0], "IN_COLOUR": image, "MASKS": 255 * cells,
            "WITH_255": np.where(image[..., 1] > 250, 255, cells).astype(np.uint8),
            "OF_254": 254 * cells, "FROM_1": cells + 1, "UP_TO_2": cells + (image[..., 1] > 250),
            "NUMBERS": image[..., 1], "COLOURS": colours[cells], "IN_ONE": one,
        }  # fmt: skip
        for name, pixels in pictures.items():
            (here / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(here / name / f"{index}.png")
        for name, count in (("TWO_CHANNELS", 2), ("THREE_CHANNELS", 3)):
            (here / name).mkdir(exist_ok=True)
            planes = np.moveaxis(image[..., :count], -1, 0)
            tifffile.imwrite(
                here / name / f"{index}.tif", planes, metadata={"axes": "CYX"},
                photometric="minisblack",
            )  # fmt: skip
        (here / "TOGETHER").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(here / "TOGETHER" / f"{index}_img.png")
        Image.fromarray(cells).save(here / "TOGETHER" / f"{index}_masks.png")
        (here / "BELOW_0").mkdir(exist_ok=True)
        tifffile.imwrite(here / "BELOW_0" / f"{index}.tif", cells.astype(np.int16) - 1)
    (here / "split.txt").write_text("0.png\n")
    (here / "other.txt").write_text("1.png\n")
    (here / "all.txt").write_text("".join(f"{index}.png\n" for index in range(4)))
    net = unet_torch.UNet(UNetConfig(widths=(4, 6)))
    unet_torch.save(net, here / "cells.safetensors")
    torch.save(net.state_dict(), here / "model.pth")
    x = torch.ones(1, 1, 12, 16).cumsum(3) / 16
    np.savez(here / "cells.npz", x=x.numpy(), y=net(x).detach().numpy())
    _save_pair(here)
    bare = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    (here / "bare.safetensors").write_bytes(safetensors_of(bare))
    for name, config in {
        "group": UNetConfig(widths=(4, 6), norm="group", groups=2),
        "bilinear": UNetConfig(widths=(4, 6), up="bilinear"),
    }.items():
        torch.save(unet_torch.UNet(config).state_dict(), here / f"{name}.pth")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    amsgrad = torch.optim.Adam(net.parameters(), amsgrad=True)
    for name, moments in {"run": optimizer, "amsgrad": amsgrad}.items():
        content = {"model": net.state_dict(), "optimizer": moments.state_dict(), "step": 2}
        torch.save(content, here / f"{name}.pt")
    _save_schedules(here, net)
    (here / "net.py").write_text(
        "import unet_torch\nfrom unet_spec import UNetConfig\n\n"
        "def UNet():\n    return unet_torch.UNet(UNetConfig(widths=(4, 6)))\n"
    )
    _save_foreign(here)
    _save_runs(here)
    for command in (f"{TRAIN} --out OLD", f"{TRAIN} {IMAGES} MASKS {SPLIT} --out SPLIT",
                    "unet convert run.pt started.safetensors",
                    f"{VERIFY_NET} --certificate net.json",
                    "unet predict cells.safetensors IMAGES --out PREDICTED"):  # fmt: skip
        done = run_unet(command, here)
        assert done.status == 0, done.text
    return here


def _save_pair(here: Path) -> None:
    """Record both sides of a pair."""
    reference, x = torch.nn.Linear(3, 2), np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    record(here / "linear.safetensors", reference, inputs=[x], seeds=1, steps=0)
    record(
        here / "ours.safetensors", lambda params, x: x @ params["w"] + params["b"],
        like=here / "linear.safetensors",
        convert=lambda state: {"w": state["weight"].T, "b": state["bias"]},
    )  # fmt: skip


def _save_foreign(here: Path) -> None:
    """Save a net of other names, its code, a pair, and a net with a family's names."""
    net = NETS["FlatStages"]
    module = net.make()
    torch.save(module.state_dict(), here / "theirs.pth")
    (here / "pair.py").write_text(
        "from torch import nn\n\nnet = nn.Linear(3, 2)\n\n\n"
        "def port(params, x):\n    return x @ params['w'] + params['b']\n\n\n"
        "def convert(state):\n    return {'w': state['weight'].T, 'b': state['bias']}\n"
    )
    np.savez(here / "own.npz", np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
    (here / "theirs.py").write_text(
        "from parity_tests.foreign_nets import NETS\n\n"
        "def Net(seed):\n    return NETS['FlatStages'].make()\n"
    )
    x = torch.ones(1, net.config.in_channels, *net.size).cumsum(3) / 9
    np.savez(here / "pair.npz", x=x.numpy(), y=module(x).detach().numpy())
    document = shown.ROOT / "docs" / "your-own-net.md"
    (code,) = [block for block in shown.blocks(document) if block.file == "my_unet.py"]
    (here / "my_unet.py").write_text(code.text)
    milesial: dict[str, Any] = {}
    exec(compile(code.text, code.name, "exec"), milesial)
    theirs = milesial["UNet"](1, 2)
    torch.save(theirs.state_dict(), here / "milesial.pth")
    for parameter in theirs.parameters():
        parameter.grad = torch.ones_like(parameter)
    schedulers = torch.optim.lr_scheduler
    for name, optimizer in {
        "lambda": torch.optim.Adam(theirs.parameters()),
        "sgd": torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9),
    }.items():
        scheduler: Any = schedulers.StepLR(optimizer, 5)
        if name == "lambda":
            scheduler = schedulers.LambdaLR(optimizer, lambda _: 1.0)
        for _ in range(4):
            optimizer.step()
        for _ in range(2):
            scheduler.step()
        content = {
            "state_dict": theirs.state_dict(), "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }  # fmt: skip
        torch.save(content, here / f"{name}.pt")
        torch.save({**content, "step": 4}, here / f"{name}_step.pt")


def _save_schedules(here: Path, net: unet_torch.UNet) -> None:
    """Save runs of Adam in torch whose schedules count other steps, or watch a value."""
    schedulers = torch.optim.lr_scheduler
    optimizer = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    watched = {
        "rising": schedulers.ReduceLROnPlateau(optimizer, "max"),
        "falling": schedulers.ReduceLROnPlateau(optimizer, "min"),
    }
    steps = schedulers.StepLR(optimizer, 5)
    for _ in range(4):
        optimizer.step()
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    for name, scheduler in watched.items():
        for value in (0.1, 0.2):
            scheduler.step(value)
        torch.save({**content, "scheduler": scheduler.state_dict()}, here / f"{name}.pt")
    torch_state.save(here / "rising.safetensors", net, optimizer, watched["rising"])
    scaled: dict[str, Any] = {"scaler": {"scale": 65536.0}}
    for name, last_epoch, beside in (
        ("skipped", 5, {}), ("middle", 3, {}), ("end", 2, {}),
        ("scaled", 2, scaled), ("scaled_step", 2, {**scaled, "step": 4}),
    ):  # fmt: skip
        state = {**steps.state_dict(), "last_epoch": last_epoch}
        torch.save({**content, "scheduler": state, **beside}, here / f"{name}.pt")


def _save_runs(here: Path) -> None:
    """Record a run, the same with other rounding, and two replays, of which one has codes as
    names."""
    for name, kernel, biases, rounding in (
        ("first", "up.weight", ("up.bias", "down.bias"), 0.0),
        ("again", "up.weight", ("up.bias", "down.bias"), 1e-7),
        ("replay", "up.weight", ("up.bias", "down.bias"), 2e-7),
        ("codes", "p0", ("p1", "p2"), 2e-7),
    ):
        tensors = {kernel: np.ones((2, 3)), **{bias: np.zeros(3) for bias in biases}}
        recorder = RunRecorder(here / f"{name}.jsonl", tensors)
        gradients = {n: np.full(a.shape, 1 + rounding) for n, a in tensors.items()}
        recorder.record(0.5, {n: a - gradients[n] for n, a in tensors.items()}, gradients)
    (here / "codes.toml").write_text('"up.weight" = "p0"\n"up.bias" = "p1"\n"down.bias" = "p2"\n')


def safetensors_of(tensors: dict[str, np.ndarray]) -> bytes:
    """A stock safetensors file of these tensors, without a word about the net."""
    from safetensors.numpy import save

    return save(tensors)


@pytest.mark.parametrize("row", ADVICE, ids=lambda row: row.code[:40])
def test_what_a_message_advises_is_not_refused(folder, row):
    done = run_unet(_with_output(row.command, "FIRST"), folder, compiles=row.whole)
    assert done.status == row.status, done.text
    match = re.search(row.says, done.text)
    assert match is not None, done.text
    for index, command in enumerate(row.advised):
        command = _with_output(command.format(*match.groups()), f"ADVISED_{index}")
        done = run_unet(command, folder, compiles=row.whole)
        assert done.status == 0, f"{command}: {done.text}"


def _with_output(command: str, out: str) -> str:
    """A training command with a folder of its own, where it names none."""
    if command.startswith("unet train") and "--out" not in command:
        return f"{command} --out {out}"
    return command


def test_a_recording_is_made_as_the_message_says(folder, monkeypatch):
    (folder / "xy.npz").write_bytes(b"no zip")
    done = run_unet(f"{VERIFY} --recorded xy.npz", folder)
    assert (done.status, "not a whole .npz file; record it" in done.text) == (2, True)
    x = np.random.default_rng(0).normal(size=(1, 1, 12, 16)).astype(np.float32)
    np.savez(folder / "xy.npz", x)
    done = run_unet(f"{VERIFY} --recorded xy.npz", folder)
    advice = re.search(r"numpy\.savez\(FILE, x=x, y=y\)", done.text)
    assert advice is not None, done.text
    y = unet_torch.load(folder / "cells.safetensors")(torch.from_numpy(x)).detach().numpy()
    eval(advice[0], {"numpy": np, "FILE": folder / "xy.npz", "x": x, "y": y})
    assert run_unet(f"{VERIFY} --recorded xy.npz", folder).status == 0


def test_a_schedule_gets_its_length_as_the_message_says():
    recipe = Recipe(schedule=Schedule("cosine"))
    with pytest.raises(InputError) as refusal:
        recipe.check_complete()
    advice = re.search(r"use (recipe\.for_steps\(steps\))", str(refusal.value))
    assert advice is not None
    eval(advice[1], {"recipe": recipe, "steps": 7}).check_complete()


def test_a_diverged_run_starts_again_as_the_message_says(folder):
    """After two steps with a rate of 200 the outputs are finite, and the gradients are not."""
    rate = "--schedule.name constant --optimizer.lr 200 --validate-every 1 --steps 4"
    done = run_unet(f"{TRAIN} {rate} --out DIVERGED", folder)
    advice = re.search(r"(--start \S+) begins with the last good weights", done.text)
    assert done.status == 2
    assert advice is not None, done.text
    assert run_unet(f"{TRAIN} {advice[1]} --out NEW", folder, compiles=False).status == 0
