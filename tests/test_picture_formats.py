"""Which formats are read: all that Pillow decodes from the bytes alone, whatever the name says."""

import io
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images import REASONS, DecodeSettings, decode
from chiasm.pipeline.images.formats import TRIED, formats

SAVED = {  # format of Pillow -> (mode it can save, options)
    "BMP": ("RGB", {}),
    "DIB": ("RGB", {}),
    "GIF": ("P", {}),
    "JPEG": ("RGB", {}),
    "MPO": ("RGB", {"save_all": True, "append_images": [Image.new("RGB", (32, 32))]}),
    "PPM": ("RGB", {}),
    "PNG": ("RGB", {}),
    "AVIF": ("RGB", {}),
    "PCX": ("RGB", {}),
    "DDS": ("RGB", {}),
    "ICNS": ("RGB", {}),
    "ICO": ("RGB", {"sizes": [(32, 32)]}),
    "MSP": ("1", {}),
    "QOI": ("RGB", {}),
    "SGI": ("RGB", {}),
    "SPIDER": ("F", {}),
    "TGA": ("RGB", {}),
    "TIFF": ("RGB", {"compression": "tiff_lzw"}),
    "WEBP": ("RGB", {}),
    "XBM": ("1", {}),
    "JPEG2000": ("RGB", {}),
}


def fits() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8"]
    cards += ["NAXIS   =                    2"]
    cards += ["NAXIS1  =                    4", "NAXIS2  =                    4", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(
        range(0, 160, 10)
    ).ljust(2880)


def bitmap_without_header() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 2, 4, 1, 24, 0, 0, 0, 0, 0, 0)
    return header + bytes(range(16)) + bytes(8)


WRITTEN = {  # what Pillow reads and does not write
    "SUN": struct.pack(">8I", 0x59A66A95, 4, 2, 8, 8, 1, 0, 0) + bytes(range(8)),
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"2 2 2 1",\n"a c #ff0000",\n"b c #0000ff",\n'
    b'"ab",\n"ba"\n};\n',
    "CUR": struct.pack("<HHHBBBBHHII", 0, 2, 1, 2, 2, 0, 0, 0, 0, 64, 22) + bitmap_without_header(),
    "FITS": fits(),
    "IMT": b"width 4\nheight 2\npixel n8\n*" + b"-" * 90 + b"\n\x0c" + bytes(range(8)),
    "PSD": b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, 2, 3, 8, 1) + bytes(14) + bytes(range(6)),
}


def saved(form: str) -> bytes:
    mode, options = SAVED[form]
    y, x = np.mgrid[0:32, 0:32]
    picture = Image.fromarray(np.stack([x * 8, y * 8, x + y], axis=-1).astype(np.uint8))
    out = io.BytesIO()
    picture.convert(mode).save(out, form, **options)
    return out.getvalue()


EVERY = {form: saved(form) for form in SAVED} | WRITTEN


@pytest.mark.parametrize("form", EVERY)
def test_every_format_is_what_pillow_makes_of_it(form):
    with Image.open(io.BytesIO(EVERY[form])) as image:
        assert image.format == form and form in (*TRIED.split(), "MPO")
        size, plain = image.size, image.convert("RGB")
    picture = decode(EVERY[form], DecodeSettings(), None)
    assert (picture.width, picture.height) == picture.image.size == size
    if form != "SPIDER":  # floats, which Pillow clips and we scale
        assert picture.image.tobytes() == plain.tobytes()
    assert np.ptp(np.asarray(picture.image)) > 0


