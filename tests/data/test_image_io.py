"""Image files of every kind, intact and broken; the expected colours are those of Pillow."""

import errno
import io
import os
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.helpers import smooth_image
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.image_headers import read_header
from tood_jax.data.image_io import DAMAGED, DEEP, MAX_PIXELS, decode_image, image_size, reduction

RGB = smooth_image(36, 48)
IMAGE = Image.fromarray(RGB)
ORIENTATION = 0x0112  # EXIF tag


def with_alpha(image):
    image = image.convert("RGBA")
    image.putalpha(90)
    return image


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("color.jpg", IMAGE),
        ("gray.jpg", IMAGE.convert("L")),
        ("cmyk.jpg", IMAGE.convert("CMYK")),  # Pillow writes it as Adobe does, inverted
        ("palette.png", IMAGE.quantize(16)),
        ("alpha.png", with_alpha(IMAGE)),
        ("gray_alpha.png", IMAGE.convert("LA")),
        ("black_white.png", IMAGE.convert("1")),
        ("image.bmp", IMAGE),
        ("image.webp", IMAGE),
        ("image.tiff", IMAGE),
        ("image.gif", IMAGE.quantize(16)),
    ],
)
def test_colors_are_those_of_pillow(tmp_path, name, image):
    file = tmp_path / name
    image.save(file)
    decoded = decode_image(file)
    assert (decoded.shape, decoded.dtype) == ((36, 48, 3), np.uint8)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(decoded - expected).max() <= 2


@pytest.mark.parametrize("kind", ["inverted", "unmarked", "ycck"])
def test_every_kind_of_cmyk_jpeg_is_decoded(tmp_path, kind):
    data = bytearray(jpeg(IMAGE.convert("CMYK"), quality=95))
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    if kind == "unmarked":  # without Adobe's segment
        del data[start : start + 16]
    elif kind == "ycck":
        data[start + 15] = 2  # the segment's last byte is the colour transform
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).astype(int)
    assert np.abs(decode_image(tmp_path / "a.jpg") - expected).max() <= 2
    if kind != "ycck":
        assert np.abs(expected - RGB).mean() < 8  # Pillow is right


