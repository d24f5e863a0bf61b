"""What the loader of a data set found, repaired and left out, for the log."""

from collections import Counter
from dataclasses import dataclass, field

from tood_jax.untrusted.printable import printable

_MAX_EXAMPLES = 3  # of each kind
_MAX_LENGTH = 80  # characters of an example


@dataclass
class LoadReport:
    """Counts of a split, and of repairs and omissions."""

    images: int = 0
    objects: int = 0  # boxes for training
    listed: int = 0  # annotations in the file
    counts: Counter = field(default_factory=Counter)  # what happened → number of cases
    examples: dict[str, list[str]] = field(default_factory=dict)  # what happened → names of the first cases
    origin: str = ""  # layout and files of a folder
    hint: str = ""  # a sentence about the likely cause of many bad boxes

    def note(self, what: str, *example: object) -> None:
        """Count a case of `what`; the summary names the first few, as "EXAMPLE in EXAMPLE"."""
        self.counts[what] += 1
        examples = self.examples.setdefault(what, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(" in ".join(printable(part, _MAX_LENGTH) for part in example))

    def summary(self) -> str:
        """Return the sizes, the repairs and omissions with examples, and the hint."""
        lines = [f"{self.images} images, {self.objects} objects" + (f" ({self.origin})" if self.origin else "")]
        if not self.objects:
            lines.append(
                "no box is usable, so nothing can be learned from this split" if self.listed else "no annotations"
            )
        lines += [f"{count} {what} ({self._examples_of(what, count)})" for what, count in self.counts.items()]
        return "; ".join(lines) + "." + (f" {self.hint}" if self.hint else "")

    def _examples_of(self, what: str, count: int) -> str:
        examples = self.examples[what]
        return ", ".join(examples) + (", …" if count > len(examples) else "")
