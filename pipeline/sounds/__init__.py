"""Encoded sound -> mono samples at the rate of a model, within limits; every failure has a
reason."""

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.sounds.decode import SoundSettings, decode, require_decoder
from chiasm.pipeline.sounds.failures import SOUND_REASONS
from chiasm.pipeline.sounds.resample import Resampler

__all__ = [
    "SOUND_REASONS",
    "Resampler",
    "SoundSettings",
    "Undecodable",
    "decode",
    "require_decoder",
]
