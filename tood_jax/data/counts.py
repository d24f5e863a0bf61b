"""Counts of what the input pipeline left out or found unusual."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES = 5  # files named in a message


@dataclass
class DataCounts:
    """What happened in the batches so far."""

    truncated_objects: int = 0
    truncated_images: int = 0
    broken: Counter = field(default_factory=Counter)  # reason → number of reads
    noticed: Counter = field(default_factory=Counter)  # unusual property of images that were used → number of reads
    examples: dict[str, list[str]] = field(default_factory=dict)  # property → names of the first such images

    def add(self, other: "DataCounts") -> None:
        """Add the counts of other batches or of another process."""
        self.truncated_objects += other.truncated_objects
        self.truncated_images += other.truncated_images
        self.broken += other.broken
        self.noticed += other.noticed
        for what, names in other.examples.items():
            for name in names:
                self._add_example(what, name)

    def notice(self, what: str, name: str) -> None:
        """Count an image that is unusual but used."""
        self.noticed[what] += 1
        self._add_example(what, name)

    def _add_example(self, what: str, name: str) -> None:
        names = self.examples.setdefault(what, [])
        if len(names) < MAX_EXAMPLES and name not in names:
            names.append(name)

    def to_plain(self) -> dict[str, Any]:
        """Return the counts as JSON values, which `DataCounts.from_plain` reads."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "DataCounts":
        """Return the counts of `to_plain`."""
        counters = {name: Counter(values[name]) for name in ("broken", "noticed")}
        return cls(**{**values, **counters})

    def summary(self) -> str:
        """Return a sentence for each kind of event; "" if nothing happened."""
        sentences = []
        if self.truncated_objects:
            sentences.append(
                f"{self.truncated_objects} objects of {self.truncated_images} images exceeded data.max_objects "
                "and were left out; raise it to keep them."
            )
        if self.broken:
            reasons = "; ".join(list(self.broken)[:MAX_EXAMPLES])
            sentences.append(
                f"{sum(self.broken.values())} readings of {len(self.broken)} broken images were skipped: {reasons}"
            )
        for what, number in self.noticed.items():
            more = ", …" if number > len(self.examples[what]) else ""
            sentences.append(f"{number} readings of {what} ({', '.join(self.examples[what])}{more}).")
        return " ".join(sentences)
