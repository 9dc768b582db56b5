"""The command `unet`: one verb, one function. Frameworks are imported inside the verbs."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Fixed, Positional, Suppress, arg

from unet_command import training
from unet_command.compilations import keep_compilations
from unet_command.parsing import Command, parse
from unet_command.reports import check_file, check_folder, check_target, write_json
from unet_command.wording import is_out_of_memory, list_flags, word_error
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_spec.allocator import keep_freed_memory
from unet_spec.config import check_bounds
from unet_spec.environment import leave_out_accelerators, need
from unet_spec.files import atomic_write, refuse_existing
from unet_spec.preprocessing import LARGEST_GB
from unet_spec.ranges import SIDE, STEPS_OF_A_PROOF, check_number
from unet_spec.xla_flags import prefer_eigen
from unet_train.config import TrainConfig

RECORDINGS = (".safetensors", ".jsonl")
"""How the names of what `unet verify --recorded` compares end: sides of a pair, training runs."""
Json = Annotated[Path | None, arg(metavar="FILE")]
Typed = Annotated[Fixed[Command], Suppress]
"""What was typed: it goes into reports, and no flag sets it."""


def main() -> None:
    """Run the verb that was typed; wrong input ends in one sentence and status 2."""
    command = Command(tuple(sys.argv[1:]))
    leave_out_accelerators()
    prefer_eigen()
    try:
        status = parse(command, VERBS)()
    except (BrokenPipeError, SystemExit) as error:
        # whoever read the output has left, such as `head`; rich ends the process for that
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except (InputError, OSError) as error:
        verb = VERBS.get(command.verb)
        flags = {} if verb is None else list_flags(verb)
        print(f"unet: {word_error(error, flags)}", file=sys.stderr)
        status = 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(
            "unet: the memory is used up; give smaller images, a smaller net or a smaller batch, "
            "or free some",
            file=sys.stderr,
        )
        status = 2
    except KeyboardInterrupt:
        print("unet: interrupted; what was written before is whole", file=sys.stderr)
        status = 130
    sys.exit(status)


def demo(*, out: Path = Path("demo_run"), json: Json = None, command: Typed = Command()) -> int:
    """Go the whole way on synthetic cells: train in JAX, open in PyTorch, verify and predict.

    Three HTML pages show what came out; index.html links to the others.

    Args:
        out: Write the run and the pages into this folder, which must not exist.
        json: Write the results into this file.
        command: This is what was typed.
    """
    check_target(json)
    refuse_existing(out)
    check_folder(out)
    need("torch", "train")
    keep_compilations()
    keep_freed_memory()
    from unet_demo import run

    summary = run.run(out, command=str(command))
    write_json(json, summary, command=command)
    return int(summary["verdict"] == "different")


def train(
    config: Annotated[TrainConfig, arg(name="")],
    *,
    out: Path,
    overfit: bool = False,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Train on folders of images and masks; the preset cells draws its own.

    The same command again resumes a run that was stopped.

    Args:
        config: The run begins with the values of a preset, and its flags change them.
        out: Write checkpoints, weight files, config, metrics, pictures and report.html into this
            folder.
        overfit: Only try whether the net can learn the first batch by heart, and write nothing;
            the exit status is 1 if it cannot.
        json: Write the scores into this file.
        command: This is what was typed.
    """
    check_target(
        json, others=(config.data.split, config.start, out / "config.json", out / "data.json")
    )
    if not overfit:
        check_folder(out)
    need("train")
    return training.train(config, out=out, overfit=overfit, json=json, command=command)


