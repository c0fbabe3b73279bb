"""Checks of picture headers that Pillow does not make before it decodes pixels.

A small file can require gigabytes of bookkeeping: a TIFF of millions of strips, a JPEG 2000 of
blocks of a few pixels. An icon's directory may state wrong sizes of the pictures inside. Only what
is needed to refuse such files is parsed here; the rest is left to the decoder.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image
from PIL.IcnsImagePlugin import IcnsImageFile

from chiasm.pipeline.errors import Undecodable

_MAX_STRIPS = 1 << 18  # of a TIFF; each becomes some 300 bytes of Python objects
_MAX_ENTRIES = 1 << 16  # of a BigTIFF; a TIFF's count has 16 bits
_MAX_BLOCKS = 1 << 19  # of a JPEG 2000; each costs OpenJPEG 300 bytes, and its precinct as much

# Of a JPEG 2000. Segments of all kinds: a picture of 100 megapixels in tiles of 128 by 128
# pixels, each in ten parts, has 122,000. Coding styles: one a tile, and one a component where it
# differs; each takes 30 microseconds to check.
_MAX_SEGMENTS, _MAX_STYLES = 1 << 17, 10_000

_FEW_SEGMENTS = 50  # of at most 64 KB each
_MAX_SCANS = 24  # encoders write 3 to 12; thumbnails and pictures behind the first count too
# Application segments that change nothing for Pillow, how they begin, and their least length.
_SILENT = {0xE0: (b"JFIF\0", 16), 0xEE: (b"Adobe", 14)}
_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))  # DHT, DQT, DRI, APP, COM

_PNG = b"\x89PNG\r\n\x1a\n"
_DIB_OF_OS2, _DIBS = 12, (40, 52, 56, 64, 108, 124)  # bytes of a bitmap's header in an ICO
_CODESTREAM, _JP2 = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"


def check_pieces(data: bytes) -> None:
    """Raise Undecodable for a picture of too many strips, tiles or code blocks."""
    for entry, order, big in _tiff_entries(data):
        tag, _, count = struct.unpack_from(f"{order}HH{'Q' if big else 'L'}", entry)
        if tag in (273, 324) and _MAX_STRIPS < count <= len(data):  # Pillow skips what has no room
            raise Undecodable("too_much_metadata", f"TIFF: {count} strips or tiles")
    if data.startswith((_CODESTREAM, _JP2)):
        _check_jpeg2000(data, 0)


def tiff_tags(data: bytes) -> set[int]:
    """The tags of a TIFF's first directory; none of another format."""
    return {struct.unpack_from(f"{order}H", entry)[0] for entry, order, _ in _tiff_entries(data)}


def is_plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG of one scan after few segments, as cameras and web sites write them:
    its work depends on its pixels alone."""
    return _read_jpeg(data).is_plain


def is_bounded_jpeg(data: bytes) -> bool:
    """Whether this is such a JPEG, or a progressive one of few scans."""
    return _is_bounded(_read_jpeg(data), data)


def bare_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that is bounded, grey or of three colours, and whose header has
    nothing but tables: no profile, no orientation, nothing that Pillow would refuse. None for
    another."""
    header = _read_jpeg(data)
    if header.bare and header.components in (1, 3) and _is_bounded(header, data):
        return header.width, header.height
    return None


class _Jpeg(NamedTuple):
    """What a JPEG begins with, up to its first scan; zeros for what begins otherwise or with many
    segments. frame: the marker of its frame. in_scan: components of its first scan. bare: whether
    there are 8 bits a component, and no metadata that says anything of the pixels."""

    frame: int = 0
    width: int = 0
    height: int = 0
    components: int = 0
    in_scan: int = 0
    bare: bool = False

    @property
    def is_plain(self) -> bool:
        return self.frame in (0xC0, 0xC1) and self.in_scan == self.components


def _is_bounded(header: _Jpeg, data: bytes) -> bool:
    # Each scan of a progressive picture is work over all its pixels. Between the two bytes of its
    # marker there is nothing, and no pixels contain them.
    return header.is_plain or (header.frame == 0xC2 and data.count(b"\xff\xda") <= _MAX_SCANS)


def _read_jpeg(data: bytes) -> _Jpeg:
    if not data.startswith(b"\xff\xd8\xff"):
        return _Jpeg()
    at, frame, size, bare = 2, 0, (0, 0, 0), True
    for _ in range(_FEW_SEGMENTS):
        if at + 10 > len(data) or data[at] != 0xFF:
            break
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == 0xDA:  # SOS
            return _Jpeg(frame, *size, data[at + 4], bare)
        if marker in (0xC0, 0xC1, 0xC2):  # SOF of a sequential or a progressive picture
            frame = marker
            size = data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6], data[at + 9]
            bare = bare and data[at + 4] == 8
        elif marker not in _SEGMENTS:
            break
        elif 0xE0 <= marker <= 0xEF:
            start, least = _SILENT.get(marker, (b"", 0))
            bare = bare and bool(start) and data.startswith(start, at + 4) and length >= least
        at += 2 + length
    return _Jpeg()


