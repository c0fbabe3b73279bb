"""Bytes of a sound -> mono samples at the wanted rate, or a reason; whatever the bytes claim."""

from __future__ import annotations

import builtins
import io
import random
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import resample_poly
from tiny_sounds import RATE, encoded, tone

from chiasm.pipeline.errors import EncoderError, Undecodable, UsageError
from chiasm.pipeline.sounds import SOUND_REASONS, Resampler, SoundSettings, decode, resample
from chiasm.pipeline.sounds import decode as decode_sound
from chiasm.pipeline.sounds.decode import _stream_class

FORMS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "ALAW"), ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("AIFF", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip
LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_III"}
SHORT = tone(440)
WAV = encoded(SHORT)
LIMITS = SoundSettings()


def reason_of(data: bytes, rate: int = RATE, **limits) -> str:
    with pytest.raises(Undecodable) as refused:
        decode(data, SoundSettings(**limits), rate)
    assert refused.value.reason in SOUND_REASONS
    assert " at 0x" not in refused.value.detail  # an address is another in every run
    return refused.value.reason


def id_of(value):
    """Encoded sounds may hold the time at which they were made, or a number drawn by chance."""
    return "sound" if isinstance(value, bytes) else None


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_a_sound_is_what_libsndfile_reads(form, subtype):
    data = encoded(SHORT, form, RATE, subtype)
    wanted, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    found = decode(data, LIMITS, rate)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(found) == len(SHORT)
    tolerance = 0.05 if subtype in LOSSY else 0.02
    assert np.abs(found - SHORT).mean() < tolerance


@pytest.mark.parametrize("channels", [1, 2, 6, 32])
def test_channels_are_mixed_to_their_mean(channels):
    samples = np.random.default_rng(0).normal(0, 0.1, (5000, channels)).astype(np.float32)
    found = decode(encoded(samples, subtype="FLOAT"), LIMITS, RATE)
    np.testing.assert_allclose(found, samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 44_100, 48_000, 96_000, 1_000_000])
def test_a_tone_is_the_same_tone_at_another_rate(rate):
    """Against the tone made at the wanted rate, away from the ends."""
    data = encoded(
        0.5 * np.sin(2 * np.pi * 100 * np.arange(rate // 2) / rate), "WAV", rate, "FLOAT"
    )
    found = decode(data, LIMITS, RATE)
    assert len(found) == RATE // 2
    wanted = 0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE // 2) / RATE)
    middle = slice(RATE // 20, -RATE // 20)
    np.testing.assert_allclose(found[middle], wanted[middle], atol=2e-3)


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [(44_100, 48_000), (48_000, 44_100), (8_000, 48_000), (96_000, 16_000), (44_099, 48_000),
     (999_983, 48_000), (1_000, 48_000)],
)  # fmt: skip
def test_blocks_become_what_the_whole_becomes(monkeypatch, rate, wanted):
    monkeypatch.setattr(resample, "BLOCK", 1000)
    rng = np.random.default_rng(rate)
    whole = rng.normal(size=120_000).astype(np.float32)
    resampler, made, at = Resampler(rate, wanted), [], 0
    while at < len(whole):
        size = int(rng.integers(1, 5000))
        made.append(resampler.add(whole[at : at + size]))
        at += size
    made.append(resampler.end())
    truth = resample_poly(whole, resampler.up, resampler.down)
    np.testing.assert_allclose(np.concatenate(made), truth, atol=1e-6)
    assert sum(map(len, made[:-1])) > 0  # not all of it at the end
    assert resampler.up / resampler.down == pytest.approx(wanted / rate, rel=1e-6)


def test_the_bytes_tell_the_format_and_threads_do_not_disturb_each_other():
    files = [encoded(SHORT, form, RATE, subtype) for form, subtype in FORMS]
    alone = [decode(data, LIMITS, 8_000) for data in files]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda data: decode(data, LIMITS, 8_000), files))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_a_sound_that_is_cut_is_none(form, subtype):
    data = encoded(SHORT, form, RATE, subtype)
    for length in (len(data) - 1, len(data) * 3 // 4, len(data) // 2, len(data) // 3):
        assert reason_of(data[:length]) == "truncated"
    for length in (60, 40, 13, 4, 1, 0):
        assert reason_of(data[:length]) in ("truncated", "corrupt", "not_a_sound")


def wav_with_size(size: int) -> bytes:
    at = WAV.index(b"data") + 4
    return WAV[:at] + size.to_bytes(4, "little") + WAV[at + 4 :]


def flac_with_samples(count: int) -> bytes:
    data = encoded(SHORT, "FLAC")
    claimed = int.from_bytes(data[18:26], "big") >> 36 << 36 | count
    return data[:18] + claimed.to_bytes(8, "big") + data[26:]


def test_a_writer_that_could_not_seek_back_does_not_know_the_length():
    for size in (0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000):
        np.testing.assert_allclose(decode(wav_with_size(size), LIMITS, RATE), SHORT, atol=1e-4)
    np.testing.assert_allclose(decode(flac_with_samples(0), LIMITS, RATE), SHORT, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (flac_with_samples((1 << 36) - 1), "too_long"),
        (flac_with_samples(RATE * 3600), "too_long"),
        (flac_with_samples(RATE * 2), "truncated"),
        (wav_with_size(0x7000_0000), "truncated"),
    ],
    ids=id_of,
)
def test_a_header_that_claims_hours_allocates_nothing(data, reason):
    decode(WAV, LIMITS, RATE)  # what is loaded with the first sound is no part of it
    tracemalloc.start()
    try:
        assert reason_of(data) == reason
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_limits_are_those_of_the_settings():
    assert reason_of(WAV, max_duration=0.99) == "too_long"
    assert reason_of(flac_with_samples(0), max_duration=0.99) == "too_long"
    assert len(decode(WAV, SoundSettings(max_duration=1), RATE)) == RATE
    assert reason_of(WAV, max_member_bytes=len(WAV) - 1) == "member_too_large"
    assert reason_of(WAV, max_seconds=1e-9) == "too_slow"
    assert len(decode(WAV, SoundSettings(max_seconds=0), RATE)) == RATE
    for wrong in ({"max_duration": -1}, {"max_seconds": -1}, {"max_member_bytes": 0}):
        with pytest.raises(UsageError, match=r"^sound\.max_"):
            SoundSettings(**wrong)