def plan(
    config: Annotated[TrainConfig, arg(name="")],
    *,
    topology: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")],
    largest: bool = False,
    report: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Say what a run would need and take on chips that are not here.

    The chip's own compiler compiles the training step, which takes minutes. Nothing is trained,
    and no images are read. The exit status is 1 if the run does not fit.

    Args:
        config: The run begins with the values of a preset, and its flags change them.
        topology: Compile for these chips, such as v5e:4x4 (or v5e-16, its name in the cloud),
            v5p:2x2x1, v6e:2x2, h100:8; cpu:8 is this machine's own processor.
        largest: Find the largest batch that fits; rematerialisation and rows are only used where
            nothing fits without.
        report: Write a page there with the memory, and the time of each module.
        json: Write the plans into this file.
        command: This is what was typed.
    """
    check_target(json, others=(config.start,))
    check_target(report, ".html", others=(config.start, json))
    need("train")
    from unet_command import planning

    return planning.plan(
        config, topology=topology, largest=largest, report=report, json=json, command=command
    )


def predict(
    weights: Positional[Path],
    images: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    probabilities: Literal["tif", "npy"] | None = None,
    threshold: Annotated[float | None, arg(metavar="P")] = None,
    framework: Literal["jax", "torch"] | None = None,
    largest_gb: Annotated[float, arg(metavar="GB")] = LARGEST_GB,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Segment images of any size, and write a mask and an overlay picture for each.

    The same command again goes on where it was stopped.

    Args:
        weights: The net is in this weight file.
        images: Segment these image files (PNG, JPEG, GIF, WebP, TIFF, .npy, zarr, and stacks), and
            those in these folders.
        out: Write NAME_mask.png (class indices) and NAME_overlay.png into this folder, and
            prediction.json, which says what they were made of.
        probabilities: Write the probability of every class too, as float32 of (classes, height,
            width), into NAME_probabilities.tif or .npy. They add up to 1, but for a net with
            output=sigmoid, in which each class has its own, and a net of one channel, which gives
            that of class 1 alone.
        threshold: Take class 1 where its probability is at least this, between 0 and 1, in a net
            of two classes; by default where it is the larger one.
        framework: Predict with this one of the twins; the default is JAX where it is installed.
        largest_gb: Read images that take at most so many GB as float32; prediction takes a few
            times as much memory.
        json: Write into this file what was written where.
        command: This is what was typed.
    """
    check_target(json, others=(weights, *images, out / "prediction.json"))
    if not images:
        raise InputError("no image given; name image files or folders after the weights")
    check_folder(out)
    need("images")
    keep_freed_memory()
    from unet_command import predicting

    return predicting.predict(
        weights, images, out=out, framework=framework, threshold=threshold,
        probabilities=probabilities, largest_gb=largest_gb, json=json, command=command,
    )  # fmt: skip


def convert(
    source: Positional[Path],
    target: Positional[Path | None] = None,
    /,
    *,
    config: UNetConfig = UNetConfig(),
    preprocessing: Preprocessing = Preprocessing(),
    recorded: Annotated[Path | None, arg(metavar="FILE.npz")] = None,
    reference: Annotated[str | None, arg(metavar="FILE.py:NAME")] = None,
    reference_arguments: Annotated[str, arg(metavar="'3, 2'")] = "",
    names: Annotated[Path | None, arg(metavar="FILE.toml")] = None,
    explain: bool = False,
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32",
    weights_only: bool = False,
    without_scheduler: bool = False,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Convert between a PyTorch checkpoint and a .safetensors file, either way.

    A U-Net with names of its own is recognised, and goes back under these names. A run keeps its
    optimizer and schedule, so that either framework resumes it.

    Args:
        source: Read this file of PyTorch or .safetensors, whatever its name, or the newest
            checkpoint in this RUN of `unet train`.
        target: Write this file, which must not exist. If its name ends in .pt, .pth or .ckpt, it is
            PyTorch's, in the form of the file that the net once came from; else a .safetensors.
        config: The net has these axes where no tensor shows them (padding, concat, activation and
            others).
        preprocessing: The original was trained on images prepared so, which no file of PyTorch
            says.
        recorded: Find what no tensor shows by this file, in which the original gave the array y for
            the array x.
        reference: Find what no tensor shows by the original's own code, which is this class; the
            file is run.
        reference_arguments: Give the constructor of the reference these arguments.
        names: The tensors are named as this file says, in lines such as "their.name" = "our.name".
        explain: Only say what the source is, and write nothing.
        dtype: The weights in a .safetensors target are of this type; a run stays in its own.
        weights_only: Leave out the optimizer of a run, and take its averaged weights.
        without_scheduler: Leave out the scheduler of a run; its learning rate stays.
        json: Write the report into this file.
        command: This is what was typed.
    """
    _check_arguments(reference, reference_arguments)
    check_target(json, others=(source, target, recorded, names))
    if target is not None and not os.path.isdir(target):
        check_file(target)
    from unet_convert import conversion
    from unet_convert.evidence import Evidence

    if recorded is not None and reference is not None:
        raise InputError(
            "--recorded and --reference both give the original's output; leave one out"
        )
    evidence = Evidence(
        config, command.list_settings("--config."), preprocessing, recorded, reference,
        reference_arguments, names,
    )  # fmt: skip
    say = partial(print, flush=True)
    if explain:
        if target is not None:
            raise InputError(f"--explain writes nothing; leave out {target}")
        explanation = conversion.explain(source, evidence, say=say)
        print(*explanation.sentences(), sep="\n")
        write_json(json, explanation.to_json(), command=command)
        return 0
    if target is None:
        raise InputError(f"no target given; name it after {source}, or give --explain")
    result = conversion.convert(
        source, target, evidence=evidence, dtype=dtype, weights_only=weights_only,
        without_scheduler=without_scheduler, say=say,
    )  # fmt: skip
    print(*result.sentences(), sep="\n")
    write_json(json, result.to_json(), command=command)
    return 0


def verify(
    weights: Positional[Path | None] = None,
    /,
    *,
    config: UNetConfig = UNetConfig(),
    size: Annotated[tuple[int, int] | None, arg(metavar="H W")] = None,
    image: Path | None = None,
    recorded: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")] = (),
    reference: Annotated[str | None, arg(metavar="FILE.py:NAME")] = None,
    reference_arguments: Annotated[str, arg(metavar="'3, 2'")] = "",
    port: Annotated[str | None, arg(metavar="FILE.py:NAME")] = None,
    convert: Annotated[str | None, arg(metavar="FILE.py:NAME")] = None,
    inputs: Annotated[Path | None, arg(metavar="FILE.npz")] = None,
    names: Annotated[Path | None, arg(metavar="FILE.toml")] = None,
    steps: int = 10,
    other_sizes: bool = True,
    precision: Literal["highest", "high", "default"] = "highest",
    certificate: Annotated[Path | None, arg(metavar="FILE.json")] = None,
    report: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Prove that both frameworks compute the same; the exit status is 1 if they do not.

    Args:
        weights: The net is in this weight file; without one an architecture is proven, with both
            paddings.
        config: The net has this architecture where no weight file says it.
        size: The compared random inputs have this height and width in pixels, also in the exact
            proof and the training steps; the default is small.
        image: Compare on the middle of this image, up to 256x256 pixels, in place of random
            numbers.
        recorded: Compare on the array x in this .npz, and judge its array y, a float32 output of
            the same net; or compare these two recordings of a pair (.safetensors), which
            unet_parity.record writes; or these three of training runs (.jsonl), by RunRecorder: a
            run, the same run with its sums in another order, and its replay in another framework.
        reference: Compare with this torch module of your own too; the file is run. It has the
            slides' names, or those that the weight file came with.
        reference_arguments: Give the constructor of the reference these arguments.
        port: Compare the reference with this JAX net of your own, whatever net it is: a function of
            (params, *inputs), an nnx.Module or a linen.Module; the file is run.
        convert: Take the port's params from this function of the reference's state_dict, or the
            whole port as an nnx.Module; the file is run.
        inputs: Give both the arrays in this file, as the reference takes them.
        names: The port has the reference's tensors where this file says, in lines such as
            "their.name" = "our.name"; with --convert there are none. Of recorded runs, the replay
            has the names on the right.
        steps: Train both for this many steps, side by side; with 0 there is no training.
        other_sizes: Compare the outputs at other sizes too, up to the largest for which there is
            time, and the predictions of a weight file.
        precision: JAX multiplies in this precision, which matters on accelerators.
        certificate: Write there what the exact proof gave, which `unet check` computes again with
            one framework.
        report: Write a page there with every module, gradient and step, and with pictures.
        json: Write the whole report into this file.
        command: This is what was typed.
    """
    check_bounds(config)
    _check_arguments(reference, reference_arguments)
    check_target(json, others=(weights, image, *recorded, inputs, names))
    check_target(report, ".html", others=(weights, image, *recorded, inputs, names))
    check_target(certificate, others=(weights, image, *recorded, inputs, names, json))
    check_number("--steps", steps, STEPS_OF_A_PROOF)
    for side in size or ():
        check_number("--size", side, SIDE)
    if any(path.suffix in RECORDINGS for path in recorded):
        from unet_command import recordings

        return recordings.verify_recorded(
            recorded, weights=weights, names=names, report=report, json=json, command=command
        )
    need("jax", "torch", *(["images"] if image or report else []))
    allocator = keep_freed_memory()
    if port is not None or convert is not None:
        from unet_command import pairs

        pairs.refuse_flags_of_a_net({
            "WEIGHTS": weights, "--size": size, "--image": image, "--recorded": recorded or None,
            "--config": next(iter(command.list_settings("--config.")), None),
            "--precision": precision if precision != "highest" else None,
            "--no-other-sizes": None if other_sizes else True,
            "--certificate": certificate,
        })  # fmt: skip
        keep_compilations()
        return pairs.verify(
            reference=reference, arguments=reference_arguments, port=port, convert=convert,
            inputs=inputs, names=names, steps=steps, report=report, json=json, command=command,
        )  # fmt: skip
    for flag, value in {"--inputs": inputs, "--names": names}.items():
        if value is not None:
            raise InputError(f"{flag} is of a port of your own; give --port or --convert too")
    sources = {"--size": size, "--image": image, "--recorded": recorded or None}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} both give the input; leave one out")
    if len(recorded) > 1:
        raise InputError(
            f"--recorded takes one .npz with an output, or recordings (.safetensors or .jsonl), "
            f"got {len(recorded)} files; give one .npz"
        )
    keep_compilations()
    from unet_command import verifying

    return verifying.verify(
        config, weights=weights, size=size, image=image, recorded=next(iter(recorded), None),
        reference=reference, reference_arguments=reference_arguments, steps=steps,
        other_sizes=other_sizes, precision=precision, certificate=certificate, report=report,
        json=json, note=allocator.text if allocator.keeps else "", command=command,
    )  # fmt: skip


def check(
    certificate: Positional[Path],
    weights: Positional[Path | None] = None,
    /,
    *,
    framework: Literal["jax", "torch"] | None = None,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Compute a certificate again, bit for bit; the exit status is 1 if anything differs.

    Args:
        certificate: Compute every integer case of this file again.
        weights: Compare this weight file with the one that was verified.
        framework: Take this framework alone; the default takes those that are installed.
        json: Write what was found into this file.
        command: This is what was typed.
    """
    check_target(json, others=(certificate, weights))
    if framework is not None:
        need(framework)
    from rich.console import Console

    from unet_parity import certificate as certificates
    from unet_parity import check
    from unet_spec import weight_file

    console = Console()
    frameworks = check.list_installed() if framework is None else (framework,)
    if "jax" in frameworks:
        keep_compilations()
    content, problem = certificates.read(certificate)
    result = check.check(
        content,
        file_problem=problem,
        weights=None if weights is None else weight_file.read(weights),
        frameworks=frameworks,
        say=lambda text: console.print(text, highlight=False, markup=False),
    )
    console.print(f"[bold {'green' if result.holds else 'red'}]{result.verdict}[/]")
    for sentence in result.list_sentences():
        console.print(sentence, highlight=False, markup=False)
    write_json(json, result.to_json(), command=command)
    return int(not result.holds)


def bench(
    *,
    quick: bool = False,
    report: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    json: Json = None,
    command: Typed = Command(),
) -> int:
    """Time the same net in both frameworks on this device, and our layers against Flax's.

    Args:
        quick: Time small nets only, without torch.compile.
        report: Write a page there with every ratio, and with plots over pixels and widths.
        json: Write the rows into this file.
        command: This is what was typed.
    """
    check_target(json)
    check_target(report, ".html")
    need("train", "torch")
    from rich.console import Console

    from unet_bench import bench, tables

    console = Console()
    result = bench.bench(quick=quick, say=lambda text: console.print(text, highlight=False))
    tables.show(result, console)
    if report is not None:
        from unet_bench import page

        with atomic_write(report) as stream:
            stream.write(page.make_page(result, command=str(command)).encode())
        console.print(f"the page: {report}", markup=False)
    write_json(json, result, command=command)
    return 0


VERBS: dict[str, Callable[..., int]] = {
    verb.__name__: verb for verb in (demo, train, plan, predict, convert, verify, check, bench)
}


def _check_arguments(reference: str | None, arguments: str) -> None:
    """Refuse arguments of a constructor that is not named."""
    if arguments and reference is None:
        raise InputError("--reference-arguments is for --reference, which is not given")


if __name__ == "__main__":
    main()
