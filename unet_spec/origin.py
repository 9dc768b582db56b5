"""Where the weights of a file came from: another program's names, so that they can go back.

`unet convert` writes it into the card of a weight file, and a run carries it along.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unet_spec.errors import InputError
from unet_spec.parameters import Tensors


@dataclass(frozen=True)
class Group:
    """A `Group` is one param group of the original's optimizer.

    Attributes:
        names: our names of its parameters, in its order.
        settings: its other entries as the original's `state_dict` had them, plain values.
    """

    names: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """An `Origin` says how a file of another program held the tensors of a net.

    Attributes:
        names: (their name, our name), in the order of their file and with their prefixes. Two of
            their names may have one of ours: such tensors are tied.
        dtypes: torch's name of the type (`bfloat16`) by their name, where it is not the usual one:
            float32, and int64 for counts.
        content: what else the file holds, with marks where tensors and states stood: plain JSON.
        groups: of the optimizer; empty where there is none, or where nothing says which
            parameters it moves in which order.
    """

    names: tuple[tuple[str, str], ...]
    dtypes: Mapping[str, str]
    content: Any
    groups: tuple[Group, ...] = ()

    def rename(self, tensors: Tensors) -> Tensors:
        """Return tensors of our names under their names, in the order of their file."""
        return {theirs: tensors[ours] for theirs, ours in self.names}

    def to_plain(self) -> dict[str, Any]:
        """Return the origin as plain values, of which JSON can be made.

        Settings are pairs, because the keys of a card are sorted and these keep their order.
        """
        plain = asdict(self)
        for group in plain["groups"]:
            group["settings"] = list(group["settings"].items())
        return plain

    @classmethod
    def from_plain(cls, plain: Any) -> "Origin":
        """Return the origin that `to_plain` described.

        Raises:
            InputError: it is not that.
        """
        try:
            return cls(
                tuple((str(theirs), str(ours)) for theirs, ours in plain["names"]),
                {str(name): str(dtype) for name, dtype in plain["dtypes"].items()},
                plain["content"],
                tuple(Group(tuple(g["names"]), dict(g["settings"])) for g in plain["groups"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the origin in its metadata is damaged ({error!r})") from error
