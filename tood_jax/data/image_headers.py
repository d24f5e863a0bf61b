"""Size and depth of an image file from its header, and whether a JPEG or PNG is complete.

Files are checked before OpenCV decodes them, because it decodes a truncated JPEG without an error, with the missing
part grey, and allocates memory for any size that a header gives. Files of unknown formats are left to OpenCV.
"""

from typing import NamedTuple

from tood_jax.data.jpeg_damage import has_damaged_data

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers SOF0 … SOF15
_SEQUENTIAL = {0xC0, 0xC1}
_TIFF_TYPES = {1: 1, 3: 2, 4: 4, 16: 8}  # integer types: code → bytes


class Header(NamedTuple):
    """What is known about a file without decoding it."""

    height: int = 0  # pixels, as stored; 0 if unknown
    width: int = 0
    is_upright: bool = False  # whether these are certainly the sides of the upright image
    is_complete: bool = True  # whether the end of the image was found
    bits: int = 8  # per channel
    is_damaged: bool = False  # whether the data of a JPEG are certainly damaged


def read_header(data: bytes) -> Header:
    """Return what the header contains; the defaults for damaged headers and unknown formats."""
    for start, read in _READERS:
        if data.startswith(start):
            try:
                return read(data)
            except IndexError:  # the file is too short
                return Header()
    return Header()


def _jpeg(data: bytes) -> Header:
    """Parse a JPEG.

    Its end marker is searched after the start of the first scan: a thumbnail in the header has an end marker too, and
    cameras append other data to the image.
    """
    height, width, has_exif, position = 0, 0, False, 2
    has_restarts, channels = False, 0  # whether the data have restart markers; channels if one scan holds them all
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # start of scan
            break
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        has_exif |= marker == 0xE1
        if marker in _FRAMES:
            height = int.from_bytes(data[position + 5 : position + 7])
            width = int.from_bytes(data[position + 7 : position + 9])
            channels = data[position + 9] if marker in _SEQUENTIAL else 0
        if marker == 0xDD:
            has_restarts = any(data[position + 4 : position + 6])
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    end = data.find(b"\xff\xd9", position)
    is_single_scan = channels > 0 and data[position + 4 : position + 5] == bytes([channels])
    is_damaged = end >= 0 and has_damaged_data(data[:end], position, has_restarts, is_single_scan)
    return Header(height, width, not has_exif and height * width > 0, end >= 0, is_damaged=is_damaged)


def _png(data: bytes) -> Header:
    position = len(_PNG)  # of a chunk, which has a length, name, data and checksum
    while position + 12 <= len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4])
    height, width = int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    return Header(height, width, is_complete=position + 12 <= len(data), bits=max(8, data[24]) if len(data) > 24 else 8)


def _bmp(data: bytes) -> Header:
    if int.from_bytes(data[14:18], "little") == 12:  # OS/2
        return Header(int.from_bytes(data[20:22], "little"), int.from_bytes(data[18:20], "little"))
    height, width = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (22, 18))
    return Header(abs(height), abs(width))


def _gif(data: bytes) -> Header:
    return Header(int.from_bytes(data[8:10], "little"), int.from_bytes(data[6:8], "little"))


def _webp(data: bytes) -> Header:
    kind = data[12:16] if data[8:12] == b"WEBP" else b""
    if kind == b"VP8X":
        return Header(1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little"))
    if kind == b"VP8L":
        both = int.from_bytes(data[21:25], "little")
        return Header(1 + (both >> 14 & 0x3FFF), 1 + (both & 0x3FFF))
    if kind == b"VP8 ":
        height, width = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (28, 26))
        return Header(height, width)
    return Header()


def _tiff(data: bytes) -> Header:
    """Parse the header of the first image in a TIFF."""
    order = "little" if data[0] == data[1] == ord("I") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    big = number(2, 2) == 43  # BigTIFF, with offsets of 8 bytes
    start, count_size, entry, inline = (number(8, 8), 8, 20, 12) if big else (number(4, 4), 2, 12, 8)
    tags = {}
    for index in range(min(number(start, count_size), 4096)):
        at = start + count_size + index * entry
        size = _TIFF_TYPES.get(number(at + 2, 2), 0)
        count = number(at + 4, inline - 4)
        value = at + inline if size * count <= entry - inline else number(at + inline, entry - inline)
        tags[number(at, 2)] = number(value, size)
    return Header(tags.get(257, 0), tags.get(256, 0), bits=max(8, tags.get(258, 8)))


_READERS = (
    (b"\xff\xd8", _jpeg),
    (_PNG, _png),
    (b"BM", _bmp),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
    (b"II", _tiff),
    (b"MM", _tiff),
)