def sizes_in_ico(data: bytes) -> list[tuple[int, int]]:
    """The sizes of the pictures in an ICO, which Pillow decodes on opening it; none of another
    format."""
    if not data.startswith(b"\0\0\1\0"):
        return []
    count = int.from_bytes(data[4:6], "little")
    entries = range(6, min(len(data) - 15, 6 + 16 * count), 16)
    starts = {int.from_bytes(data[entry + 12 : entry + 16], "little") for entry in entries}
    return [size for start in starts for size in _size_in_ico(data, start)]


def sizes_in_icns(image: Image.Image, data: bytes) -> list[tuple[int, int]]:
    """The sizes of the pictures in an opened ICNS; none of another format. Raises Undecodable for
    a JPEG 2000 of too many pieces, and what Pillow raises for one that cannot be opened."""
    if not isinstance(image, IcnsImageFile):
        return []
    known = {code for codes in image.icns.SIZES.values() for code, _ in codes}
    starts = (image.icns.dct[code][0] for code in known & image.icns.dct.keys())
    return [size for start in starts for size in _size_in_icns(data, start)]


def _size_in_ico(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """The size in the header of the PNG or bitmap that begins there, as Pillow reads it."""
    head = data[start : start + 24].ljust(24, b"\0")
    kind = int.from_bytes(head[:4], "little")
    if head.startswith(_PNG):
        yield struct.unpack_from(">II", head, 16)
    elif kind == _DIB_OF_OS2:
        width, height = struct.unpack_from("<HH", head, 4)
        yield width, height // 2
    elif kind in _DIBS:  # a height below 0: from the top; the mask is half of it
        width, height = struct.unpack_from("<Ii", head, 4)
        yield width, abs(height) // 2


def _size_in_icns(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """The size in the header of the PNG or JPEG 2000 that begins there."""
    if data.startswith(_PNG, start):
        yield struct.unpack_from(">II", data[start : start + 24].ljust(24, b"\0"), 16)
    elif data.startswith((_CODESTREAM, _JP2), start):
        _check_jpeg2000(data, start)
        with Image.open(io.BytesIO(data[start:]), formats=("JPEG2000",)) as inner:
            yield inner.size


def _tiff_entries(data: bytes) -> Iterator[tuple[bytes, str, bool]]:
    """The entries of the first directory, with their byte order and whether they are BigTIFF's.
    Raises Undecodable for too many."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16 or not {42, 43} & {*data[2:4]}:
        return
    big = data[2] == 43  # as Pillow has it
    start = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)[0]
    head, length = (8, 20) if big else (2, 12)
    if start + head > len(data):
        return
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    end = min(len(data), start + head + count * length)
    if end - start > _MAX_ENTRIES * length:
        raise Undecodable("too_much_metadata", f"TIFF: {count} entries")
    for at in range(start + head, end - length + 1, length):
        yield data[at : at + length], order, big


def _check_jpeg2000(data: bytes, start: int) -> None:
    try:
        blocks = _blocks_of_jpeg2000(data, data.index(_CODESTREAM, start))
    except (ValueError, IndexError, struct.error):  # the decoder reports what is wrong
        return
    if blocks > _MAX_BLOCKS:
        raise Undecodable("too_much_metadata", f"JPEG 2000: {blocks} code blocks")


def _blocks_of_jpeg2000(data: bytes, start: int) -> int:
    """The largest number of code blocks that a coding style in the headers gives for all pixels.
    Raises Undecodable for headers of too many segments."""
    width, height, left, top = struct.unpack_from(">4I", data, start + 8)
    components = struct.unpack_from(">H", data, start + 40)[0]
    pixels = max(0, width - left) * max(0, height - top)
    at, most, tile, segments, styles = start + 2, 0, 0, 0, 0
    while at + 4 <= len(data):
        segments += 1
        marker, length = struct.unpack_from(">HH", data, at)
        body = data[at + 4 : at + 2 + length]
        styles += marker in (0xFF52, 0xFF53)
        if segments > _MAX_SEGMENTS or styles > _MAX_STYLES:
            detail = f"JPEG 2000: {segments} segments, {styles} of them coding styles, and more"
            raise Undecodable("too_much_metadata", detail)
        if marker == 0xFF52:  # COD: for all components
            most = max(most, components * _blocks_of(body[0], body[5:], pixels))
        elif marker == 0xFF53:  # COC: for one of them
            body = body[1 if components < 257 else 2 :]
            most = max(most, components * _blocks_of(body[0], body[1:], pixels))
        elif marker == 0xFF90:  # SOT: a tile, whose header may have styles of its own
            tile, size = at, struct.unpack_from(">I", body, 2)[0]
            if not size:
                tile = len(data)  # the last one
            tile += size
        elif marker == 0xFF93:  # SOD: its pixels
            at = max(tile, at + 2)
            continue
        elif marker < 0xFF50:
            break
        at += 2 + length
    return most


def _blocks_of(style: int, body: bytes, pixels: int) -> int:
    """The number of code blocks of one component under a coding style, over all resolutions."""
    levels, across, down = body[0], (body[1] & 15) + 2, (body[2] & 15) + 2
    blocks = 0
    for level in range(min(levels, 32) + 1):  # from the smallest resolution to the whole
        precinct = body[5 + level] if style & 1 else 0xFF
        halved = 1 if level else 0
        wide = max(0, min(across, (precinct & 15) - halved))
        high = max(0, min(down, (precinct >> 4) - halved))
        blocks += (pixels >> 2 * (levels - level)) >> (wide + high)
    return blocks
