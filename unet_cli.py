"""The command `unet`: one verb, one function. Frameworks are imported inside the verbs."""

import contextlib
import dataclasses
import errno
import functools
import importlib.util
import io
import json as json_format
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from unet_spec import InputError, UNetConfig
from unet_spec.environment import need
from unet_spec.files import atomic_write, refuse_existing

Json = Annotated[Path | None, arg(metavar="FILE")]

TOO_LARGE = (
    "the device has too little memory for this run; lower --data.batch or --data.crop-px, or give "
    "--accumulate or --remat; if that was a validation, cut the largest images into parts: a net "
    "with norm group or instance has to see each whole"
)
# what JAX's errors of exchanges between processes name, and those of a device do not
OF_EXCHANGES = re.compile(
    "gloo|nccl|coordinat|barrier|heartbeat|unavailable|deadline|socket|connection|cancelled|abort",
    re.IGNORECASE,
)


def main() -> None:
    """Run a verb; wrong input ends in one sentence and status 2."""
    try:
        status = _parsed(sys.argv[1:])()
    except (InputError, OSError) as error:
        print(f"unet: {_sentence(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("unet: interrupted; what was written before is whole", file=sys.stderr)
        status = 130
    sys.exit(status)


def _parsed(arguments: list[str]) -> Callable[[], int]:
    """The verb that the arguments name, ready to run.

    Raises:
        InputError: of a config; tyro itself would draw a box around it.
    """
    verbs: dict[str, Callable[..., int]] = {
        "demo": demo,
        "train": _train_verb(arguments),
        "predict": predict,
        "convert": convert,
        "verify": verify,
        "bench": bench,
    }
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _later(verb) for name, verb in verbs.items()},
                args=arguments,
                prog="unet",
                description="One U-Net in PyTorch and JAX, proven the same.",
                config=(tyro.conf.CascadeSubcommandArgs,),
            )
    except SystemExit as ended:
        cause: BaseException | None = ended
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(told.getvalue())
        raise


