"""Untrusted text becomes printable."""

from hypothesis import given
from hypothesis import strategies as st

from tood_jax.untrusted.printable import printable, printable_lines

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates and controls too


@given(ANY_TEXT, st.integers(10, 80))
def test_any_text_becomes_one_printable_line_of_bounded_length(text, length):
    line = printable(text, length)
    assert line.isprintable()
    assert len(line) <= length
    line.encode()


@given(ANY_TEXT)
def test_line_breaks_are_kept(text):
    lines = printable_lines(text)
    assert lines.count("\n") == text.count("\n")
    assert lines.replace("\n", "").isprintable()


def test_ordinary_names_are_unchanged():
    assert printable("浣熊 é/raccoon-1.jpg") == "浣熊 é/raccoon-1.jpg"


def test_escapes():
    assert printable("a\x1b[31mb\n\u202ec\ud800") == "a\\x1b[31mb\\n\\u202ec\\ud800"
    assert printable("a" * 50, 10) == "aaaaaa…aaa"
    assert len(printable("x" * 10_000_000)) == 300