@pytest.mark.parametrize("image", [RGB, np.repeat(RGB[..., :1], 3, axis=2)], ids=["color", "gray"])
def test_16_bits_are_reduced_to_8(tmp_path, image):
    gray = (image[..., 0] == image[..., 1]).all()
    cv2.imwrite(str(tmp_path / "deep.png"), (image[..., 0] if gray else image[..., ::-1]).astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_image(tmp_path / "deep.png"), image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_applied_as_in_pillow(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    IMAGE.save(tmp_path / "a", kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a")).convert("RGB"))
    assert np.abs(decode_image(tmp_path / "a").astype(int) - upright).max() <= 2


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_size_decides_whether_the_exif_orientation_is_applied(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = tmp_path / "rotated.png"
    IMAGE.save(file, exif=exif)
    upright = np.rot90(RGB, turns)
    np.testing.assert_array_equal(decode_image(file), upright)
    np.testing.assert_array_equal(decode_image(file, upright.shape[:2]), upright)
    assert image_size(file) == upright.shape[:2]
    if turns % 2:  # the image was annotated without its orientation
        np.testing.assert_array_equal(decode_image(file, (36, 48)), RGB)


def test_a_size_other_than_the_annotations_is_an_error(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match=r"a\.png is 48×36 pixels, but its annotations are for 50×36"):
        decode_image(tmp_path / "a.png", (36, 50))
    with pytest.raises(BrokenImageError, match="annotations are for 36×48"):  # it has no EXIF orientation
        decode_image(tmp_path / "a.png", (48, 36))


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(image=IMAGE, **options):
    return saved(image, "JPEG", **options)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpegs_are_refused(tmp_path, progressive, share):
    intact = jpeg(progressive=progressive)
    (tmp_path / "cut.jpg").write_bytes(intact[: int(len(intact) * share)])
    with pytest.raises(BrokenImageError, match=r"cut\.jpg is truncated"):
        decode_image(tmp_path / "cut.jpg")


def test_a_thumbnail_does_not_hide_a_truncation(tmp_path):
    intact, thumbnail = jpeg(), jpeg()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    (tmp_path / "a.jpg").write_bytes(intact[:2] + segment + intact[2:])
    assert decode_image(tmp_path / "a.jpg").shape == (36, 48, 3)
    (tmp_path / "a.jpg").write_bytes((intact[:2] + segment + intact[2:])[:-100])
    with pytest.raises(BrokenImageError, match="truncated"):
        decode_image(tmp_path / "a.jpg")


def test_data_after_the_end_of_a_jpeg_is_ignored(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg() + b"video \xff\xda video")
    assert decode_image(tmp_path / "a.jpg").shape == (36, 48, 3)


def test_truncated_pngs_are_refused(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for length in (9, 20, 40, len(data) // 2, len(data) - 13, len(data) - 1):
        (tmp_path / "a.png").write_bytes(data[:length])
        with pytest.raises(BrokenImageError, match=r"a\.png is truncated"):
            decode_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(data + b"something appended" * 100)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_other_truncated_files_are_refused(tmp_path, kind, share):
    IMAGE.save(tmp_path / "a", kind)
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
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is an HTML or XML page"),
        (None, "can't be read"),
    ],
)
def test_files_that_are_no_images_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(BrokenImageError, match=f"bad.jpg {message}"):
        decode_image(tmp_path / "bad.jpg")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BrokenImageError, match="can't be read"):
        decode_image(tmp_path)


def test_a_header_with_10_000_million_pixels_is_refused_at_once(tmp_path):
    side = 100_000
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(png)
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(bmp)
    start = time.perf_counter()
    with pytest.raises(BrokenImageError, match=r"a\.png has 10000 million pixels, more than the 200 million"):
        decode_image(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match=r"a\.bmp has 10000 million pixels, more than the 200 million"):
        decode_image(tmp_path / "a.bmp")
    assert time.perf_counter() - start < 1


def test_decompression_bombs_are_refused_undecoded(tmp_path):
    side = 20_000
    assert side * side > MAX_PIXELS
    IMAGE.save(tmp_path / "bomb.png")
    png = bytearray((tmp_path / "bomb.png").read_bytes())
    png[16:24] = struct.pack(">II", side, side)
    (tmp_path / "bomb.png").write_bytes(png)
    bomb = bytearray(jpeg())
    frame = bomb.index(b"\xff\xc0")
    bomb[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    (tmp_path / "bomb.jpg").write_bytes(bomb)
    gif = bytearray(saved(IMAGE.quantize(16), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    (tmp_path / "bomb.gif").write_bytes(gif)
    webp = bytearray(saved(with_alpha(IMAGE), "WEBP"))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (side - 1).to_bytes(3, "little") * 2
    (tmp_path / "bomb.webp").write_bytes(webp)
    tiff = bytearray(saved(IMAGE, "TIFF"))
    for tag, sides in ((256, 48), (257, 36)):
        where = tiff.index(struct.pack("<HHII", tag, 4, 1, sides))
        tiff[where : where + 12] = struct.pack("<HHII", tag, 4, 1, side)
    (tmp_path / "bomb.tiff").write_bytes(tiff)
    names = [f"bomb.{kind}" for kind in ("png", "jpg", "gif", "webp", "tiff")]
    for name in names:
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
def test_the_reduction_keeps_at_least_the_needed_size(size, at_least, expected):
    assert reduction(size, at_least) == expected


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("raw", [False, True])
def test_scaled_decoding_gives_the_means_of_blocks(tmp_path, factor, orientation, raw):
    """Also of rotated files, in whichever orientation they were annotated."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (tmp_path / "a.jpg").write_bytes(
        jpeg(Image.fromarray(smooth_image(160, 240)), quality=98, exif=exif, subsampling=0)
    )
    size = (160, 240) if raw or orientation == 1 else (240, 160)
    full = decode_image(tmp_path / "a.jpg", size)
    reduced = decode_image(tmp_path / "a.jpg", size, (size[0] // factor, size[1] // factor))
    assert reduced.shape == (size[0] // factor, size[1] // factor, 3)
    blocks = full.reshape(reduced.shape[0], factor, reduced.shape[1], factor, 3).mean(axis=(1, 3))
    assert np.abs(blocks - reduced).max() <= 3


def test_other_formats_and_odd_sizes_are_not_reduced(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    IMAGE.resize((49, 36)).save(tmp_path / "a.jpg")
    assert decode_image(tmp_path / "a.png", (36, 48), (9, 12)).shape == (36, 48, 3)
    assert decode_image(tmp_path / "a.jpg", (36, 49), (9, 12)).shape == (36, 49, 3)
    with pytest.raises(BrokenImageError, match="is 49×36 pixels, but its annotations are for 48×36"):
        decode_image(tmp_path / "a.jpg", (36, 48), (9, 12))


def test_a_jpeg_without_exif_is_not_decoded_for_its_size(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg(IMAGE))
    rotated = Image.Exif()
    rotated[ORIENTATION] = 6
    (tmp_path / "rotated.jpg").write_bytes(jpeg(IMAGE, exif=rotated))
    assert image_size(tmp_path / "rotated.jpg") == (48, 36)
    monkeypatch.setattr(cv2, "imdecode", None)
    assert image_size(tmp_path / "a.jpg") == image_size(str(tmp_path / "a.jpg")) == (36, 48)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_headers_of_every_format_contain_the_size(kind, mode):
    image = {"RGB": IMAGE, "L": IMAGE.convert("L"), "P": IMAGE.quantize(8), "RGBA": with_alpha(IMAGE)}[mode]
    if kind == "JPEG":
        image = image.convert("L" if mode == "L" else "RGB")
    if kind == "WEBP" and mode == "P":
        image = image.convert("RGB")
    for lossless in (False, True) if kind == "WEBP" else (False,):
        header = read_header(saved(image, kind, **({"lossless": lossless} if kind == "WEBP" else {})))
        assert (header.height, header.width, header.bits, header.is_damaged) == (36, 48, 8, False)


@given(st.binary(max_size=80), st.sampled_from([b"", b"BM", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"\xff\xd8\xff"]))
def test_no_header_raises(data, start):
    read_header(start + data)


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_the_bit_depth_selects_the_highest_8_bits(tmp_path, kind, bits):
    deep = (RGB[..., ::-1].astype(np.uint16) << (bits - 8)) + 1
    cv2.imwrite(str(tmp_path / f"a.{kind}"), deep)
    noticed = []
    decoded = decode_image(tmp_path / f"a.{kind}", bit_depth=bits, noticed=noticed)
    np.testing.assert_allclose(decoded, RGB, atol=int(kind == "tiff" and bits == 16))  # OpenCV rounds here
    assert noticed == [DEEP]


def test_values_beyond_the_bit_depth_become_the_largest(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 5), 40_000, np.uint16))
    assert (decode_image(tmp_path / "a.png", bit_depth=12) == 255).all()
    IMAGE.save(tmp_path / "b.png")
    np.testing.assert_array_equal(
        decode_image(tmp_path / "b.png", bit_depth=12), RGB
    )  # an image of 8 bits is unchanged


def noisy(height=240, width=320, seed=0):
    noise = np.random.default_rng(seed).integers(-30, 30, (height, width, 3))
    return Image.fromarray(np.clip(smooth_image(height, width, seed) + noise, 0, 255).astype(np.uint8))


def damage(data, kind, seed):
    """Return a JPEG with damage as disks and transfers cause it."""
    rng = np.random.default_rng(seed)
    start = data.index(b"\xff\xda") + 20
    at = int(rng.integers(start, len(data) - 3000))
    sector = {
        "zeros": bytes(512),
        "random": rng.integers(0, 256, 512, dtype=np.uint8).tobytes(),
        "ones": b"\xff" * 512 + b"\x01",
        "missing": b"",
    }
    return data[:at] + b"\xff\xd9" if kind == "cut" else data[:at] + sector[kind] + data[at + 512 :]


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["zeros", "random", "ones", "missing", "cut"])
def test_damage_inside_jpegs_is_noticed(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    intact = jpeg(noisy(), quality=90, exif=exif)
    detected = 0
    for seed in range(20):
        (tmp_path / "a.jpg").write_bytes(damage(intact, kind, seed))
        noticed = []
        try:
            decode_image(tmp_path / "a.jpg", noticed=noticed)
        except BrokenImageError:
            noticed = [DAMAGED]
        detected += noticed == [DAMAGED]
    assert detected >= 16  # a damaged sector may still be valid data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}, {"optimize": True}])
@pytest.mark.parametrize("gray_border", [None, "below", "right", "both"])
def test_no_intact_jpeg_counts_as_damaged(tmp_path, options, gray_border):
    for seed in range(4):
        image = np.array(noisy(seed=seed))
        if gray_border:
            image[:, 100:] = 128
            image[100:] = 128
        for variant in (Image.fromarray(image), Image.fromarray(image).convert("L")):
            (tmp_path / "a.jpg").write_bytes(jpeg(variant, quality=80, **options))
            noticed = []
            decode_image(tmp_path / "a.jpg", noticed=noticed)
            decode_image(tmp_path / "a.jpg", (240, 320), (30, 40), noticed=noticed)
            assert noticed == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("of_a_library", [False, True])
def test_failures_of_the_machine_are_not_broken_images(number, of_a_library):
    class Path:
        name = "a.jpg"

        def read_bytes(self):
            text = os.strerror(number)
            raise RuntimeError(f"open() failed: {text}; a.rec") if of_a_library else OSError(number, text)

        def __str__(self):
            return "set: a.jpg (record 3)"

    with pytest.raises(DataError, match="is not a fault of the image") as error:
        decode_image(Path())
    assert not isinstance(error.value, BrokenImageError)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_missing_files_are_broken_images(tmp_path, number):
    (tmp_path / "file").write_bytes(b"")
    names = {errno.ENOENT: "none", errno.ENOTDIR: "file/a.jpg", errno.ENAMETOOLONG: "a" * 300}
    with pytest.raises(BrokenImageError, match="can't be read"):
        decode_image(tmp_path / names[number])


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BrokenImageError, match=r"a\.jpg can't be read \(it is a FIFO, not a regular file\)"):
        decode_image(tmp_path / "a.jpg")


def test_file_names_are_escaped_in_errors(tmp_path):
    with pytest.raises(BrokenImageError) as error:
        decode_image(tmp_path / "a\n\x1b[2J.jpg")
    assert str(error.value).isprintable()
