"""Encoded sound -> mono samples at a wanted rate, or `Undecodable` with a reason.

WAV, FLAC, Ogg (Vorbis, Opus), MP3 and AIFF by libsndfile, whatever the member's name says: the
bytes tell. Channels are mixed to their mean. Nothing is allocated by what a header claims: samples
are read in blocks of bounded size, each mixed and resampled before the next, so one sound takes
4 bytes for each sample at the wanted rate, twice, and some MB. A sound that is cut is no sound,
as a picture that is cut is none: for formats whose decoder says nothing of it, the container does.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.pipeline.errors import EncoderError, Undecodable, require_at_least
from chiasm.pipeline.sounds.containers import container_is_cut, form_of, tells_its_length
from chiasm.pipeline.sounds.failures import classify_failure, unread_format
from chiasm.pipeline.sounds.resample import Resampler

BLOCK = 1 << 18  # numbers, of all channels, that are decoded at once
# Below, nothing can be heard of what a model has learned; above, no recorder is.
LEAST_RATE, MOST_RATE = 1_000, 1_000_000
UNKNOWN = 1 << 62  # samples; libsndfile says so many or more where a header does not tell


@dataclass(frozen=True)
class SoundSettings:
    """Limits of decoding sound.

    max_duration: seconds that a sound lasts; as samples of 48 kHz in memory a minute is 12 MB, and
    twice that while it is put together. max_seconds: CPU time for one sound, 0 for no limit.
    """

    max_duration: float = 600
    max_member_bytes: int = 64 << 20
    max_seconds: float = 20

    def __post_init__(self) -> None:
        require_at_least(
            0, sound__max_duration=self.max_duration, sound__max_seconds=self.max_seconds
        )
        require_at_least(1, sound__max_member_bytes=self.max_member_bytes)


def decode(data: bytes, settings: SoundSettings, rate: int) -> np.ndarray:
    """Decode one sound; thread safe. rate: samples a second that the encoder takes -> (T,) float32,
    T > 0, about -1 to 1. Raises Undecodable, and nothing else, for any `data`; EncoderError where
    soundfile is not installed."""
    require_decoder()
    if len(data) > settings.max_member_bytes:
        raise Undecodable("member_too_large", f"{len(data)} bytes")
    form = form_of(data)
    if not form:
        raise unread_format(data)
    file = _Bytes(data)
    try:
        with _stream_class()(file) as stream:
            blocks = list(_resampled(stream, data, form, settings, rate))
        return np.concatenate(blocks)
    except Exception as error:
        cut = container_is_cut(data, form)
        raise classify_failure(error, form, file.ran_out if cut is None else cut) from error


def require_decoder() -> None:
    """EncoderError where soundfile, and in it libsndfile, is not installed."""
    try:
        _stream_class()
    except (ImportError, OSError) as error:  # OSError: its library is not there
        raise EncoderError(
            "sound",
            expected="the package soundfile, which decodes it",
            found="none" if isinstance(error, ImportError) else str(error),
            do="pip install 'chiasm[sound]'",
        ) from error


@functools.cache
def _stream_class() -> Any:
    """A SoundFile that is read from front to back. soundfile else seeks behind every block to where
    it is, which breaks off FLACs that are cut, and is inexact in MP3s."""
    import soundfile

    class Stream(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Stream


class _Bytes(io.BytesIO):
    """ran_out: whether the decoder read past the end."""

    ran_out = False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """A place before the beginning, which a damaged header may name, is not gone to; an
        exception would be printed by the C code that calls."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self.getbuffer())}
        return super().seek(max(0, base[whence] + offset))

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self.ran_out |= count < len(buffer)
        return count


def _resampled(
    stream: Any, data: bytes, form: str, settings: SoundSettings, rate: int
) -> Iterator[np.ndarray]:
    """The sound in blocks of mono samples at the wanted rate; raises Undecodable."""
    _check_header(stream, settings)
    resampler, count = Resampler(stream.samplerate, rate), 0
    for block in _mono(stream, settings):
        count += len(block)
        yield _finite(resampler.add(block))
    yield _finite(resampler.end())
    cut = container_is_cut(data, form)
    if cut is None:
        cut = count < stream.frames < UNKNOWN and tells_its_length(data, form)
    if cut:
        raise Undecodable("truncated", f"{form}: {count} samples of a channel are there")
    if not count:
        raise Undecodable("no_samples", form)


def _check_header(stream: Any, settings: SoundSettings) -> None:
    rate = stream.samplerate
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise Undecodable("unsupported", f"{rate} samples a second")
    if stream.frames < UNKNOWN:
        _check_duration(stream.frames, rate, settings)


def _check_duration(count: int, rate: int, settings: SoundSettings) -> None:
    if count > settings.max_duration * rate:
        raise Undecodable("too_long", f"more than {settings.max_duration:g} seconds")


def _mono(stream: Any, settings: SoundSettings) -> Iterator[np.ndarray]:
    """Blocks of the mean of all channels, (n,) float32."""
    deadline = time.thread_time() + (settings.max_seconds or float("inf"))
    buffer = np.empty((max(1, BLOCK // stream.channels), stream.channels), np.float32)
    count = 0
    while len(block := stream.read(out=buffer)):
        count += len(block)
        _check_duration(count, stream.samplerate, settings)
        if time.thread_time() > deadline:
            raise Undecodable("too_slow", f"more than {settings.max_seconds:g} seconds")
        with np.errstate(all="ignore"):  # infinity is refused by the caller
            yield block.mean(axis=1)


def _finite(samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise Undecodable("not_finite_samples", "NaN or infinity")
    return samples
