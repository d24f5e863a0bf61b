"""What the rows of a job have, for the report at its end."""

from dataclasses import dataclass, field

import numpy as np

from tood_jax.api.rows import Row
from tood_jax.untrusted.printable import printable

_MAX_NOTES = 20  # of a kind that are printed


@dataclass
class Summary:
    """What the rows of a job have."""

    images: int = 0
    detections: int = 0
    above_threshold: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list)  # the first of each kind

    def add(self, row: Row, thresholds: np.ndarray) -> None:
        """Count a row; `thresholds` are those of the classes."""
        if "error" in row:
            self.skipped += 1
            if self.skipped <= _MAX_NOTES:
                self.notes.append(f"skipped: {row['error']}")
            return
        self.images += 1
        self.detections += len(row["scores"])
        self.above_threshold += sum(np.asarray(row["scores"]) >= thresholds[row["labels"]])
        for note in row.get("notes", ()):
            if len(self.notes) < 3 * _MAX_NOTES:
                self.notes.append(f"note on {printable(row['path'])}: {note}.")

    def messages(self) -> list[str]:
        """Return what happened to single images."""
        more = self.skipped - _MAX_NOTES
        return [*self.notes, *([f"skipped: {more} more images; --format jsonl names all."] if more > 0 else [])]
