"""Why a picture was not decoded: the closed list of reasons, and the choice of one for a failure.

Decoders raise nearly any exception for bad bytes, with vague messages. So the choice depends on
whether the decoder read past the end and, for decoders that take a whole file, whether the
container says that bytes are missing.
"""

from __future__ import annotations

import re

from PIL import Image
from PIL.TiffImagePlugin import (
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILEOFFSETS,
    TiffImageFile,
)

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images.headers import tiff_tags
from chiasm.pipeline.known_formats import camera_raw, large_photoshop

REASONS = {  # every reason of stage "decode", and its description
    "not_a_picture": "its bytes begin like no format that is read",
    "truncated": "its bytes end before the picture does",
    "corrupt": "a decoder refused its bytes",
    "unsupported": "a format that no decoder here knows, or a variant of one; the detail names it",
    "too_many_pixels": "more pixels than decode.max_megapixels, or than its slow format may have",
    "too_much_metadata": "more pieces around the pixels than a picture has",
    "too_slow": "decoding it took longer than decode.max_seconds",
    "member_too_large": "more bytes than decode.max_member_bytes",
    "out_of_memory": "no memory for its pixels",
}

# Pillow's messages for codecs that rejected their bytes, as opposed to those that needed more.
_REFUSED = re.compile("broken data stream|unrecognized data stream|overrun|bad configuration")
_UNSUPPORTED = re.compile("unsupported|not supported|unknown|unrecognized mode", re.IGNORECASE)


def classify_failure(
    error: Exception, data: bytes, form: str, ran_out: bool, image: Image.Image | None = None
) -> Undecodable:
    """An Undecodable with a reason for what a decoder raised.

    form: the format that failed. ran_out: whether the decoder read past the end. image: the opened
    picture, where it could be opened."""
    if isinstance(error, Undecodable):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return Undecodable("too_many_pixels", str(error).partition(", could")[0])
    detail = f"{form}: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return Undecodable("out_of_memory", detail)
    if form == "WEBP":
        truncated = _riff_ends_early(data)
    elif form == "HEIF":
        truncated = _boxes_end_early(data)
    elif isinstance(image, TiffImageFile):  # Pillow reads tags again after the pixels
        truncated = "truncated" in str(error) or _tiff_ends_early(image, len(data))
    elif _REFUSED.search(str(error)):
        truncated = False
    else:
        truncated = ran_out or isinstance(error, EOFError) or "truncated" in str(error).lower()
    named = camera_raw(data, tiff_tags(data)) if form == "TIFF" else None
    if form == "PSD":
        named = large_photoshop(data)
    if named is not None:
        return named
    if truncated:
        return Undecodable("truncated", detail)
    if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(str(error)):
        return Undecodable("unsupported", detail)
    return Undecodable("corrupt", detail)


def _riff_ends_early(data: bytes) -> bool:
    """Whether a WebP ends inside a chunk, or before the first that holds pixels."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > len(data):
            return True
        if data[at : at + 4] in (b"VP8 ", b"VP8L", b"ANMF"):
            return False
        at += 8 + size + size % 2
    return len(data) < 8 + int.from_bytes(data[4:8], "little")


def _boxes_end_early(data: bytes) -> bool:
    """Whether a HEIC ends inside one of its outermost boxes."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:  # 64 bits
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: to the end of the file; else no size at all
            return False
        at += size
    return at != len(data)


def _tiff_ends_early(image: TiffImageFile, size: int) -> bool:
    """Whether a strip or tile ends after the end of the file."""
    for offsets, counts in ((STRIPOFFSETS, STRIPBYTECOUNTS), (TILEOFFSETS, TILEBYTECOUNTS)):
        try:
            extents = zip(image.tag_v2[offsets], image.tag_v2[counts], strict=False)
            if any(offset + count > size for offset, count in extents):
                return True
        except (KeyError, TypeError):  # no such tag, or one that holds no numbers
            continue
    return False
