"""The picture of a query, however it is given, or its file of another modality -> the bytes of an
encoded file.

A path is read here, a URL through `chiasm.pipeline.storage`, both within the size limit that
members of shards have; a URL also within a time limit. Pixels are written to an encoded file, so
that alpha, palettes and rotation are treated as in the shards.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from chiasm.index.queries import PictureBytes, PictureSource
from chiasm.index.sizes import format_size
from chiasm.pipeline.errors import SourceError, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.storage import canonical_url, display_name, open_stream

URL_SCHEMES = ("file", "http", "https", "s3")
MAX_BYTES = DecodeSettings().max_member_bytes
URL_SECONDS = 30.0  # for opening and reading one URL, retries included
CHUNK = 1 << 18
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def encoded_picture(source: PictureSource) -> bytes:
    """The encoded file of a query's picture.

    Raises UsageError for a file that cannot be read, a scheme that is not read or a file that is
    too large, SourceError for a URL that cannot be read in time.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        image = source if source.mode in PNG_MODES else source.convert("RGB")
        image.save(file, "PNG", compress_level=0, exif=source.getexif())
        return file.getvalue()
    return encoded_file(source, "picture")


def encoded_file(source: str | Path | bytes, what: str) -> bytes:
    """The bytes of a file, a path or URL, which are taken as they are; what: a picture, sound or
    the like, for errors. Raises as `encoded_picture` does."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str) and not source.strip():  # "" would be the current folder
        raise UsageError(repr(source), expected=f"a {what}'s path or URL", found="an empty one")
    scheme = _SCHEME.match(source) if isinstance(source, str) else None
    if scheme is not None:
        return _read_url(str(source), scheme[1].lower(), what)
    try:
        with open(os.path.expanduser(source), "rb") as file:
            return _read_limited(file, str(source), what)
    except (OSError, ValueError) as error:  # ValueError: of a null byte, or half a character
        found = getattr(error, "strerror", None) or str(error)
        raise UsageError(str(source), expected=f"a {what}'s file", found=found) from error


def source_name(source: PictureSource, what: str = "picture") -> str:
    """What errors call the query's picture, or another file."""
    if isinstance(source, PictureBytes):
        return source.name
    return str(source) if isinstance(source, str | Path) else f"the query's {what}"


def _read_url(url: str, scheme: str, what: str) -> bytes:
    if scheme not in URL_SCHEMES:
        schemes = ", ".join(f"{name}://" for name in URL_SCHEMES)
        # The rest may hold a password, at a place that only those who know the scheme can tell.
        raise UsageError(
            f"{scheme}://***",
            expected=f"a {what}'s path, or its URL with one of {schemes}",
            found=f"{scheme}://",
            do=f"download the {what} and name the file",
        )
    url = canonical_url(url, allow_query=True)  # nothing keeps it
    result: list[bytes | BaseException] = []
    deadline = time.monotonic() + URL_SECONDS

    def read() -> None:
        try:
            with open_stream(url) as stream:
                result.append(_read_limited(stream, display_name(url), what, deadline))
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            result.append(error)

    # A thread that does not keep the process alive: one read may be retried beyond the limit.
    thread = threading.Thread(target=read, name="chiasm-query-picture", daemon=True)
    thread.start()
    thread.join(URL_SECONDS)
    if not result:
        raise _too_slow(display_name(url), what)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _read_limited(file: BinaryIO, name: str, what: str, deadline: float | None = None) -> bytes:
    """All of a file, in chunks; UsageError where it is larger than a member of a shard may be."""
    data = bytearray()
    while chunk := file.read(CHUNK):
        data += chunk
        if len(data) > MAX_BYTES:
            raise UsageError(
                name,
                expected=f"at most {format_size(MAX_BYTES)}",
                found="more",
                do=f"make the {what} smaller",
            )
        if deadline is not None and time.monotonic() > deadline:
            raise _too_slow(name, what)
    return bytes(data)


def _too_slow(name: str, what: str) -> SourceError:
    return SourceError(
        name,
        expected=f"a {what} within {URL_SECONDS:g} s",
        found="a slower answer",
        do=f"download the {what} and name the file",
    )
