"""Containers of sound: which one bytes begin like, and whether its end is missing.

Decoders of some take what is there for the whole, so the container is asked.
"""

from __future__ import annotations

from typing import Literal

# Writers that cannot seek back put a number from here on where the size of the samples belongs.
_UNKNOWN_SIZE = 0x7FFF_F000
_IN_64_BITS = 0xFFFF_FFFF  # of an RF64, whose chunk ds64 has the size
_MOST_CHUNKS = 1 << 16  # that are looked through; others have some ten
_INFO_BYTES = 1 << 12  # of an MP3 behind its tags: in its first frame is how many follow


def form_of(data: bytes) -> str:
    """The format that the bytes begin like, "" for none that is read."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        return "Ogg"
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and not is_aac(data)
    return "MP3" if is_frame or data[:3] == b"ID3" else ""


def is_aac(data: bytes) -> bool:
    """Whether it begins like a frame of AAC (ADTS), which differs from one of MP3 by layer 0."""
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0


def container_is_cut(data: bytes, form: str) -> bool | None:
    """Whether the end of a WAV, an AIFF or an Ogg is missing; None for formats whose decoder finds
    that out."""
    if form == "Ogg":
        return not _ends_ogg(data)
    if form in ("WAV", "AIFF"):
        return _chunk_is_cut(data, "big" if data[:4] in (b"FORM", b"RIFX") else "little")
    return None


def tells_its_length(data: bytes, form: str) -> bool:
    """Whether the number of samples that a header tells is exact. That of an MP3 is where its first
    frame has a Xing, Info or VBRI header, and else an estimate."""
    if form != "MP3":
        return True
    start = 0
    if data[:3] == b"ID3":  # its size is four times 7 bits
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 0x7F
        start = 10 + size
    head = data[start : start + _INFO_BYTES]
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


def _ends_ogg(data: bytes) -> bool:
    """Whether the last page of an Ogg is whole and says that it is the last (RFC 3533)."""
    at = data.rfind(b"OggS")
    segments = data[at + 26] if at + 26 < len(data) else 0
    sizes = data[at + 27 : at + 27 + segments]
    whole = len(sizes) == segments and at + 27 + segments + sum(sizes) <= len(data)
    return at + 26 < len(data) and whole and bool(data[at + 5] & 4)


def _chunk_is_cut(data: bytes, order: Literal["big", "little"]) -> bool:
    """Whether the chunk of samples, or one before it, is longer than the bytes that are there."""
    at, in_64_bits = 12, _UNKNOWN_SIZE
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
        if name == b"ds64":
            in_64_bits = int.from_bytes(data[at + 16 : at + 24], order)
        elif name in (b"data", b"SSND"):
            if size == _IN_64_BITS and data[:4] == b"RF64":
                return len(data) - at - 8 < in_64_bits
            return len(data) - at - 8 < size < _UNKNOWN_SIZE
        at += 8 + size + size % 2
    claimed = int.from_bytes(data[4:8], order)
    return at > len(data) or len(data) < 8 + claimed < _UNKNOWN_SIZE
