"""Image files of every kind, whole and broken; Pillow is the judge of colours."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.conftest import picture
from tood_jax.data.decode import MAX_PIXELS, decode_image, image_size, reduction
from tood_jax.data.errors import BrokenImageError

RGB = picture(36, 48)
PICTURE = Image.fromarray(RGB)
ROTATED = 0x0112  # EXIF's tag of the orientation


def with_alpha(image):
    image = image.convert("RGBA")
    image.putalpha(90)
    return image


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("color.jpg", PICTURE),
        ("gray.jpg", PICTURE.convert("L")),
        ("cmyk.jpg", PICTURE.convert("CMYK")),  # Pillow writes it as Adobe does, inverted
        ("palette.png", PICTURE.quantize(16)),
        ("alpha.png", with_alpha(PICTURE)),
        ("gray_alpha.png", PICTURE.convert("LA")),
        ("black_white.png", PICTURE.convert("1")),
        ("picture.bmp", PICTURE),
        ("picture.webp", PICTURE),
        ("picture.tiff", PICTURE),
        ("picture.gif", PICTURE.quantize(16)),
    ],
)
def test_colors_are_those_pillow_sees(tmp_path, name, image):
    file = tmp_path / name
    image.save(file)
    decoded = decode_image(file)
    assert (decoded.shape, decoded.dtype) == ((36, 48, 3), np.uint8)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(decoded - expected).max() <= 2


@pytest.mark.parametrize("kind", ["inverted", "unmarked", "ycck"])
def test_every_kind_of_cmyk_jpeg(tmp_path, kind):
    data = bytearray(jpeg(PICTURE.convert("CMYK"), quality=95))
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    if kind == "unmarked":  # without Adobe's segment
        del data[start : start + 16]
    elif kind == "ycck":
        data[start + 15] = 2  # the segment's last byte: how colours are transformed
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).astype(int)
    assert np.abs(decode_image(tmp_path / "a.jpg") - expected).max() <= 2
    if kind != "ycck":
        assert np.abs(expected - RGB).mean() < 8  # Pillow has it right


@pytest.mark.parametrize("image", [RGB, np.repeat(RGB[..., :1], 3, axis=2)], ids=["color", "gray"])
def test_16_bits_become_8(tmp_path, image):
    gray = (image[..., 0] == image[..., 1]).all()
    cv2.imwrite(str(tmp_path / "deep.png"), (image[..., 0] if gray else image[..., ::-1]).astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_image(tmp_path / "deep.png"), image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_as_pillow_turns_it(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ROTATED] = orientation
    PICTURE.save(tmp_path / "a", kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a")).convert("RGB"))
    assert np.abs(decode_image(tmp_path / "a").astype(int) - upright).max() <= 2


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[ROTATED] = orientation
    file = tmp_path / "turned.png"
    PICTURE.save(file, exif=exif)
    upright = np.rot90(RGB, turns)
    np.testing.assert_array_equal(decode_image(file), upright)
    np.testing.assert_array_equal(decode_image(file, upright.shape[:2]), upright)
    assert image_size(file) == upright.shape[:2]
    if turns % 2:  # the annotations were made on the raw pixels
        np.testing.assert_array_equal(decode_image(file, (36, 48)), RGB)


def test_a_size_other_than_the_annotations_is_an_error(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match=r"a\.png is 48×36 pixels, but its annotations are for 50×36"):
        decode_image(tmp_path / "a.png", (36, 50))
    with pytest.raises(BrokenImageError, match="annotations are for 36×48"):  # no EXIF says it was turned
        decode_image(tmp_path / "a.png", (48, 36))


def jpeg(image=PICTURE, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpegs_are_not_half_pictures(tmp_path, progressive, share):
    whole = jpeg(progressive=progressive)
    (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BrokenImageError, match=r"cut\.jpg is truncated"):
        decode_image(tmp_path / "cut.jpg")


def test_a_thumbnail_does_not_hide_a_truncation(tmp_path):
    whole, thumbnail = jpeg(), jpeg()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment + whole[2:])
    assert decode_image(tmp_path / "a.jpg").shape == (36, 48, 3)
    (tmp_path / "a.jpg").write_bytes((whole[:2] + segment + whole[2:])[:-100])
    with pytest.raises(BrokenImageError, match="truncated"):
        decode_image(tmp_path / "a.jpg")


def test_what_cameras_append_does_no_harm(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg() + b"film \xff\xda film")
    assert decode_image(tmp_path / "a.jpg").shape == (36, 48, 3)


def test_truncated_png(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for length in (9, 20, 40, len(data) // 2, len(data) - 13, len(data) - 1):
        (tmp_path / "a.png").write_bytes(data[:length])
        with pytest.raises(BrokenImageError, match=r"a\.png is truncated"):
            decode_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(data + b"something appended" * 100)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_other_truncated_files(tmp_path, kind, share):
    PICTURE.save(tmp_path / "a", kind)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BrokenImageError, match="is not an image that can be decoded"):
        decode_image(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is not an image"),
        (b"\xff\xd8\xff\xd9", "is not an image"),
        (None, "can't be read"),
    ],
)
def test_no_image_at_all(tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(BrokenImageError, match=f"bad.jpg {message}"):
        decode_image(tmp_path / "bad.jpg")


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(BrokenImageError, match="can't be read"):
        decode_image(tmp_path)


def test_a_png_or_bmp_that_promises_100_000_squared_is_refused_at_once(tmp_path):
    side = 100_000
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(png)
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(bmp)
    start = time.perf_counter()
    with pytest.raises(BrokenImageError, match=r"a\.png has 10000 million pixels, more than the 200 million"):
        decode_image(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match=r"a\.bmp (can't be|is not an image that can be) decoded"):
        decode_image(tmp_path / "a.bmp")
    assert time.perf_counter() - start < 1


def test_decompression_bombs_are_refused_unread(tmp_path):
    side = 20_000
    assert side * side > MAX_PIXELS
    PICTURE.save(tmp_path / "bomb.png")
    png = bytearray((tmp_path / "bomb.png").read_bytes())
    png[16:24] = struct.pack(">II", side, side)
    (tmp_path / "bomb.png").write_bytes(png)
    bomb = bytearray(jpeg())
    frame = bomb.index(b"\xff\xc0")
    bomb[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    (tmp_path / "bomb.jpg").write_bytes(bomb)
    for name in ("bomb.png", "bomb.jpg"):
        with pytest.raises(BrokenImageError, match=rf"{name} has 400 million pixels, more than the 200 million"):
            decode_image(tmp_path / name)


@pytest.mark.parametrize(
    ("size", "at_least", "expected"),
    [
        ((960, 1280), (480, 640), 2),
        ((960, 1280), (481, 641), 1),
        ((960, 1280), (480, 641), 1),
        ((3000, 4000), (750, 1000), 4),
        ((3000, 4000), (800, 1067), 2),
        ((3000, 4000), (10, 10), 8),
        ((3000, 4001), (10, 10), 1),
        ((3004, 4000), (10, 10), 4),
        ((480, 640), (800, 1067), 1),
    ],
)
def test_how_far_an_image_may_be_reduced(size, at_least, expected):
    assert reduction(size, at_least) == expected


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("raw", [False, True])
def test_scaled_decoding_gives_the_means_of_blocks(tmp_path, factor, orientation, raw):
    """Also of turned files, whichever way their annotations were made."""
    exif = Image.Exif()
    exif[ROTATED] = orientation
    (tmp_path / "a.jpg").write_bytes(jpeg(Image.fromarray(picture(160, 240)), quality=98, exif=exif, subsampling=0))
    size = (160, 240) if raw or orientation == 1 else (240, 160)
    full = decode_image(tmp_path / "a.jpg", size)
    found = decode_image(tmp_path / "a.jpg", size, (size[0] // factor, size[1] // factor))
    assert found.shape == (size[0] // factor, size[1] // factor, 3)
    blocks = full.reshape(found.shape[0], factor, found.shape[1], factor, 3).mean(axis=(1, 3))
    assert np.abs(blocks - found).max() <= 3


def test_other_formats_and_odd_sizes_are_decoded_whole(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    PICTURE.resize((49, 36)).save(tmp_path / "a.jpg")
    assert decode_image(tmp_path / "a.png", (36, 48), (9, 12)).shape == (36, 48, 3)
    assert decode_image(tmp_path / "a.jpg", (36, 49), (9, 12)).shape == (36, 49, 3)
    with pytest.raises(BrokenImageError, match="is 49×36 pixels, but its annotations are for 48×36"):
        decode_image(tmp_path / "a.jpg", (36, 48), (9, 12))


def test_sizes_come_from_the_header_where_it_suffices(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg(PICTURE))
    turned = Image.Exif()
    turned[ROTATED] = 6
    (tmp_path / "turned.jpg").write_bytes(jpeg(PICTURE, exif=turned))
    assert image_size(tmp_path / "turned.jpg") == (48, 36)
    monkeypatch.setattr("tood_jax.data.decode._decode", None)
    assert image_size(tmp_path / "a.jpg") == image_size(str(tmp_path / "a.jpg")) == (36, 48)
