"""`hf:ID_OR_DIR` of a CLAP (Wu et al., 2023; Elizalde et al., 2023): sounds and texts in one space.

A sound goes in as a log-mel spectrogram, by the settings of the model's own feature extractor: the
same padding and filters, and, for sounds not longer than the model takes, the same numbers. Of a
longer one the extractor takes a piece by chance (`rand_trunc`), or three pieces beside the whole
sound squeezed (`fusion`). Here it is the middle of the starts among which chance would choose: what
a sound is about begins late as often as it ends early, and every run gives the same vector.

The extractor marks one sound of a batch without long ones as long, by chance too. Here only a long
one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers

from chiasm.pipeline.encoders.base import BaseEncoder, require_modality, unit
from chiasm.pipeline.encoders.huggingface_folder import PROCESSORS, load_network
from chiasm.pipeline.encoders.huggingface_texts import OURS_ALONE, Tokens, load_tokens
from chiasm.pipeline.encoders.protocols import JOINT, SOUND_EXTENSIONS, Encoded, Input
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.hub import ModelFolder, translating_load_errors
from chiasm.pipeline.records import SOUND, TEXT

MODEL_TYPE = "clap"
FUSION, ONE_PIECE = "fusion", "rand_trunc"  # how the extractor shortens
PIECES = 3  # of a long sound beside the whole, where they are fused
LEAST_POWER = 1e-10  # of a mel band, in the extractor
FRAMES = 512  # whose spectra are in memory at once: 4 MB at a window of 1,024


def load(folder: ModelFolder, settings: EncoderSettings) -> ClapEncoder:
    """The encoder of a folder; raises EncoderError or UsageError, in one line."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config = _config(folder)
    return ClapEncoder(
        folder,
        dim=config.projection_dim,
        tokens=_tokens(folder, config),
        features=_features(folder, config),
        network=load_network(folder, "ClapModel", PRECISIONS[precision]).to(device),
        precision=precision,
        device=device,
    )


