"""Why a sound was not decoded: the closed list of reasons, and the choice of one for what the
decoder raised."""

from __future__ import annotations

import re

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.known_formats import unknown_format
from chiasm.pipeline.sounds.containers import is_aac

SOUND_REASONS = {  # every reason of stage "decode" of a sound, and its description
    "not_a_sound": "its bytes begin like no format that is read",
    "truncated": "its bytes end before the sound does",
    "corrupt": "the decoder refused its bytes",
    "unsupported": "a format or a rate that is not read here; the detail names it",
    "no_samples": "a sound without a sample",
    "not_finite_samples": "a sample is NaN or infinite",
    "too_long": "it lasts longer than sound.max_duration",
    "too_slow": "decoding it took longer than sound.max_seconds",
    "member_too_large": "more bytes than sound.max_member_bytes",
    "out_of_memory": "no memory for its samples",
}

_UNSUPPORTED = re.compile("unimplemented|unsupported|not supported", re.IGNORECASE)
_NO_FILE = "File does not exist"  # libsndfile says it of an MP3 without a frame


def classify_failure(error: Exception, form: str, truncated: bool) -> Undecodable:
    """An Undecodable with a reason for what the decoder raised.

    form: the format that the bytes begin like. truncated: whether bytes are missing at its end."""
    if isinstance(error, Undecodable):
        return error
    if isinstance(error, MemoryError):
        return Undecodable("out_of_memory", f"{form}: {error}")
    # soundfile puts the address of a Python object before libsndfile's own words.
    words = str(getattr(error, "error_string", error))
    if words.startswith(_NO_FILE):
        words = "no frame of it can be read"
    detail = f"{form}: {words}"
    if truncated:
        return Undecodable("truncated", detail)
    return Undecodable("unsupported" if _UNSUPPORTED.search(words) else "corrupt", detail)


def unread_format(data: bytes) -> Undecodable:
    """The reason for bytes that begin like no format that is read."""
    if is_aac(data):
        return Undecodable("unsupported", "AAC: convert it to FLAC or MP3")
    named = unknown_format(data)
    if named is not None and re.search("sound|video", named.detail):
        return Undecodable("unsupported", f"{named.detail}: convert it to FLAC or MP3")
    if named is not None:
        return Undecodable("not_a_sound", named.detail)
    begins = f"what begins with {data[:8].hex(' ')}" if data else "no bytes"
    return Undecodable("not_a_sound", begins)
