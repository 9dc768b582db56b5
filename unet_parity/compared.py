"""What of a module was compared, as a value for programs; its words stand here and nowhere else."""

from dataclasses import dataclass
from enum import Enum, auto

from unet_parity.differences import NET as NET
from unet_parity.trace import Place


class Kind(Enum):
    """What is compared at a place.

    The first four are of a leaf that is run alone, the last two of the wiring between leaves.
    """

    OUTPUT = auto()
    STATISTIC = auto()
    INPUT_GRADIENT = auto()
    PARAMETER_GRADIENT = auto()
    ARRIVING_VALUE = auto()
    ARRIVING_GRADIENT = auto()


OF_A_LEAF = (Kind.OUTPUT, Kind.STATISTIC, Kind.INPUT_GRADIENT, Kind.PARAMETER_GRADIENT)


@dataclass(frozen=True)
class Compared:
    """What was compared.

    Attributes:
        place: where, as the path of a module and `input` or `output`.
        name: of the tensor in that module, for a statistic or a parameter's gradient.
    """

    kind: Kind
    place: Place
    name: str = ""

    def __str__(self) -> str:
        path, side = self.place
        match self.kind:
            case Kind.OUTPUT:
                return "its output"
            case Kind.STATISTIC:
                return f"its {self.name}"
            case Kind.INPUT_GRADIENT:
                return "the gradient of its input"
            case Kind.PARAMETER_GRADIENT:
                return f"the gradient of its {self.name}"
            case Kind.ARRIVING_VALUE:
                return f"what reaches the {side} of {path or NET}"
            case Kind.ARRIVING_GRADIENT:
                return f"the gradient at the {side} of {path or NET}"
