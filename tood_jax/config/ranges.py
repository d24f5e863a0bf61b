"""The range of a field's numbers, stated beside the field: `width: Annotated[int, Range(1, 4096)]`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; of a tuple, each of its numbers.

    The upper bounds are far above what any run needs: a config may come from a checkpoint of unknown origin.
    """

    low: float
    high: float
    above: bool = False
    """`low` itself is excluded."""
    below: bool = False
    """`high` itself is excluded."""
    multiple_of: int = 1

    def __contains__(self, number: float) -> bool:
        if not self.low <= number <= self.high:  # also refuses NaN
            return False
        excluded = (self.above and number == self.low) or (self.below and number == self.high)
        return not excluded and (self.multiple_of == 1 or number % self.multiple_of == 0)

    def __str__(self) -> str:
        if self.above or self.below:
            low, high = "above" if self.above else "at least", "below" if self.below else "at most"
            limits = f"{low} {self.low:,} and {high} {self.high:,}"
        else:
            limits = f"from {self.low:,} to {self.high:,}"
        return limits if self.multiple_of == 1 else f"a multiple of {self.multiple_of} {limits}"
