"""What the comparison of recorded runs found, in words and as plain values."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_parity.runs.distances import FACTOR, Distances, find_worst_kind

MOST_ROWS = 40
"""The table in words has at most so many steps, around the one that is told."""


@dataclass(frozen=True)
class Departure:
    """Where a replay leaves the run.

    Attributes:
        step: its number, from 1; 0 if the runs do not start from the same weights.
        what: the loss, or the gradient or update of a tensor, that is furthest there.
        sentence: what differs, and what it looks like.
        detail: how far it is.
    """

    step: int
    what: str
    sentence: str
    detail: str


@dataclass(frozen=True)
class RunReport:
    """What `compare_runs` found.

    Attributes:
        departure: the first step beyond; None if there is none.
        reasons: why, in sentences; of a departure, first what it looks like.
        distances: of the loss, the gradients and the updates.
        pairs: the tensors of the first run, and what the replay calls them.
        compared: what was compared, in a sentence.
        not_compared: and what was not.
        environment: what made each recording.
    """

    departure: Departure | None
    reasons: tuple[str, ...]
    distances: tuple[Distances, ...]
    pairs: dict[str, str]
    compared: str
    not_compared: str
    environment: dict[str, str]

    @property
    def verdict(self) -> str:
        """Return `equivalent`, or `different` if there is a departure."""
        return "equivalent" if self.departure is None else "different"

    @property
    def first_step(self) -> int | None:
        """Return the number of the first step beyond, from 1; 0 if the initial weights are others,
        and None if nothing is beyond."""
        return None if self.departure is None else self.departure.step

    def __str__(self) -> str:
        """Say the verdict, why, what it was found on, and the distances of the steps."""
        return "\n".join([f"{self.verdict}.", *self.list_sentences(), "", self.draw_table()])

    def list_sentences(self) -> list[str]:
        """Return why, and what it was found on."""
        return [*self.reasons, self.compared, self.not_compared]

    def list_steps(self) -> list[dict[str, Any]]:
        """Return for each step what takes the largest share of what is allowed.

        A row has the step, what is furthest there, how far the replay and the run again are from
        the first run, what is allowed, and `share`, which is above 1 where that is exceeded.
        """
        rows = []
        for step in range(len(self.distances[0].share)):
            kind = find_worst_kind(self.distances, step)
            place = kind.find_worst(step)
            rows.append({
                "step": step + 1,
                "what": kind.describe(place),
                "replay": float(kind.replay[step, place]),
                "again": float(kind.again[step, place]),
                "allowed": float(kind.allowed[step, place]),
                "share": float(kind.share[step, place]),
            })  # fmt: skip
        return rows

    def draw_table(self) -> str:
        """Return `list_steps` as a table; of many steps, those around the first one beyond."""
        rows = self.list_steps()
        middle = self.first_step or 0
        begin = max(0, min(middle - MOST_ROWS // 2, len(rows) - MOST_ROWS))
        lines = [f"{'step':>5} {'replay':>8} {'again':>8} {'allowed':>8}  furthest"]
        for row in rows[begin : begin + MOST_ROWS]:
            mark = "  <-- first beyond" if row["step"] == self.first_step else ""
            lines.append(
                f"{row['step']:>5} {row['replay']:>8.1e} {row['again']:>8.1e} "
                f"{row['allowed']:>8.1e}  {row['what']}{mark}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; what is infinite or NaN becomes a word."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "first_step": self.first_step,
            "what": "" if self.departure is None else self.departure.what,
            "looks_like": "" if self.departure is None else self.departure.sentence,
            "factor": FACTOR,
            "steps": [
                {name: _word(value) for name, value in row.items()} for row in self.list_steps()
            ],
            "pairs": self.pairs,
            "compared": self.compared,
            "not_compared": self.not_compared,
            "environment": self.environment,
        }


def _word(value: Any) -> Any:
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)
