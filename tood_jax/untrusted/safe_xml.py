"""Read untrusted XML: of bounded size, and without a document type, whose entities could fill memory or read files."""

from typing import NoReturn
from xml.etree.ElementTree import Element, ParseError, fromstring
from xml.parsers import expat

MAX_BYTES = 64 << 20
_MAX_DEPTH = 100  # elements inside each other


class XmlError(ValueError):
    """XML that is not read; the message completes a sentence that begins with the file: "is not XML (…)"."""


def parse_xml(data: bytes, max_bytes: int = MAX_BYTES) -> Element:
    """Return the root element. Raises XmlError: not XML, too long, too deep, or with a document type (<!DOCTYPE …>)."""
    if len(data) > max_bytes:
        raise XmlError(f"has {len(data):,} bytes, more than the {max_bytes:,} that are read")
    try:
        _check(data)
        return fromstring(data)
    except (expat.ExpatError, ParseError) as error:
        raise XmlError(f"is not XML ({str(error)[:200]})") from None
    except (ValueError, LookupError) as error:  # an unknown encoding
        raise error if isinstance(error, XmlError) else XmlError(f"is not XML ({str(error)[:200]})") from None


def _check(data: bytes) -> None:
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise XmlError("is nested too deeply")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> NoReturn:
        raise XmlError("has a document type (<!DOCTYPE …>), which is not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
