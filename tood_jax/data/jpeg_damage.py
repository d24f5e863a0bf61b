"""Detect damaged data inside a JPEG, which OpenCV decodes without an error.

There are three signs of damage: markers at invalid positions, sectors of zeros, and pixels without data. None of these
checks decodes the image again, which would also make libjpeg print to stderr. Other damage, such as a single wrong bit,
is not detected.
"""

from collections.abc import Collection, Iterator

import numpy as np

_BETWEEN_SCANS = frozenset({0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # tables, comments, scans
_RESTARTS = range(0xD0, 0xD8)
_SECTOR = bytes(64)
_MISSING_GREY = 128  # libjpeg leaves pixels without data at exactly mid-grey
_BLOCK = 8  # pixels
_MIN_TAIL = 24  # pixels
_MAX_UNIT_HEIGHT = 2  # blocks, of a unit that is coded together


def has_damaged_data(data: bytes, scan: int, has_restarts: bool, is_single_scan: bool) -> bool:
    """Return whether the first scan contains invalid markers or zeros.

    Args:
        data: the file up to its marker EOI.
        scan: position of the first marker SOS.
        has_restarts: whether there may be restart markers.
        is_single_scan: whether no other scan follows.
    """
    start = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
    if is_single_scan and data.find(_SECTOR, start) >= 0 and not _zeros_are_valid(data[:scan]):
        return True
    return _has_false_markers(data, start, has_restarts, () if is_single_scan else _BETWEEN_SCANS)


def ends_early(image: np.ndarray, is_upright: bool) -> bool:
    """Return whether the last pixels of an image, in the order of its data, were left without data.

    Such pixels are mid-grey: the end of a row of blocks and all rows below it. A grey border, which consists of
    complete rows or columns, does not count, and neither does a row with grey blocks elsewhere.

    Args:
        image: [h, w, 3] as decoded.
        is_upright: whether the data are in the order of this image; otherwise the decoder may have rotated it.
    """
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not (corners == _MISSING_GREY).all(axis=1).any():
        return False
    rotated = (view[::down, ::right] for view in (image, image.swapaxes(0, 1)) for down in (1, -1) for right in (1, -1))
    return any(map(_has_grey_tail, [image] if is_upright else rotated))


def _has_grey_tail(image: np.ndarray) -> bool:
    tails: list[int] = []  # of the lowest row of blocks that is not completely grey, and of the rows above it
    for top in reversed(range(0, image.shape[0], _BLOCK)):
        columns = (image[top : top + _BLOCK] == _MISSING_GREY).all(axis=(0, 2))
        if tails or not columns.all():
            tails.append(_grey_tail(columns))
        if len(tails) > _MAX_UNIT_HEIGHT:
            break
    return bool(tails) and tails[0] >= _MIN_TAIL and 0 in tails


def _grey_tail(columns: np.ndarray) -> int:
    """Return the number of grey columns at the end of a row of blocks; 0 if grey blocks precede them."""
    tail = len(columns) if columns.all() else int(np.argmin(columns[::-1]))
    before = columns[: (len(columns) - tail) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    return 0 if tail < len(columns) and before.all(axis=1).any() else tail


def _has_false_markers(data: bytes, start: int, has_restarts: bool, end_markers: Collection[int]) -> bool:
    expected = 0
    for marker in _markers(data, start):
        if marker in end_markers:
            return False
        if not has_restarts or marker != _RESTARTS[expected]:
            return True
        expected = (expected + 1) % 8
    return False


def _markers(data: bytes, start: int) -> Iterator[int]:
    """Yield the markers in a scan's data; FF 00 is an escaped byte FF, and FF FF is a fill byte."""
    scan = np.frombuffer(data, np.uint8)[start:]
    codes = scan[1:][scan[:-1] == 0xFF]
    yield from codes[(codes != 0x00) & (codes != 0xFF)].tolist()


def _zeros_are_valid(header: bytes) -> bool:
    """Return whether zeros can encode a uniform area: the shortest code of each AC table is that of "end of block"."""
    position = 2
    shortest: list[int] = []
    while position + 4 <= len(header) and header[position] == 0xFF:
        length = int.from_bytes(header[position + 2 : position + 4])
        if header[position + 1] == 0xC4:
            shortest += _first_symbols(header[position + 4 : position + 2 + length])
        position += 2 + length
    return all(symbol == 0 for symbol in shortest)


def _first_symbols(tables: bytes) -> Iterator[int]:
    """Yield the symbol with the code 0…0 of each AC table in a segment DHT."""
    while len(tables) > 17:
        if tables[0] >> 4 == 1:
            yield tables[17]
        tables = tables[17 + sum(tables[1:17]) :]
