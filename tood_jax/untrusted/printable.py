"""Make untrusted text printable: without control characters, and of bounded length."""

MAX_LENGTH = 300  # characters of a name; longer names are shortened in the middle


def printable(text: object, max_length: int = MAX_LENGTH) -> str:
    r"""Return text on one line: control, bidirectional and undecodable characters escaped, shortened in the middle.

    Args:
        text: a name or message, converted by `str`.
        max_length: largest number of characters of the result; at least 10.
    """
    return _shorten(_escaped(_start_and_end(str(text))), max_length)


def printable_lines(text: object) -> str:
    """Return a text with the lines escaped as by `printable`, without a bound on the length."""
    return "\n".join(_escaped(line) for line in str(text).split("\n"))


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in line
    )


def _start_and_end(text: str) -> str:
    """Return the start and the end of a very long text, to limit the work on it."""
    return text if len(text) <= 1 << 16 else text[: 1 << 15] + text[-(1 << 15) :]


def _shorten(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    end = (max_length - 1) // 3
    return f"{text[: max_length - 1 - end]}…{text[len(text) - end :]}"
