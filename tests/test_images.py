"""Decoding: what a person would see, limits before pixels, and a reason for whatever fails."""

import io
import random
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images import REASONS, DecodeSettings, decode
from chiasm.pipeline.images.decode import MAX_ASPECT

FULL = DecodeSettings()
SCALED = DecodeSettings(scaled=True)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixels(data: bytes, settings: DecodeSettings = FULL, target: int | None = None) -> np.ndarray:
    picture = decode(data, settings, target)
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image)


def reason(data: bytes, settings: DecodeSettings = FULL, target: int | None = None) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(data, settings, target)
    assert caught.value.reason in REASONS
    assert " at 0x" not in caught.value.detail  # the same bytes, the same words
    return caught.value.reason


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth and sharp parts, no symmetry."""
    y, x = np.mgrid[0:64, 0:96].astype(np.float32)
    bands = np.stack([x * 2.6, y * 3.9, 128 + 90 * np.sin(x / 5 + y / 7)], axis=-1)
    bands[8:20, 10:30] = (250, 20, 10)
    return Image.fromarray(bands.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP", "AVIF", "ICO"])
def test_every_format_is_read(photo, form):
    image = photo.resize((64, 64)) if form == "ICO" else photo
    options = (
        {"lossless": True} if form == "WEBP" else {"sizes": [(64, 64)]} if form == "ICO" else {}
    )
    picture = decode(encode(image, form, **options), FULL, None)
    assert (picture.width, picture.height) == picture.image.size == image.size
    apart = np.abs(np.asarray(picture.image, np.int16) - np.asarray(image)).mean()
    assert apart == 0 if form in ("PNG", "BMP", "TIFF", "WEBP", "ICO") else apart < 8


@pytest.mark.parametrize(
    "mode, form",
    [
        *[("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("CMYK", "JPEG")],
        *[("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("RGBX", "TIFF"), ("LAB", "TIFF")],
    ],
)
def test_every_mode_becomes_what_a_person_sees(photo, mode, form):
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(photo, *profiles, outputMode="LAB")
    else:
        image = photo.convert(mode)
    seen = pixels(encode(image, form)).astype(np.int16)
    expected = photo if mode == "LAB" else image.convert("RGB")
    assert np.abs(seen - np.asarray(expected)).mean() < 3


def test_a_cmyk_jpeg_with_inverted_inks_is_not_a_negative():
    # Adobe writes inks inverted and says so; Pillow writes likewise: white paper has no ink.
    white = encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in white and pixels(white).min() > 250


@pytest.mark.parametrize("target", [None, 8])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright(photo, form, orientation, target):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, form, exif=exif, **({"quality": 100} if form != "PNG" else {}))
    picture = decode(data, SCALED, target)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert (picture.width, picture.height) == upright.size
    assert upright.size == ((64, 96) if orientation in (5, 6, 7, 8) else (96, 64))
    small = np.asarray(upright.resize(picture.image.size), np.int16)
    assert np.abs(small - np.asarray(picture.image)).mean() < 6
    assert (picture.image.size != upright.size) == (form == "JPEG" and target == 8)


def test_broken_exif_does_not_cost_the_picture(photo):
    for junk in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(5), b"Exif\0\0MM\0*" * 9):
        assert pixels(encode(photo, "JPEG", exif=junk)).shape == (64, 96, 3)


@pytest.mark.parametrize(
    "mode, colour, white",
    [
        *[("RGBA", (255, 0, 0, 0), 255), ("RGBA", (0, 0, 0, 255), 0), ("RGBA", (0, 0, 0, 51), 204)],
        *[("LA", (0, 0), 255), ("LA", (0, 255), 0), ("LA", (0, 127), 128)],
    ],
)
def test_transparency_is_on_white(mode, colour, white):
    assert (pixels(encode(Image.new(mode, (4, 4), colour))) == white).all()


def test_transparent_colours_and_palettes_are_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for options in ({"transparency": 1}, {"transparency": b"\xff\x00"}):
        assert pixels(encode(palette, **options)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(encode(palette, "GIF", transparency=0))[0, 0].tolist() == [255, 255, 255]
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert pixels(encode(red, transparency=(255, 0, 0))).tolist() == [[[255, 255, 255]]]
    assert pixels(encode(Image.new("L", (1, 1), 7), transparency=7)).tolist() == [[[255] * 3]]
    assert pixels(encode(Image.new("1", (1, 1), 0), transparency=0)).tolist() == [[[255] * 3]]
    assert (pixels(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "WEBP")) == 255).all()


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 20, 255]], np.int32), [0, 20, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 250_000, 1_000_000]], np.int32), [0, 64, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 51, 255]], np.float32), [0, 51, 255]),
        (np.array([[np.nan, np.inf, 0.2, 1]], np.float32), [0, 255, 51, 255]),
        (np.array([[7, 7]], np.float32), [7, 7]),
        (np.array([[np.nan]], np.float32), [0]),
        (np.array([[-5, -5]], np.float32), [0, 0]),
    ],
)
def test_wide_grey_is_scaled_and_not_clipped(values, expected):
    assert pixels(encode(Image.fromarray(values), "TIFF"))[0, :, 1].tolist() == expected


def test_16_bit_png_and_big_endian_tiff():
    grey = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert pixels(encode(grey))[0, :, 0].tolist() == [0, 1, 255]
    data = struct.pack(">2sHIH", b"MM", 42, 8, 8)
    for tag, kind, value in ((256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1)):
        data += struct.pack(">HHIHH", tag, kind, 1, value, 0)
    for tag, value in ((273, 110), (278, 1), (279, 4)):
        data += struct.pack(">HHII", tag, 4, 1, value)
    data = (data + bytes(4)).ljust(110, b"\0") + struct.pack(">HH", 257, 65535)
    assert pixels(data)[0, :, 0].tolist() == [1, 255]


def test_of_many_frames_the_first_is_taken(photo):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 3
    mpo = encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)])
    assert np.abs(pixels(mpo).astype(int) - np.asarray(photo)).mean() < 5


# --- limits and reasons ---------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT" + bytes(100)


def test_the_limit_is_checked_on_the_header():
    assert reason(png_header(10_001, 10_000)) == "too_many_pixels"
    assert reason(png_header(2**31 - 1, 2**31 - 1)) == "too_many_pixels"
    assert reason(png_header(10_000, 10_000)) != "too_many_pixels"
    assert reason(png_header(100, 100), DecodeSettings(max_megapixels=0.009)) == "too_many_pixels"


@pytest.mark.parametrize("turn", [None, Image.Transpose.TRANSPOSE])
def test_of_a_picture_that_is_long_and_thin_the_middle_is_seen(turn):
    slope = np.linspace(0, 255, 4000, dtype=np.uint8)
    strip = Image.fromarray(np.broadcast_to(slope[None, :, None], (3, 4000, 3)).copy())
    data = encode(strip if turn is None else strip.transpose(turn))
    for target, length in ((224, 3 * MAX_ASPECT), (None, 600)):
        picture = decode(data, FULL, target)
        sides = [(picture.width, picture.height), picture.image.size]
        assert sides == [pair if turn is None else pair[::-1] for pair in ((4000, 3), (length, 3))]
        middle = np.asarray(picture.image).reshape(-1, 3)
        assert (
            middle.min() == slope[2000 - length // 2] and middle.max() == slope[1999 + length // 2]
        )
    whole = encode(Image.new("RGB", (MAX_ASPECT, 1)))
    assert pixels(whole, target=224).shape == (1, MAX_ASPECT, 3)


def test_too_many_bytes_and_none(photo):
    data = encode(photo)
    assert reason(data, DecodeSettings(max_member_bytes=len(data) - 1)) == "member_too_large"
    assert pixels(data, DecodeSettings(max_member_bytes=len(data))).size
    assert reason(b"") == reason(b"hello") == reason(b"<svg/>" * 99) == "not_a_picture"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_picture_cut_in_half_is_truncated(photo, form):
    data = encode(photo, form)
    assert reason(data[: len(data) // 2]) == "truncated"
    assert reason(data[: len(data) * 4 // 5], target=8) == "truncated"


def test_other_reasons(photo, monkeypatch):
    png = encode(photo)
    assert reason(png[:60] + b"\xff" * 40 + png[100:]) == "corrupt"
    bmp = bytearray(encode(photo, "BMP"))
    bmp[28:30] = struct.pack("<H", 30_000)  # bits a pixel
    assert reason(bytes(bmp)) == "unsupported"
    jpeg = bytearray(encode(photo, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = bytes(4)  # no height, no width
    assert reason(bytes(jpeg)) == "corrupt"

    def no_memory(*_):
        raise MemoryError

    grey = encode(photo.convert("L"))
    monkeypatch.setattr(Image.Image, "convert", no_memory)
    assert reason(grey) == "out_of_memory"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "AVIF"])
def test_whatever_the_bytes_nothing_else_is_raised(photo, form):
    image = photo.resize((32, 24))
    data = encode(image, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    chance = random.Random(form)
    outcomes = set()
    for _ in range(60):
        broken = bytearray(data[: chance.choice([None, chance.randrange(len(data))])])
        for _ in range(chance.randrange(8)):
            if broken:
                broken[chance.randrange(min(len(broken), 400))] = chance.randrange(256)
        try:
            outcomes.add(pixels(bytes(broken), DecodeSettings(max_megapixels=1), 8).shape[2])
        except Undecodable as failure:
            outcomes.add(failure.reason)
    assert outcomes <= {3, *REASONS} and len(outcomes) > 1


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]),
    st.binary(),
)
def test_no_bytes_raise_anything_else(start, rest):
    with pytest.raises(Undecodable):
        decode(start + rest, DecodeSettings(max_megapixels=0), None)


# --- scaled decoding ------------------------------------------------------------------------------


def test_scaled_decoding_keeps_twice_the_side_that_is_needed():
    photo = Image.effect_mandelbrot((1600, 1200), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    data = encode(photo, "JPEG", quality=90)
    for target, size in ((64, (200, 150)), (75, (200, 150)), (76, (400, 300)), (150, (400, 300))):
        picture = decode(data, SCALED, target)
        assert picture.image.size == size and min(size) >= 2 * target
        assert (picture.width, picture.height) == (1600, 1200)
    for decode_settings, target in ((SCALED, 301), (SCALED, None), (FULL, 64)):
        assert decode(data, decode_settings, target).image.size == (1600, 1200)


def test_scaled_decoding_changes_less_than_another_filter_would():
    chance = np.random.default_rng(0)
    rough = Image.fromarray(chance.integers(0, 256, (150, 200, 3), np.uint8))
    photo = rough.resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encode(photo, "JPEG", quality=90)

    def seen(image, resample):
        return np.asarray(image.resize((100, 75), resample), np.float32)

    whole = decode(data, FULL, 75).image
    scaled = decode(data, SCALED, 75).image
    reference = seen(whole, Image.Resampling.BICUBIC)
    by_scaling = np.abs(seen(scaled, Image.Resampling.BICUBIC) - reference).mean()
    by_filter = np.abs(seen(whole, Image.Resampling.LANCZOS) - reference).mean()
    assert 0 < by_scaling < by_filter


# --- noise ----------------------------------------------------------------------------------------


def test_pillows_warnings_stay_away_and_nobody_elses(photo):
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    ifd[270] = "x" * 50
    cut = bytearray(encode(photo, "TIFF", tiffinfo=ifd))
    cut[4:8] = struct.pack("<I", len(cut) - 20)  # the directory lies beyond the end
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert reason(bytes(cut)) in ("truncated", "corrupt", "not_a_picture")
            assert reason(png_header(9_500, 9_500)) != "too_many_pixels"  # warns at 89 megapixels
        warnings.warn("mine", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["mine"]


def test_threads_get_what_one_gets(photo):
    datas = [encode(photo.rotate(angle), form) for angle in (0, 20, 50) for form in ("PNG", "JPEG")]
    alone = [pixels(data).tobytes() for data in datas]
    barrier = threading.Barrier(6)

    def run(data):
        barrier.wait()
        return [pixels(data).tobytes() for _ in range(5)][-1]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, datas)) == alone
