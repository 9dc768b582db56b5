"""The report of `verify` as tables for a terminal."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unet_parity import exact, training
from unet_parity.comparison import Comparison
from unet_parity.differences import error_ratio
from unet_parity.float32_errors import GRADIENT_FACTOR, LOCAL_FACTOR
from unet_parity.oracle import FACTOR, GRADIENT_BOUND, OUTPUT_BOUND, Agreement
from unet_parity.other_sizes import PredictionRow, SizeRow
from unet_parity.recorded_output import RecordedOutput
from unet_parity.training import Trajectory
from unet_parity.verify import ParityReport

CAVEATS = 3  # of a verdict that is not `different`, so that it stays on one screen
_COLOURS = {"identical": "bold green", "equivalent": "bold green", "different": "bold red"}


def show(report: ParityReport, console: Console) -> None:
    """Print what the verdict rests on, and last the verdict, so that it is what a person sees when
    the command ends."""
    structure = report.structure
    console.print(
        f"{structure['tensors']} tensors, {structure['parameters']:,} parameters, "
        f"{structure['convolutions']} convolutions"
    )
    if report.exact:
        console.print(_exact_table(report))
        _print_indented(exact.explain_tf32(report.bits), console)
    for comparison in report.comparisons:
        console.print(_agreement_table(comparison.agreement))
        _show_layers(comparison, console)
    if report.own is not None:
        console.print(Text(str(report.own)))
    for row in report.sizes:
        console.print(_describe_size(row))
    if report.prediction is not None:
        console.print(_describe_prediction(report.prediction))
    for trajectory in report.steps:
        console.print(_describe_steps(trajectory))
    if report.recorded is not None:
        console.print(_describe_recorded(report.recorded))
    if report.subnormal:
        console.print(Text(str(report.subnormal)))
    _show_verdict(report, console)


def _show_verdict(report: ParityReport, console: Console) -> None:
    """Print the verdict, the first reason and the scope; `different` has hundreds of reasons, of
    which all but the first mostly follow from it."""
    different = report.verdict == "different"
    first, *others = report.reasons
    caveats = [] if different else others[:CAVEATS]
    console.print()
    console.print(f"verdict: {report.verdict}", style=_COLOURS[report.verdict])
    _print_indented(f"first at fault: {first}" if different else first, console)
    for caveat in caveats:
        _print_indented(caveat, console)
    if folded := len(others) - len(caveats):
        _print_indented(
            f"and {folded} more; --report PAGE.html or --json FILE shows them all", console
        )
    console.print(Text(report.scope.compared))
    console.print(Text(report.scope.not_compared))


def _describe_size(row: SizeRow) -> str:
    ratio = error_ratio(row.torch_error, row.jax_error, row.scale)
    return (
        f"inputs of {row.size[0]} x {row.size[1]} pixels: JAX's output in float32 is {ratio:.3g} "
        f"times as far from float64 as torch's, {FACTOR:g} allowed"
    )


def _describe_prediction(row: PredictionRow) -> str:
    ratio = error_ratio(row.torch_error, row.jax_error, row.scale)
    return (
        f"predict on an image of {row.size[0]} x {row.size[1]} pixels: JAX's probabilities are "
        f"{ratio:.3g} times as far from float64 as torch's, {FACTOR:g} allowed; {row.differing:,} "
        f"of {row.pixels:,} pixels differ, {row.unexplained} more than rounding explains"
    )


def _print_indented(sentence: str, console: Console) -> None:
    # as `Text`, because brackets of a sentence, such as weight[0, 1], are no markup
    console.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))


def _exact_table(report: ParityReport) -> Table:
    table = Table(title="exact arithmetic: values on which torch, JAX and float64 are not equal")
    for column in ("integers fit", "padding", "in", "outputs", "gradients", "input", "distinct"):
        table.add_column(column)
    for row in report.exact:
        cells = (
            f"{row.mismatches:,} of {row.outputs:,}",
            f"{row.gradients['mismatches']:,} in {row.gradients['tensors']}",
            f"{row.input_gradient['mismatches']:,} of {row.input_gradient['values']:,}",
        )
        if row.refused:
            cells = (row.refused, "", "")
        table.add_row(row.rung, row.padding, row.dtype, *cells, str(row.distinct))
    return table


def _agreement_table(agreement: Agreement) -> Table:
    a = agreement
    table = Table(title=f"ordinary weights, {a.mode}")
    for column in ("relative to the largest value", "found", "allowed"):
        table.add_column(column)
    rows = [
        ("float64, torch to JAX: output", a.output, OUTPUT_BOUND),
        ("float64: gradient of the input", a.input_gradient, GRADIENT_BOUND),
        ("float64: worst gradient of a parameter", max(a.gradients.values()), GRADIENT_BOUND),
    ]
    if a.statistics:
        rows.append(("float64: batch statistics", max(a.statistics.values()), OUTPUT_BOUND))
    for what, difference, allowed in rows:
        table.add_row(what, f"{difference:.1e}", f"{allowed:.0e}")
    scale = a.scale or 1.0
    table.add_row("float32 torch to float64 (rms)", f"{a.torch_error / scale:.1e}", "")
    ratio = error_ratio(a.torch_error, a.jax_error, a.scale)
    table.add_row(
        "float32 JAX to float64 (rms)",
        f"{a.jax_error / scale:.1e}",
        f"{ratio:.3g} x torch's; {FACTOR:g} x either way",
    )
    return table


def _show_layers(comparison: Comparison, console: Console) -> None:
    """Print the worst module and gradient, and the flips; the page has all of them."""
    if not comparison.layers:
        return
    layer = max(comparison.layers, key=lambda row: _distance_from_one(row.local_ratio))
    gradient = max(comparison.gradients, key=lambda row: _distance_from_one(row.ratio))
    flips = comparison.flips
    console.print("float32, JAX's distance to float64 over torch's, furthest from 1:")
    _print_indented(
        f"of {len(comparison.layers)} modules by themselves: {layer.local_ratio:.3g}, "
        f"up to {LOCAL_FACTOR:g} x either way; {layer.name}",
        console,
    )
    _print_indented(
        f"of {len(comparison.gradients)} gradients: {gradient.ratio:.3g}, "
        f"up to {GRADIENT_FACTOR:g} x either way; {gradient.name}",
        console,
    )
    _print_indented(
        f"near-ties fell the other way {flips[0]} times in torch, {flips[1]} in JAX", console
    )


def _describe_steps(trajectory: Trajectory) -> str:
    count = len(trajectory.parameters)
    steps = f"{count} training step" + ("s" if count > 1 else "")
    text = f"{trajectory.dtype}, {steps}: parameters {trajectory.parameters[-1]:.1e} apart"
    if trajectory.torch_yardstick:
        text += (
            f"; with sums in another order torch is {trajectory.torch_yardstick[-1]:.1e} from "
            f"itself, JAX {trajectory.jax_yardstick[-1]:.1e}; up to {training.FACTOR:g} x the "
            f"larger is allowed, or {training.FACTOR * training.RESOLUTION:.0e}"
        )
    else:
        text += f"; up to {training.BOUND:.0e} is allowed"
    return text


def _describe_recorded(recorded: RecordedOutput) -> str:
    judgement = recorded.judgement
    scale = judgement.scale or 1.0
    return (
        f"recorded output to float64 (rms): {judgement.error / scale:.1e}, "
        f"up to {judgement.allowed / scale:.1e} is rounding in {judgement.precision}; float32 "
        f"torch here {recorded.torch_error / scale:.1e}, JAX {recorded.jax_error / scale:.1e}"
    )


def _distance_from_one(ratio: float) -> float:
    """Return how far a ratio is from 1, either way."""
    return max(ratio, 1 / ratio)
