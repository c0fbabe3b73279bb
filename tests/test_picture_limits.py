"""No picture takes more than the stated memory, time and pixels, whatever it says of itself."""

import importlib
import io
import itertools
import struct
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from PIL import Image

from chiasm.pipeline.errors import Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, bounded_file, decode
from chiasm.pipeline.images import headers as picture_headers
from chiasm.pipeline.images.bounded_file import BoundedFile

images = importlib.import_module("chiasm.pipeline.images.decode")

FULL = DecodeSettings()


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def failure_of(data: bytes, settings: DecodeSettings = FULL, target: int | None = 8) -> Undecodable:
    with pytest.raises(Undecodable) as caught:
        decode(data, settings, target)
    return caught.value


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, which changes nothing, is there so many times more."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def scans_of_one_colour(side: int, scans: int) -> bytes:
    """A sequential JPEG whose scans are of one component each, the same one again and again."""
    data = encode(Image.new("RGB", (side, side)), "JPEG")
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(4)
    return data[: data.rindex(b"\xff\xda")] + scan * scans + b"\xff\xd9"


def comments_of_a_gif(blocks: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
    return head + b"\x21\xfe" + b"\x01x" * blocks + b"\0;"


SLOW = {
    "scans of a JPEG": many_scans(2000, 2000),
    "scans of a sequential JPEG": scans_of_one_colour(2000, 2000),
    "comments of a GIF": comments_of_a_gif(500_000),
    "numbers of a PPM": b"P3 1000 1000 255\n" + b"1 " * 1_000_000,
    "comments of a PBM": b"P1 1000 1000\n" + b"#\n" * 1_000_000,
    "bytes of a QOI": b"qoif" + struct.pack(">IIBB", 1000, 1000, 4, 0) + b"\x7e" * 1_000_000,
    "segments of a JPEG": b"\xff\xd8" + b"\xff\xe0\0\x02" * 500_000,
    "pixels of a PNG": encode(Image.new("RGB", (3000, 3000)), "PNG"),
}


@pytest.mark.parametrize("name", SLOW)
def test_the_deadline_holds(name, monkeypatch):
    """The clock goes on by one each time it is looked at, and it is looked at again and again."""
    monkeypatch.setattr(bounded_file.time, "thread_time", itertools.count().__next__)
    seconds = 0.5 if name == "pixels of a PNG" else 10  # it packs so well that it is read at once
    found = failure_of(SLOW[name], DecodeSettings(max_seconds=seconds), target=None)
    assert found.reason == "too_slow" and found.detail.endswith(" seconds")


def test_a_plain_jpeg_is_told_from_one_that_is_more_work():
    image = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 60)
    for mode in ("L", "RGB", "CMYK"):
        plain = encode(image.convert(mode), "JPEG", comment=b"x", exif=Image.Exif())
        assert picture_headers.is_plain_jpeg(plain)
        for cut in range(plain.rindex(b"\xff\xda")):
            assert not picture_headers.is_plain_jpeg(plain[:cut])
    for other in (
        encode(image, "JPEG", progressive=True),
        scans_of_one_colour(64, 2),
        b"\xff\xd8" + b"\xff\xe0\0\x02" * 100 + plain[2:],
        b"\xff\xd8" + b"\0" + plain[2:],
        encode(image),
    ):
        assert not picture_headers.is_plain_jpeg(other)


def test_without_a_deadline_what_is_slow_is_read():
    plain = b"P3 100 100 255\n" + b"1 " * 30_000
    assert decode(plain, DecodeSettings(max_seconds=0), None).width == 100
    assert decode(many_scans(64, 500), DecodeSettings(max_seconds=0), None).width == 64
    with pytest.raises(UsageError, match=r"decode\.max_seconds: expected 0 or more, found -1"):
        DecodeSettings(max_seconds=-1)


def test_asking_a_format_why_it_refused_gives_it_no_time_of_its_own(monkeypatch):
    """The clock goes on by one each time it is looked at, some 33 times while the GIF is opened."""
    data = comments_of_a_gif(1000)
    monkeypatch.setattr(bounded_file.time, "thread_time", itertools.count().__next__)
    assert failure_of(data, DecodeSettings(max_seconds=100)).reason == "corrupt"
    assert failure_of(data, DecodeSettings(max_seconds=50)).reason == "too_slow"


