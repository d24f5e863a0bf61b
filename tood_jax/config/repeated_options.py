"""Find options that a command line has twice. Imports nothing of the package, so that every program can use it."""

from collections.abc import Iterable


def repeated_option(words: Iterable[str]) -> str:
    """Return the error message for an option that is given twice; "" if there is none.

    Parsers differ in which of two values they take, and in a long command the first one is easily overlooked.

    Args:
        words: options as --name=value, --name value or -n value; `_` and `-` in names are equivalent.
    """
    seen: dict[str, str] = {}
    for word in words:
        name = _name(word)
        if name in seen:
            return f"{seen[name]} is given more than once; give it once."
        if name:
            seen[name] = word.partition("=")[0]
    return ""


def _name(word: str) -> str:
    """Return the name of the option that a word is; "" for a value, including a negative number."""
    if word.startswith("--"):
        return word[2:].partition("=")[0].replace("-", "_")
    return word[1] if len(word) > 1 and word[0] == "-" and word[1].isalpha() else ""