def float_wav(samples: np.ndarray) -> bytes:
    return encoded(samples.astype(np.float32), subtype="FLOAT")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(np.zeros((0, 1))), "no_samples"),
        (wav_with_size(0), "no_samples"),
        (float_wav(np.array([0, np.nan, 0])), "not_finite_samples"),
        (float_wav(np.array([0, np.inf])), "not_finite_samples"),
        (float_wav(np.full((3, 2), 3e38)), "not_finite_samples"),
        (encoded(SHORT, "WAV", 1), "unsupported"),
        (encoded(SHORT, "WAV", 2**31 - 1), "unsupported"),
        (b"", "not_a_sound"),
        (b"no sound", "not_a_sound"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "not_a_sound"),
        (b"PK\x03\x04" + bytes(99), "not_a_sound"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42", "unsupported"),
        (b"\xff\xf1\x50\x80" + bytes(99), "unsupported"),  # AAC
        (b"\xff\xfb\x90\x00" + bytes(9), "truncated"),
        (b"ID3\x04" + bytes(99), "corrupt"),
        (b"OggS" + bytes(99), "truncated"),
        (WAV.replace(b"\x01\x00\x01\x00", b"\x61\x01\x01\x00", 1), "corrupt"),  # WMA
        (WAV.replace(b"fmt ", b"tmf ", 1), "corrupt"),
    ],
    ids=id_of,
)
def test_what_cannot_be_used_has_a_reason(data, reason):
    assert reason_of(data) == reason


def test_silence_and_one_sample_are_sounds():
    assert not decode(encoded(np.zeros(100)), LIMITS, 48_000).any()
    assert len(decode(encoded(np.ones(1)), LIMITS, 48_000)) == 3


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them changed, left out or doubled, most of them in the header."""
    mutable = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(mutable), 200) if rng.random() < 0.7 else len(mutable))
        kind = rng.randrange(4)
        if kind == 0:
            mutable[at] = rng.randrange(256)
        elif kind == 1:
            mutable[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1]))
        elif kind == 2:
            del mutable[at : at + rng.randrange(1, 50)]
        else:
            mutable[at:at] = mutable[at : at + rng.randrange(1, 50)]
        if not mutable:
            return b""
    return bytes(mutable)


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_any_bytes_give_a_sound_or_a_reason_in_bounded_memory(form, subtype):
    data = encoded(tone(440, 0.2), form, RATE, subtype)
    rng = random.Random(form + subtype)
    limits = SoundSettings(max_duration=10, max_seconds=2)
    tracemalloc.start()
    try:
        for _ in range(60):
            try:
                found = decode(changed(data, rng), limits, RATE)
            except Undecodable as refused:
                assert refused.reason in SOUND_REASONS
            else:
                assert found.dtype == np.float32 and found.ndim == 1 and len(found)
                assert np.isfinite(found).all() and len(found) <= 10 * RATE + 1
        # ten seconds twice, a block of all channels, and the filter of an odd rate
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@given(
    st.binary(max_size=200), st.sampled_from([b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"ID3", b""])
)
def test_noise_behind_a_signature_gives_a_sound_or_a_reason(noise, signature):
    try:
        assert np.isfinite(decode(signature + noise, LIMITS, RATE)).all()
    except Undecodable as refused:
        assert refused.reason in SOUND_REASONS


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    real: Callable = builtins.__import__

    def absent(name, *rest, **more):
        if name == "soundfile":
            raise ImportError(name)
        return real(name, *rest, **more)

    _stream_class.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(EncoderError) as refused:
        decode_sound(WAV, LIMITS, RATE)
    monkeypatch.undo()
    assert str(refused.value) == (
        "sound: expected the package soundfile, which decodes it, found none; "
        "pip install 'chiasm[sound]'"
    )
