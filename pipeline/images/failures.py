"""Why a picture was not decoded: the closed list of reasons, and which of them a failure was.

Decoders raise nearly everything for bad bytes, and say little. So what counts is what happened:
whether the decoder asked for bytes behind the last one, and, for those that take a file whole,
whether its container says that bytes are missing.
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

REASONS = {  # stage "decode": every reason there is, and what it says
    "not_a_picture": "its bytes begin like no format that is read",
    "truncated": "its bytes end before the picture does",
    "corrupt": "a decoder refused its bytes",
    "unsupported": "a variant of its format that the decoder does not know",
    "too_many_pixels": "more pixels than decode.max_megapixels, or than its slow format may have",
    "too_much_metadata": "more pieces around the pixels than a picture has",
    "too_slow": "decoding it took longer than decode.max_seconds",
    "member_too_large": "more bytes than decode.max_member_bytes",
    "out_of_memory": "no memory for its pixels",
}

# What Pillow says of a codec that refused what it was given, as opposed to one that wanted more.
_REFUSED = re.compile("broken data stream|unrecognized data stream|overrun|bad configuration")
_UNSUPPORTED = re.compile("unsupported|not supported|unknown|unrecognized mode", re.IGNORECASE)


def classify_failure(
    error: Exception, data: bytes, form: str, ran_out: bool, image: Image.Image | None = None
) -> Undecodable:
    """What a decoder raised, told by reason.

    form: the format that failed. ran_out: whether it asked for bytes behind the last one. image:
    the opened picture, where it could be opened."""
    if isinstance(error, Undecodable):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return Undecodable("too_many_pixels", str(error).partition(", could")[0])
    detail = f"{form}: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return Undecodable("out_of_memory", detail)
    if form == "WEBP":
        cut = _riff_ends_early(data)
    elif isinstance(image, TiffImageFile):  # its tags are read again after its pixels
        cut = "truncated" in str(error) or _tiff_ends_early(image, len(data))
    elif _REFUSED.search(str(error)):
        cut = False
    else:
        cut = ran_out or isinstance(error, EOFError) or "truncated" in str(error).lower()
    if cut:
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


def _tiff_ends_early(image: TiffImageFile, size: int) -> bool:
    """Whether the last strip or tile lies, in part, behind the end."""
    for offsets, counts in ((STRIPOFFSETS, STRIPBYTECOUNTS), (TILEOFFSETS, TILEBYTECOUNTS)):
        try:
            places = zip(image.tag_v2[offsets], image.tag_v2[counts], strict=False)
            if any(offset + count > size for offset, count in places):
                return True
        except (KeyError, TypeError):  # no such tag, or one that holds no numbers
            continue
    return False
