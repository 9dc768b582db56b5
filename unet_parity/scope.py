"""What a verdict was compared on, in words, so that nobody takes it for more."""

from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True)
class Scope:
    """What was compared; sizes are (height, width) in pixels.

    Attributes:
        input_size: of the inputs with ordinary weights; None if names and shapes differed already,
            so that no pass ran.
        own_input: whether the input was given, and not random.
        own_weights: whether the weights were given, and not random.
        reference: in which modes somebody's own torch module was compared with JAX's net; empty
            without one.
        no_training: why that module was not compared in training; empty if it was, or if training
            computes the same.
        modes: `inference`, and `training` for a net that computes something else there.
        steps: training steps of both twins, side by side.
        step_size: of the batches of these steps.
        exact_sizes: (padding, size) of every exact proof that ran.
        other_sizes: of inputs of which the outputs alone were compared.
        predicted: of the image that both `predict`s were given; None if they were not compared.
        precision: of JAX's products in the passes; training steps have `highest`.
    """

    input_size: Size | None = None
    own_input: bool = False
    own_weights: bool = False
    reference: tuple[str, ...] = ()
    no_training: str = ""
    modes: tuple[str, ...] = ()
    steps: int = 0
    step_size: Size | None = None
    exact_sizes: tuple[tuple[str, Size], ...] = ()
    other_sizes: tuple[Size, ...] = ()
    predicted: Size | None = None
    precision: str = "highest"

    @property
    def compared(self) -> str:
        """Say what was compared, in one sentence."""
        if self.input_size is None:
            return "Compared: names and shapes of the tensors, and no pass of either net."
        weights = "the given weights" if self.own_weights else "random weights"
        inputs = "the given input" if self.own_input else "random inputs"
        parts = [
            f"{weights} on {inputs} of {_size(self.input_size)} pixels (height x width), forward "
            f"and gradients, {self._modes}",
        ]
        if self.reference:
            parts.append(
                f"your --reference and JAX's net as a pair, in {' and '.join(self.reference)}"
            )
        if self.other_sizes:
            listed = ", ".join(map(_size, self.other_sizes))
            parts.append(f"outputs of PyTorch's net here and JAX's for inputs of {listed} pixels")
        if self.predicted is not None:
            parts.append(f"predict on a random image of {_size(self.predicted)} pixels")
        parts.append(self._steps)
        if self.exact_sizes:
            parts.append(f"exact proof on {self._exact}")
        return f"Compared: {'; '.join(parts)}."

    @property
    def not_compared(self) -> str:
        """Say in one sentence what the verdict says nothing of."""
        parts = ["sizes other than these" if self.other_sizes else "other sizes"]
        if self.no_training:
            parts.append(f"your --reference in training, where {self.no_training}")
        if self.precision != "highest" and self.steps:
            parts.append(f"training steps in precision {self.precision}")
        parts.append(
            "the code of predict around the net (tiles, windows, mirroring, preprocessing)"
            if self.predicted is None
            else "predict on other images"
        )
        return f"Not compared: {', '.join(parts[:-1])}, and {parts[-1]}."

    @property
    def _modes(self) -> str:
        if self.modes == ("inference",):
            return "in inference (training computes the same in this net)"
        return f"in {' and '.join(self.modes)}"

    @property
    def _steps(self) -> str:
        if not self.steps:
            return "no training steps"
        steps = f"{self.steps} training step" + ("s" if self.steps > 1 else "")
        if self.own_input or self.step_size != self.input_size:
            assert self.step_size is not None
            steps += f" on random inputs of {_size(self.step_size)} pixels"
        return steps

    @property
    def _exact(self) -> str:
        return " and ".join(
            f"{_size(size)} pixels with padding={padding}" for padding, size in self.exact_sizes
        )


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
