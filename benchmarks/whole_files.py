"""Small whole files of every kind that the project reads, for `wrong_input` to damage."""

import io
import json
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from unet_spec import UNetConfig, training_state, weight_file
from unet_spec.parameters import Parameter, parameters
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import checkpoint
from unet_torch import training_state as torch_state

NET = UNetConfig(widths=(2, 3), norm="batch")
HEIGHT, WIDTH = 24, 20
RUN_FILES = ("config.json", "data.json", "start.json", "metrics.jsonl")


def write_images(folder: Path) -> list[Path]:
    """Write one image of every kind, and return their paths."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    colour = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    deep = rng.integers(0, 65535, (HEIGHT, WIDTH), np.uint16)
    real = rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    stack = rng.integers(0, 255, (3, HEIGHT, WIDTH), np.uint8)
    pictures = {
        "gray.png": Image.fromarray(gray),
        "colour.png": Image.fromarray(colour),
        "palette.png": Image.fromarray(gray).convert("P"),
        "alpha.png": Image.fromarray(np.dstack([colour, gray])),
        "deep.png": Image.fromarray(deep),
        "bits.png": Image.fromarray(gray > 127),
        "colour.jpg": Image.fromarray(colour),
        "gray.jpeg": Image.fromarray(gray),
        "gray.gif": Image.fromarray(gray),
        "colour.webp": Image.fromarray(colour),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    tifffile.imwrite(folder / "gray.tif", gray)
    tifffile.imwrite(folder / "real.tif", real)
    tifffile.imwrite(folder / "deep_lzw.tif", deep, compression="lzw")
    tifffile.imwrite(folder / "tiles.tiff", colour, tile=(16, 16), compression="zlib")
    tifffile.imwrite(folder / "stack.tif", stack, photometric="minisblack")
    tifffile.imwrite(folder / "imagej.tif", stack, imagej=True)
    tifffile.imwrite(folder / "big.tif", gray, bigtiff=True)
    pictures["gray.png"].convert("P").save(folder / "palette.tif")
    np.save(folder / "gray.npy", gray)
    np.save(folder / "real.npy", real)
    return sorted(path for path in folder.iterdir())


def draw_weights(seed: int = 0) -> WeightFile:
    """Draw weights of a small net."""
    rng = np.random.default_rng(seed)

    def draw(parameter: Parameter) -> np.ndarray:
        if parameter.kind == "count":
            return np.array(3, np.int64)
        return np.abs(rng.normal(size=parameter.shape)).astype(np.float32)

    return WeightFile(NET, {p.name: draw(p) for p in parameters(NET)}, class_names=("a", "b"))


def draw_run() -> TrainingState:
    """Draw a run of a small net, at step 2."""
    weights = draw_weights()
    recipe = Recipe(Optimizer("adam", lr=1e-3)).for_steps(4)
    slots = {
        slot: {p.name: weights.tensors[p.name] for p in training_state.trained(weights)}
        for slot in recipe.slots
    }
    return TrainingState(weights, recipe, 2, slots, {"lr": 1e-3, "last_epoch": 2})


def write_weights(folder: Path) -> list[Path]:
    """Write one file of weights of every kind, and return their paths."""
    weights, run = draw_weights(), draw_run()
    state = {name: torch.from_numpy(np.array(t)) for name, t in weights.tensors.items()}
    weight_file.write(folder / "weights.safetensors", weights)
    training_state.write(folder / "run.safetensors", run)
    save_file({n: t.bfloat16() for n, t in state.items()}, folder / "foreign.safetensors")
    checkpoint.write(folder / "weights.pt", weights.tensors)
    torch_state.write(folder / "run.pt", run)
    for name in ("weights", "run"):
        content = torch.load(folder / f"{name}.pt", weights_only=True)
        path = folder / f"{name}_legacy.pt"
        torch.save(content, path, _use_new_zipfile_serialization=False)
    return sorted(folder.iterdir())


def write_run(folder: Path) -> list[Path]:
    """Write the RUN of a training that has begun, and return the files that say how."""
    from unet_train.config import CELLS
    from unet_train.input.dataset import open_dataset
    from unet_train.run import folder as run_folder

    run = draw_run()
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_beginning(
        folder,
        CELLS,
        dataset=open_dataset(CELLS),
        started={"settings": [], "sha256": None, "origin": None},
    )
    (folder / run_folder.CHECKPOINTS).mkdir()
    training_state.write(training_state.checkpoint_path(folder / "checkpoints", 2), run)
    lines: list[dict[str, object]] = [
        {"step": 1, "kind": "train", "loss": 0.7, "lr": 1e-3},
        {"step": 2, "kind": "validation", "mean_image_iou": 0.5},
    ]
    text = io.StringIO()
    for line in lines:
        print(json.dumps(line), file=text)
    (folder / "metrics.jsonl").write_text(text.getvalue())
    return [folder / name for name in RUN_FILES]