class ClapEncoder(BaseEncoder):
    """The two towers of one CLAP; see the protocol `chiasm.pipeline.encoders.Encoder`."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        dim: int,
        tokens: Tokens,
        features: Features,
        network: Any,
        precision: str,
        device: torch.device,
    ) -> None:
        self.name = folder.name
        self.modalities = {
            SOUND: Input(extensions=SOUND_EXTENSIONS, rate=features.rate),
            TEXT: Input(),
        }
        self.dims = dict.fromkeys((SOUND, TEXT, JOINT), dim)
        self.precision = precision
        self.device = str(device)
        self.preprocessing = {"sound": features.describe(), "text": tokens.describe()}
        self.fingerprint = folder.fingerprint(self.preprocessing)
        self._tokens, self._features, self._network = tokens, features, network
        self._device, self._dtype = device, PRECISIONS[precision]

    def preprocess(self, modality: str, raw: Any) -> Any:
        """Samples float32 (T,) -> `Spectrogram`. A text stays as it is."""
        require_modality(self, modality)
        return self._features(raw) if modality == SOUND else raw

    def cost(self, modality: str, item: Any) -> int:
        """Bytes of the input, as float32."""
        return 4 * item.mel.size if isinstance(item, Spectrogram) else super().cost(modality, item)

    @torch.inference_mode()
    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows; texts are cut to the model's length."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        if modality == TEXT:
            read, cut = self._tokens.read(items)
            inputs = {name: value.to(self._device) for name, value in read.items()}
            return Encoded(_rows(self._network.get_text_features(**inputs)), tokens_cut=cut)
        mels = torch.from_numpy(np.stack([item.mel for item in items]))
        is_long = torch.tensor([[item.is_long] for item in items], device=self._device)
        features = self._network.get_audio_features(
            input_features=mels.to(self._device, self._dtype), is_longer=is_long
        )
        return Encoded(_rows(features))


@dataclass(frozen=True, slots=True)
class Spectrogram:
    """mel: (C, F, M) float32 in dB, of F frames and M bands; C is 1, or 4 where pieces are fused.
    is_long: whether they are pieces of a longer sound."""

    mel: np.ndarray
    is_long: bool


@dataclass(frozen=True)
class Features:
    """Samples -> what the audio tower takes of them; by transformers' ClapFeatureExtractor.

    length: samples that the model takes. window, hop: samples of a frame and between two.
    filters: (window / 2 + 1, M) float64. truncation, padding: as the extractor calls them."""

    rate: int
    length: int
    window: int
    hop: int
    filters: np.ndarray
    truncation: str
    padding: str

    @classmethod
    def of(cls, extractor: Any) -> Features:
        fused = extractor.truncation == FUSION
        return cls(
            rate=extractor.sampling_rate,
            length=extractor.nb_max_samples,
            window=extractor.fft_window_size,
            hop=extractor.hop_length,
            filters=extractor.mel_filters if fused else extractor.mel_filters_slaney,
            truncation=extractor.truncation,
            padding=extractor.padding,
        )

    def __call__(self, samples: np.ndarray) -> Spectrogram:
        """samples: (T,) float32, T > 0."""
        if self.truncation != FUSION:
            start = max(0, len(samples) - self.length) // 2
            piece = samples[start : start + self.length]
            return Spectrogram(self._log_mel(self._padded(piece))[None], len(samples) > self.length)
        mel = self._log_mel(self._padded(samples))
        frames = self.length // self.hop + 1
        if len(mel) <= frames:  # up to a hop more than the length
            return Spectrogram(np.stack([mel] * (1 + PIECES)), False)
        thirds = np.array_split(np.arange(len(mel) - frames + 1), PIECES)
        starts = [third[len(third) // 2] if len(third) else 0 for third in thirds]
        pieces = [mel[start : start + frames] for start in starts]
        return Spectrogram(np.stack([_squeezed(mel, frames), *pieces]), True)

    def _padded(self, samples: np.ndarray) -> np.ndarray:
        """A sound that is shorter than the model takes, repeated or followed by silence."""
        times = self.length // len(samples)
        if times and self.padding == "repeat":
            return np.resize(samples, self.length)
        if times and self.padding == "repeatpad":
            samples = np.tile(samples, times)
        return np.pad(samples, (0, max(0, self.length - len(samples))))

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """(T,) -> (1 + T // hop, M) float32 in dB. Frames are centred, the sound is mirrored at its
        ends, and the window is a periodic Hann; rounded where the extractor rounds."""
        padded = np.pad(samples.astype(np.float64), self.window // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        mel = np.empty((len(frames), self.filters.shape[1]), np.float32)
        for start in range(0, len(frames), FRAMES):
            some = slice(start, start + FRAMES)
            spectra = np.fft.rfft(frames[some] * hann).astype(np.complex64)
            power = np.abs(spectra, dtype=np.float64) ** 2
            mel[some] = 10 * np.log10(np.maximum(LEAST_POWER, power @ self.filters))
        return mel

    def describe(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "seconds": self.length / self.rate,
            "log_mel": {
                "bands": self.filters.shape[1],
                "window": self.window,
                "hop": self.hop,
            },
            "padding": self.padding,
            "longer": "the whole and three pieces" if self.truncation == FUSION else "the middle",
        }


def _squeezed(mel: np.ndarray, frames: int) -> np.ndarray:
    """All frames of a sound as `frames`, between them linearly: (F, M) -> (frames, M)."""
    whole = torch.from_numpy(mel)[None, None]
    size = [frames, mel.shape[1]]
    return torch.nn.functional.interpolate(whole, size=size, mode="bilinear")[0, 0].numpy()


def _rows(features: Any) -> np.ndarray:
    """The projected vectors (B, D), made unit in float32 whatever the towers ran in."""
    return unit(features.pooler_output.float().cpu().numpy())


def _config(folder: ModelFolder) -> Any:
    with translating_load_errors(folder.title, "a config.json"):
        return transformers.AutoConfig.from_pretrained(folder.path, **OURS_ALONE)


def _tokens(folder: ModelFolder, config: Any) -> Tokens:
    text = config.text_config
    tokens = load_tokens(folder, "longest", text.vocab_size)
    # Positions are counted from behind that of padding, as RoBERTa does.
    most = text.max_position_embeddings - text.pad_token_id - 1
    return replace(tokens, length=min(tokens.length, most))


def _features(folder: ModelFolder, config: Any) -> Features:
    folder.require_one_of(PROCESSORS, "feature extractor")
    with translating_load_errors(folder.title, "a feature extractor"):
        extractor: Any = transformers.ClapFeatureExtractor.from_pretrained(
            folder.path, local_files_only=True
        )
    audio = config.audio_config
    truncation = FUSION if audio.enable_fusion else ONE_PIECE
    if extractor.truncation != truncation:
        raise EncoderError(
            folder.title,
            expected=f"sounds shortened by {truncation}, as the weights were trained",
            found=f"{extractor.truncation!r} in preprocessor_config.json",
            do="check that all files are of one model",
        )
    if extractor.feature_size != audio.num_mel_bins:
        raise EncoderError(
            folder.title,
            expected=f"{audio.num_mel_bins} bands, as config.json says",
            found=f"{extractor.feature_size} in preprocessor_config.json",
            do="check that all files are of one model",
        )
    return Features.of(extractor)