def test_seconds_are_those_of_the_thread_that_decodes(monkeypatch):
    """Waiting costs a picture nothing: a machine that is busy drops what an idle one drops."""
    no_other_clock = SimpleNamespace(thread_time=iter((1.0, 1.1, 1.3)).__next__)
    monkeypatch.setattr(bounded_file, "time", no_other_clock)
    data = encode(Image.new("RGB", (64, 64)))
    file = BoundedFile(data, seconds=0.2)
    assert file.read() == data
    with pytest.raises(Undecodable, match="too_slow"):
        file.read()


def test_a_picture_of_countless_pieces_is_refused_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(bounded_file, "MAX_READS", 10_000)
    empty = chunk(b"abCd", b"")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0\0")) + empty * 5200
    patient = DecodeSettings(max_seconds=0)
    for data in (png + body, png + empty * 5200):
        assert failure_of(data, patient).reason == "too_much_metadata"
    strips = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 1)
    strips += struct.pack("<HHII", 273, 4, 300_000, 30) + bytes(1_300_000)
    found = failure_of(strips, patient)
    assert (found.reason, found.detail) == ("too_much_metadata", "TIFF: 300000 strips or tiles")
    big = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 100_000)
    found = failure_of(big + bytes(2_000_000), patient)
    assert (found.reason, found.detail) == ("too_much_metadata", "TIFF: 100000 entries")
    line = b"/* XPM */\n" + b"x" * (2 << 20)
    assert failure_of(line, patient).reason == "too_much_metadata"


def test_a_jpeg_2000_in_crumbs_is_refused(monkeypatch):
    monkeypatch.setattr(picture_headers, "_MAX_BLOCKS", 10_000)
    image = Image.new("RGB", (300, 300))
    crumbs = encode(image, "JPEG2000", codeblock_size=(4, 4))
    found = failure_of(crumbs)
    assert found.reason == "too_much_metadata" and found.detail.endswith(" code blocks")
    bare = encode(image, "JPEG2000", codeblock_size=(4, 4), no_jp2=True)
    assert failure_of(bare).detail == found.detail
    assert decode(encode(image, "JPEG2000"), DecodeSettings(), None).width == 300


def test_a_jpeg_2000_of_countless_segments_is_refused_before_they_are_weighed():
    image = Image.new("RGB", (300, 300))
    style = struct.pack(">HH", 0xFF52, 10) + bytes([0, 0, 0, 1, 0, 0, 4, 4])
    tile = struct.pack(">HHHIBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93)
    for no_jp2 in (False, True):
        whole = encode(image, "JPEG2000", no_jp2=no_jp2)
        siz = whole.index(b"\xff\x4f\xff\x51") + 4 + 47
        for row, detail in (
            (style * 20_000, "10001 of them coding styles"),
            (tile * 70_000, "0 of"),
        ):
            found = failure_of(whole[:siz] + row + whole[siz:])
            assert found.reason == "too_much_metadata" and detail in found.detail
        inside = whole[:siz] + style * 20_000 + whole[siz:]
        assert "10001 of them" in failure_of(apple_icon(inside)).detail
    tiled = encode(Image.new("L", (1024, 1024)), "JPEG2000", tile_size=(8, 8))
    assert decode(tiled, FULL, None).width == 1024  # 16,384 tiles


def icon(*inner: bytes, entries: int = 1) -> bytes:
    """An ICO of these pictures; `entries`: for each, so many point at it."""
    at, head = 6 + 16 * len(inner) * entries, struct.pack("<HHH", 0, 1, len(inner) * entries)
    for picture in inner:
        head += struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), at) * entries
        at += len(picture)
    return head + b"".join(inner)


def apple_icon(inner: bytes) -> bytes:
    size = len(inner) + 8
    return b"icns" + struct.pack(">I", size + 8) + b"ic07" + struct.pack(">I", size) + inner


