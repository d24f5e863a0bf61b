"""Names and texts of the package are in plain technical English: words that were replaced once do not come back."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tood_jax"
WORDS = (
    *("till", "whoever", "needn't", "mustn't", "foretell", "foretold", "homeless", "dearer", "dearest", "nobody's"),
    *("claims", "claimant", "granted", "worked off", "thinned out", "at one sitting", "for ever"),
)
PATTERN = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_words(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if PATTERN.search(line)]
