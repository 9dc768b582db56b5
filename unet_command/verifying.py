"""`unet verify` of a U-Net: it reads what it is given, and writes report and certificate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from unet_command.parsing import Command
from unet_command.reports import write_json
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_spec.files import atomic_write

if TYPE_CHECKING:
    from unet_spec.weight_file import WeightFile


def verify(
    config: UNetConfig,
    *,
    weights: Path | None,
    size: tuple[int, int] | None,
    image: Path | None,
    recorded: Path | None,
    reference: str | None,
    reference_arguments: str,
    steps: int,
    other_sizes: bool,
    precision: str,
    certificate: Path | None,
    report: Path | None,
    json: Path | None,
    note: str,
    command: Command,
) -> int:
    """Compare both frameworks and return the exit status, which is 1 where they differ.

    Args:
        config: of the net, where no weight file says it.
        weights: the weight file.
        size: (height, width) of random inputs in pixels.
        image: whose middle is the input.
        recorded: an .npz with the input x, and an output y to judge.
        reference: FILE.py:NAME of a torch module to compare as well.
        reference_arguments: of its constructor.
        steps: of training.
        other_sizes: compare at other sizes too, and the predictions of a weight file.
        precision: of JAX's products.
        certificate: the certificate.
        report: the page.
        json: the report.
        note: is printed first; empty for none.
        command: what was typed.

    Raises:
        InputError: one of them cannot be used.
    """
    from unet_convert.conversion import refuse_contradiction
    from unet_parity import certificate as certificates
    from unet_parity import inputs, integer_cases, page, verify
    from unet_parity import report as tables
    from unet_parity.certify import certify
    from unet_spec import weight_file

    loaded = None if weights is None else weight_file.read(weights)
    if loaded is not None:
        refuse_contradiction(config, loaded.config, source=weights)
        config = loaded.config
    if certificate is not None and (reason := integer_cases.explain_no_proof(config)):
        raise InputError(
            f"--certificate needs the exact proof, and of this net there is none: {reason}; leave "
            "it out"
        )
    if size is not None:
        inputs.check_size(config, size)
    x, y = _read_input(image, recorded, loaded, config)
    origin = None if loaded is None else loaded.origin
    module = None
    if reference is not None:
        from unet_torch import reference as references

        module = references.build(reference, reference_arguments)
        if origin is None:
            _check_names(module, config, place=reference, has_weights=loaded is not None)
    console = Console()
    if note:
        console.print(note)
    found = verify.verify(
        config,
        weights=loaded,
        x=x,
        size=size,
        recorded=y,
        reference=module,
        origin=origin,
        steps=steps,
        other_sizes=other_sizes,
        jax_precision=precision,
        say=lambda text: console.print(text, highlight=False),
    )
    tables.show(found, console)
    if report is not None:
        with atomic_write(report) as stream:
            stream.write(page.make_page(found, command=str(command)).encode())
        console.print(f"the page: {report}", markup=False)
    write_json(json, found.to_json(), command=command)
    if certificate is not None and found.verdict == "different":
        console.print("no certificate was written", markup=False)
    elif certificate is not None:
        certificates.write(certificate, certify(found, is_of_weights=loaded is not None))
        console.print(f"the certificate: {certificate}", markup=False)
    return int(found.verdict == "different")


def _check_names(module: Any, config: UNetConfig, *, place: str, has_weights: bool) -> None:
    """Refuse a module of other tensors than this net's.

    Raises:
        InputError: it names what is missing, unexpected or mis-shaped.
    """
    from unet_torch import reference as references

    try:
        references.check_names(module, config, place=place)
    except InputError as error:
        if has_weights:
            raise
        raise InputError(
            f"{error}; name the weight file of the reference too, which unet convert makes"
        ) from error


def _read_input(
    image: Path | None, recorded: Path | None, loaded: "WeightFile | None", config: UNetConfig
) -> tuple[Any, Any]:
    """Return the input (b, in_channels, h, w) that `verify` is given, and a recorded output of it;
    None for each that is not given."""
    from unet_parity import inputs
    from unet_spec.recorded import read_recorded

    if image is not None:
        import unet_image

        preprocessing = loaded.preprocessing if loaded else Preprocessing()
        page = unet_image.measure_pages(image)[0]
        channels = config.in_channels
        unet_image.check_channels(page, channels=channels, preprocessing=preprocessing)
        alpha = unet_image.takes_alpha(page, channels=channels, preprocessing=preprocessing)
        pixels = unet_image.read_page(page, alpha=alpha)
        return inputs.crop_middle(pixels, config, preprocessing, source=image), None
    if recorded is not None:
        x, y = read_recorded(recorded)
        inputs.check_recorded(x, y, config, source=recorded)
        return x, y
    return None, None