def test_what_runs_a_program_or_opens_what_lies_inside_is_never_tried():
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    iptc = b"\x1c\x03\x3c\x00\x02\x01\x00" + b"\x1c\x08\x0a\x00\x04" + b"%!PS"
    for data in (eps.getvalue(), iptc, b"BLP2" + bytes(200), b"GRIB" + bytes(200), b"\0\0\1\xb3\1"):
        with pytest.raises(Undecodable) as caught:
            decode(data, DecodeSettings(), None)
        assert caught.value.reason == "not_a_picture"
    assert not {"EPS", "IPTC", "BLP", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"} & set(formats())
    assert set(formats()) == set(TRIED.split())  # or this build of Pillow lacks one


@pytest.mark.parametrize("form", EVERY)
def test_bytes_changed_at_random_are_a_picture_or_a_reason(form):
    """And never a drop of what Pillow itself still opens."""
    chance, data = random.Random(form), EVERY[form]
    outcomes = set()
    for _ in range(40):
        broken = bytearray(data[: chance.choice([None, chance.randrange(1, len(data))])])
        for _ in range(chance.randrange(6)):
            broken[chance.randrange(min(len(broken), 600))] = chance.randrange(256)
        try:
            decode(bytes(broken), DecodeSettings(max_megapixels=4), 8)
            outcomes.add("row")
        except Undecodable as failure:
            outcomes.add(failure.reason)
            if failure.reason not in ("too_many_pixels", "not_a_picture"):
                with pytest.raises(Exception):  # noqa: B017  Pillow raises nearly everything
                    plainly(bytes(broken))
    assert outcomes <= {"row", *REASONS} and len(outcomes) > 1


PLACES = st.floats(0, 1, exclude_max=True).map(lambda share: share**3)  # headers above all
EDITS = st.lists(st.tuples(PLACES, st.integers(0, 12), st.binary(max_size=12)), max_size=5)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(EVERY)), EDITS, st.floats(0.02, 1), st.sampled_from([None, 8]))
def test_any_file_is_a_picture_or_a_reason(form, edits, length, target):
    """Bytes replaced, cut out, put in; then the end cut off."""
    data = EVERY[form]
    for place, gone, new in edits:
        at = int(place * len(data))
        data = data[:at] + new + data[at + gone :]
    data = data[: max(1, int(length * len(data)))]
    try:
        picture = decode(data, DecodeSettings(max_megapixels=1, max_seconds=5), target)
    except Undecodable as failure:
        assert failure.reason in REASONS and " at 0x" not in failure.detail
        return
    assert picture.image.mode == "RGB" and min(picture.image.size) > 0
    assert picture.width * picture.height <= 1_000_000
    with Image.open(io.BytesIO(data)) as plain:  # no picture where Pillow finds none
        plain.load()


def plainly(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > 4_000_000 or image.format not in TRIED:
            raise UnidentifiedImageError
        image.load()


@pytest.mark.parametrize("form", ["PPM", "TGA", "SGI", "QOI", "PCX", "ICO", "DDS", "SUN", "PSD"])
def test_other_formats_that_end_early_are_truncated(form):
    data = EVERY[form]
    with pytest.raises(Undecodable) as caught:
        decode(data[: len(data) * 3 // 4], DecodeSettings(), None)
    assert caught.value.reason == "truncated"
    assert caught.value.detail.startswith(f"{form}: ")


def test_the_reason_is_what_happened():
    png, jpeg, webp = (EVERY[form] for form in ("PNG", "JPEG", "WEBP"))
    broken_stream = png[:60] + b"\xff" * 8 + png[68:]
    scan = jpeg.index(b"\xff\xda")
    for data, reason in (
        (broken_stream, "corrupt"),
        (broken_stream[:-30], "corrupt"),  # refused before its end is missed
        (png[:-40], "truncated"),
        (jpeg[:scan], "truncated"),  # no pixels at all
        (jpeg[:scan] + b"\xff\xd9", "truncated"),
        (webp[:-9], "truncated"),
        (webp[:40] + b"\xff" * 30 + webp[70:], "corrupt"),
        (b"GIF89a" + bytes(7) + b";", "corrupt"),  # a GIF without a picture
        (b"GIF89a" + bytes(7), "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (b"hello", "not_a_picture"),
    ):
        with pytest.raises(Undecodable) as caught:
            decode(data, DecodeSettings(), None)
        assert (caught.value.reason, data[:20]) == (reason, data[:20]), caught.value.detail