@pytest.mark.parametrize("begins", [b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n", b""])
def test_an_icon_of_what_no_icon_holds_is_refused_like_any_other(begins):
    for inner in (begins, begins + bytes(58 - len(begins))):
        assert failure_of(icon(inner)).reason in ("corrupt", "truncated", "unsupported")


def test_each_picture_in_an_icon_is_looked_at_once():
    small, large = (encode(Image.new("L", (side, side))) for side in (16, 32))
    data = icon(small, large, entries=30_000)
    assert sorted(picture_headers.sizes_in_ico(data)) == [(16, 16), (32, 32)]
    assert decode(data, FULL, None).width in (16, 32)


@pytest.mark.parametrize("header", [12, 40, 52, 56, 64, 108, 124])
def test_the_size_of_a_bitmap_in_an_icon_is_read_as_pillow_reads_it(header, monkeypatch):
    sides = struct.pack("<IHH" if header == 12 else "<Iii", header, 1000, 1200)
    data = icon((sides + struct.pack("<HH", 1, 24)).ljust(header, b"\0") + bytes(1000 * 600 * 4))
    assert picture_headers.sizes_in_ico(data) == [(1000, 600)]
    assert decode(data, FULL, None).image.size == (1000, 600)
    monkeypatch.setattr(images, "_LARGE", 1000)
    found = failure_of(data, DecodeSettings(max_megapixels=0.5))
    assert (found.reason, found.detail) == ("too_many_pixels", "1000 x 600")


def test_what_lies_in_an_icon_has_the_same_limit_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 1000)
    settings = DecodeSettings(max_megapixels=0.5)
    inner = encode(Image.new("RGB", (1000, 600)))
    bitmap = struct.pack("<IiiHHIIiiII", 40, 1000, 1200, 1, 1, 0, 0, 0, 0, 0, 0)
    j2k = encode(Image.new("RGB", (1000, 600)), "JPEG2000")
    for data in (icon(inner), icon(bitmap + bytes(100)), apple_icon(inner), apple_icon(j2k)):
        found = failure_of(data, settings)
        assert (found.reason, found.detail) == ("too_many_pixels", "1000 x 600")
    picture = decode(icon(inner), DecodeSettings(), None)
    assert (picture.width, picture.height) == (1000, 600)


def test_a_tag_that_claims_gigabytes_costs_none():
    picture = encode(Image.new("L", (8, 8)), "TIFF")
    ifd = struct.unpack_from("<I", picture, 4)[0]
    count = struct.unpack_from("<H", picture, ifd)[0]
    tag = struct.pack("<HHII", 65_000, 1, 1 << 31, 8)
    data = (
        picture[:ifd]
        + struct.pack("<H", count + 1)
        + picture[ifd + 2 : ifd + 2 + 12 * count]
        + tag
        + picture[ifd + 2 + 12 * count :]
    )
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(50 << 20))
    png = encode(Image.new("L", (8, 8)))
    bomb = png[:33] + chunk(text[:4], text[4:]) + png[33:]
    tracemalloc.start()
    try:
        for one in (data, bomb):
            try:
                decode(one, DecodeSettings(), None)
            except Undecodable as caught:
                assert caught.reason in ("corrupt", "truncated", "unsupported")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    """Each goes on when all four have come: to the lock, of which one gets in, or past it."""
    monkeypatch.setattr(images, "_LARGE", 1000)
    changed, at_lock, at_work, most = threading.Condition(), 0, 0, 0
    to_rgb = images.to_rgb

    def watched(image):
        nonlocal at_work, most
        with changed:
            at_work += 1
            most = max(most, at_work)
            changed.notify_all()
            assert changed.wait_for(lambda: at_lock == 4 or most == 4, timeout=60)
            at_work -= 1
        return to_rgb(image)

    class Watched:
        """In place of the lock, which is entered again and again."""

        def __init__(self):
            self.lock = threading.Lock()

        def __enter__(self):
            nonlocal at_lock
            with changed:
                at_lock += 1
                changed.notify_all()
            self.lock.acquire()

        def __exit__(self, *error):
            self.lock.release()

    monkeypatch.setattr(images, "to_rgb", watched)
    monkeypatch.setattr(images, "_one_large", Watched())
    for side, at_once in ((64, 1), (16, 4)):
        at_lock = most = 0
        data = encode(Image.new("RGB", (side, side)))
        with ThreadPoolExecutor(4) as decoding:
            list(decoding.map(lambda _, data=data: decode(data, FULL, None), range(4)))
        assert most == at_once


def test_a_format_that_no_deadline_ends_has_a_limit_of_its_own():
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8"]
    cards += ["NAXIS   =                    2", "NAXIS1  =                 5000"]
    cards += ["NAXIS2  =                 5000", "END"]
    data = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(1000)
    assert failure_of(data).reason == "too_many_pixels"
