"""Small colour profiles, made by code after the ICC's specification (ICC.1:2022)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import product

import numpy as np
from PIL import Image, ImageCms

D50 = (0.9642, 1.0, 0.8249)
# The primaries of Adobe RGB (1998), adapted to D50.
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def wide_profile() -> bytes:
    """RGB with the primaries of Adobe RGB and a gamma of 2.2."""
    primaries = zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, ADOBE_RGB), strict=True)
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(2.2))
    return _profile(b"mntr", b"RGB ", b"XYZ ", {b"wtpt": _xyz(D50), **dict(primaries), **curves})


def grey_profile() -> bytes:
    """Grey with a gamma of 1.8."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": _gamma(1.8)})


def cmyk_profile() -> bytes:
    """Inks whose mixtures lie between those of all or nothing, somewhat dull: a table of 2 x 2 x 2
    x 2 colours in Lab."""
    colours = [
        [40 + 200 * (1 - key) * (1 - ink) for ink in inks]
        for *inks, key in product((0, 1), repeat=4)
    ]
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.fromarray(np.array([colours], np.uint8))
    in_lab = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert in_lab is not None
    # Pillow's a and b are signed bytes; those of a table of 8 bits are shifted by 128.
    table = np.asarray(in_lab)[0] ^ np.array([0, 128, 128], np.uint8)
    ramp = bytes(range(256))
    identity = b"".join(map(_fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table.tobytes()
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": lut + ramp * 3})


def edited(profile: bytes, changes: Mapping[int, bytes]) -> bytes:
    """The profile with other bytes at some places."""
    data = bytearray(profile)
    for at, content in changes.items():
        data[at : at + len(content)] = content
    return bytes(data)


def _profile(kind: bytes, space: bytes, between: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    table, body = struct.pack(">L", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">LL", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">L4sL", start + len(body), b"none", 0x02400000) + kind + space + between
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(_fixed, D50))
    return head.ljust(128, b"\0") + table + body


def _fixed(value: float) -> bytes:
    return struct.pack(">l", round(value * 65536))


def _xyz(colour: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, colour))


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">LH", 1, round(value * 256))