def _later(verb: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The verb, to be run after its arguments are parsed."""

    @functools.wraps(verb)
    def ready(*arguments: Any, **named: Any) -> Callable[[], int]:
        return functools.partial(verb, *arguments, **named)

    return ready


def verify(
    weights: Positional[Path | None] = None,
    /,
    *,
    config: UNetConfig = UNetConfig(),
    size: Annotated[tuple[int, int] | None, arg(metavar="H W")] = None,
    image: Path | None = None,
    recorded: Annotated[Path | None, arg(metavar="FILE.npz")] = None,
    reference: Annotated[str | None, arg(metavar="FILE.py:NAME")] = None,
    steps: int = 10,
    precision: Literal["highest", "high", "default"] = "highest",
    report: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    json: Json = None,
) -> int:
    """Prove that both frameworks compute the same; status 1 if they do not.

    Args:
        weights: a weight file; without it an architecture is proven, with both paddings.
        config: the architecture, where no weight file says it.
        size: height and width in pixels of the compared random inputs, also in the exact proof and
            the training steps; small ones without it.
        image: compare on its middle, up to 256x256, in place of random numbers.
        recorded: compare on its array x, and judge its array y, a float32 output of the same net.
        reference: a torch module of your own with the same names, in place of unet_torch's.
        steps: of training, side by side; 0 for none.
        precision: of JAX's products, for accelerators.
        report: write the page there: every module, gradient and step, with pictures.
        json: write the whole report there.
    """
    _check_json(json)
    _check_target(report, ".html")
    need("jax", "torch", *(["images"] if image or report else []))
    sources = {"--size": size, "--image": image, "--recorded": recorded}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} both give the input; leave one out")
    if steps < 0:
        raise InputError(f"--steps needs at least 0, got {steps}")
    from rich.console import Console

    from unet_convert import refuse_contradiction
    from unet_parity import inputs, verify
    from unet_parity import report as tables
    from unet_spec import Preprocessing, weight_file

    loaded = None if weights is None else weight_file.read(weights)
    if loaded is not None:
        refuse_contradiction(config, loaded.config, source=weights)
        config = loaded.config
    if size is not None:
        inputs.check_size(config, size)
    x = y = None
    if image is not None:
        import unet_image

        preprocessing = loaded.preprocessing if loaded else Preprocessing()
        x = inputs.crop_middle(unet_image.read_pages(image)[0], config, preprocessing, source=image)
    if recorded is not None:
        x, y = inputs.read_recorded(recorded, config)
    console = Console()
    found = verify.verify(
        config,
        weights=loaded,
        x=x,
        size=size,
        recorded=y,
        reference=None if reference is None else inputs.read_reference(reference, config),
        steps=steps,
        jax_precision=precision,
        say=lambda text: console.print(text, highlight=False),
    )
    tables.show(found, console)
    if report is not None:
        from unet_parity import page

        with atomic_write(report) as stream:
            stream.write(page.make_page(found, command=_command()).encode())
        console.print(f"the page: {report}", markup=False)
    _write_json(json, found.to_json())
    return int(found.verdict == "different")


def predict(
    weights: Positional[Path],
    images: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    framework: Literal["jax", "torch"] | None = None,
    json: Json = None,
) -> int:
    """Segment images of any size: a mask and an overlay picture for each.

    Args:
        weights: a weight file.
        images: image files (PNG, JPEG, TIFF, TIFF stacks) or folders of them.
        out: folder for NAME_mask.png (class indices) and NAME_overlay.png.
        framework: which of the twins predicts; by default JAX where it is installed.
        json: write there what was written where.
    """
    _check_json(json)
    if not images:
        raise InputError("no image given; name image files or folders after the weights")
    need("images")
    from unet_image import list_images, overlay, read_pages, write_mask, write_picture

    model, run = _predictor(weights, framework)
    rows: list[dict[str, Any]] = []
    paths = [path for image in images for path in list_images(image)]
    refuse_existing(out)
    pages = {path: len(read_pages(path)) for path in paths}  # all are whole before any is written
    names = _unique_names(pages)
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        for page, image in enumerate(read_pages(path)):
            name = names[path, page]
            try:
                mask = run(model, image)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            write_mask(out / f"{name}_mask.png", mask)
            write_picture(out / f"{name}_overlay.png", overlay(image, mask))
            shares = [float((mask == c).mean()) for c in range(model.config.classes)]
            rows.append(
                {"image": str(path), "page": page, "mask": f"{name}_mask.png",
                 "height": mask.shape[0], "width": mask.shape[1], "class_shares": shares}
            )  # fmt: skip
            percent = ", ".join(f"{share:.1%}" for share in shares[1:])
            print(f"{path} {mask.shape[0]}x{mask.shape[1]} -> {name}_mask.png ({percent})")
    _write_json(json, {"out": str(out), "images": rows})
    return 0


def convert(
    source: Positional[Path],
    target: Positional[Path],
    /,
    *,
    config: UNetConfig = UNetConfig(),
    dtype: Literal["float16", "float32", "float64"] = "float32",
    json: Json = None,
) -> int:
    """Turn a PyTorch checkpoint (.pt, .pth) into a weight file (.safetensors), or the reverse;
    with its optimizer into a folder that JAX trains on from, or the reverse.

    Args:
        source: .pt, .pth or .safetensors, or the folder of a run.
        target: likewise, a folder being a name without suffix; must not exist. A .pt holds a
            plain state_dict, or those of model, optimizer and scheduler.
        config: the axes that no tensor shows (padding, concat, activation, ...).
        dtype: of the tensors in a .safetensors target.
        json: write the report there.
    """
    _check_json(json)
    import unet_convert

    _write_json(json, unet_convert.convert(source, target, config=config, dtype=dtype))
    return 0


def bench(*, quick: bool = False, json: Json = None) -> int:
    """Time the same net in both frameworks on this device, and our layers against Flax's.

    Args:
        quick: small nets only.
        json: write the rows there.
    """
    _check_json(json)
    need("jax", "torch")
    from rich.console import Console

    from unet_bench import bench

    console = Console()
    result = bench.bench(quick=quick, say=lambda text: console.print(text))
    bench.show(result, console)
    _write_json(json, result)
    return 0


def demo(*, out: Path = Path("demo_run"), json: Json = None) -> int:
    """The whole way on synthetic cells: train in JAX, open in PyTorch, verify, predict, and one
    HTML page with the pictures.

    Args:
        out: folder for the run and the page; must not exist.
        json: write what was found there.
    """
    _check_json(json)
    need("torch", "train")
    from unet_demo import run

    found = run.run(out, command=_command())
    _write_json(json, found)
    return int(found["verdict"] == "different")


def _train_verb(arguments: list[str]) -> Callable[..., int]:
    """`unet train PRESET`, with the presets' values as the defaults of its flags."""
    from unet_train.config import PROMISES, presets

    known = ", ".join(PROMISES)
    if arguments[:1] == ["train"] and not {*PROMISES, "-h", "--help"} & {*arguments}:
        raise InputError(f"train needs a preset, one of {known}: unet train nuclei --out RUN ...")
    named = {part: _given(f"--{part}.name") for part in ("optimizer", "schedule")}
    preset = tyro.extras.subcommand_type_from_defaults(
        presets(**named), PROMISES, prefix_names=False
    )

    def train(
        config: Annotated[preset, arg(name="")],  # type: ignore[valid-type]
        *,
        out: Path,
        overfit: bool = False,
        json: Json = None,
    ) -> int:
        """Train on folders of images and masks, or on synthetic cells; the same command again
        goes on where it stopped.

        Args:
            config: a preset; its flags change it.
            out: folder for checkpoints, weight files, config, metrics, pictures and report.html.
            overfit: only see whether the net can learn the first batch by heart, and write nothing;
                status 1 if not.
            json: write the scores there.
        """
        return _train(config, out=out, overfit=overfit, json=json)

    return train


def _given(flag: str) -> str | None:
    """The value of a flag, before all flags are parsed."""
    words = [part for word in sys.argv[1:] for part in word.split("=", 1)]
    values = [value for name, value in pairwise(words) if name == flag]
    return values[-1] if values else None


def _train(config: Any, *, out: Path, overfit: bool, json: Path | None) -> int:
    """A run of `unet_train.config.TrainConfig`."""
    _check_json(json)
    need("train")
    if config.start is None and config.schedule.name == "one_cycle" and _given("--optimizer.lr"):
        raise InputError(
            "--optimizer.lr counts nothing with the schedule one_cycle, whose peak is "
            "--schedule.max-lr; give that"
        )
    from unet_train import signals, supervise

    if config.mesh.processes > 1 and not supervise.is_watched():
        status, reason = supervise.watched(sys.argv[1:])
        if reason is not None:
            print(f"unet: {reason}", file=sys.stderr)
        return status
    if supervise.is_watched():
        supervise.die_with_the_parent()
    with signals.obeyed_at_once() if config.mesh.processes == 1 else contextlib.nullcontext():
        return _trained(config, out=out, overfit=overfit, json=json)


def _trained(config: Any, *, out: Path, overfit: bool, json: Path | None) -> int:
    """Likewise, in this process."""
    _keep_compilations()
    import jax
    from rich.console import Console

    from unet_train import loop, mesh, run_folder
    from unet_train.config import to_plain
    from unet_train.overfit import overfit as learns
    from unet_train.progress import Progress

    try:
        if config.mesh.processes > 1:
            print(f"waiting for all {config.mesh.processes} processes", flush=True)
        mesh.connect(config.mesh)
        lead = jax.process_index() == 0
        json = json if lead else None
        progress = Progress(Console(quiet=not lead))
        if overfit:
            learned = learns(config, progress=progress)
            _write_json(json, {"learned": learned, "config": to_plain(config)})
            return int(not learned)
        result = loop.run(config, out, progress=progress, command=_command())
    except BaseException as error:
        return _failed(error)
    if result.stopped_by is not None:
        print(
            f"{result.stopped_by}: stopped at step {result.step} of {config.steps}, nothing is "
            "lost; the same command goes on from there",
            file=sys.stderr,
        )
    else:
        print(
            f"{result.weights}: validation IoU {result.mean_image_iou:.3f} (mean of images), "
            f"{result.seconds:.0f} s"
        )
        print(f"the page: {out / run_folder.PAGE}")
    _write_json(json, {**dataclasses.asdict(result), "config": to_plain(config)})
    return 0 if result.stopped_by is None else 128 + signal.Signals[result.stopped_by]


def _failed(error: BaseException) -> int:
    """The exit status of a run that an error ended; of several processes, this one ends here."""
    import jax

    from unet_train import supervise

    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        error = InputError(TOO_LARGE)
    if isinstance(error, (InputError, OSError)):
        print(f"unet: {_sentence(error)}", file=sys.stderr)
        supervise.leave(2)
        return 2
    if supervise.is_watched():
        if isinstance(error, jax.errors.JaxRuntimeError) and OF_EXCHANGES.search(str(error)):
            seen = " ".join(str(error).split())[:200]
            print(f"unet: {supervise.DIED} (seen here: {seen})", file=sys.stderr)
            supervise.leave(supervise.LOST)
        traceback.print_exception(error)
        supervise.leave(1)
    raise error


def _keep_compilations() -> None:
    """Let JAX keep what it compiles in the user's cache, for the next start of a run."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "unet-twins" / "jax"))


def _predictor(weights: Path, framework: str | None) -> tuple[Any, Callable[[Any, Any], Any]]:
    """A loaded model and the function that predicts with it."""
    if framework is None:
        framework = "jax" if importlib.util.find_spec("jax") else "torch"
    need(framework)
    if framework == "jax":
        import unet_jax

        return unet_jax.load(weights), unet_jax.predict
    import unet_torch

    return unet_torch.load(weights), unet_torch.predict


def _unique_names(pages: dict[Path, int]) -> dict[tuple[Path, int], str]:
    """The stem of the output of every page; two images of one name are refused."""
    names: dict[tuple[Path, int], str] = {}
    taken: dict[str, Path] = {}
    for path, count in pages.items():
        for page in range(count):
            name = path.stem if count == 1 else f"{path.stem}_{page:04d}"
            if name in taken:
                raise InputError(
                    f"{path}: its output has the name of {taken[name]}'s; predict them apart"
                )
            taken[name] = path
            names[path, page] = name
    return names


def _check_json(path: Path | None) -> None:
    _check_target(path, ".json")


def _check_target(path: Path | None, suffix: str) -> None:
    """Refuse before the work what could not be written after it."""
    if path is None:
        return
    if path.suffix != suffix:
        raise InputError(f"{path}: the report's name ends in {suffix}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")


def _command() -> str:
    return shlex.join(["unet", *sys.argv[1:]])


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        with atomic_write(path) as stream:
            report = {"command": _command(), **content}
            stream.write(json_format.dumps(report, indent=2).encode() + b"\n")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "make room, or name another place" if full else "mend that, or name another place"
        return f"{where}{error.strerror}; {mend}"
    return _as_typed(" ".join(str(error).split()))


def _as_typed(sentence: str) -> str:
    """With fields of the training's config as flags: data.crop_px=50 is --data.crop-px 50."""
    if sys.argv[1:2] != ["train"]:
        return sentence
    from unet_train.config import TrainConfig

    names = {
        f"{part.name}.{field.name}"
        for part in dataclasses.fields(TrainConfig)
        if dataclasses.is_dataclass(part.type)
        for field in dataclasses.fields(part.type)
    } | {part.name for part in dataclasses.fields(TrainConfig)}

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        return f"--{name.replace('_', '-')}" + (f" {value}" if value else "")

    return re.sub(
        r"(?<![\w./-])([a-z]+\.\w+|[a-z]+_\w+|[a-z]+(?==))(?:=([\w.:/-]*\w))?(?!\.\w)",
        flag,
        sentence,
    )


if __name__ == "__main__":
    main()
