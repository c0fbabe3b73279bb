"""The two frozen towers: pictures or texts -> pooled features and tokens.

Any image model of transformers will do (CLIP's vision tower, DINO, a MobileNet that knows ImageNet
alone), and any SentenceTransformer. Pictures are squeezed whole to the square that the model takes:
captions describe margins too, which a crop would cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings, most_moved
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.hub import (
    ModelFolder,
    find_model,
    require_shapes,
    translating_load_errors,
)
from chiasm.pipeline.pretrained.image_processing import Scale
from chiasm.pipeline.pretrained.sentence_models import load_network, replace_surrogates
from chiasm.pipeline.pretrained.sentence_tasks import TextLengths, default_prompt
from chiasm.pipeline.resizing import Picture, resize

WEIGHTS = "model*.safetensors"
TOKEN_GRID = 4  # picture tokens a side: finer grids are averaged down to it
CROP_MARGIN = 1 / 9  # of the side, cut off on every side by the crop of test-time augmentation
MAX_TOKENS = 24  # text tokens that a fusion attends to; the pooled vector is of the whole text
# Pictures of a forward pass on a CPU: the activations of 64 are mapped anew for every layer, which
# took a MobileNetV2 2.8 times as long a picture as those of 8 (torch 2.13, two cores).
CPU_BATCH = 8
PROBE_TEXTS = ("a note", "something that somebody once wrote")  # of different length, so padded
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class ImageFeatures:
    """Of B pictures: pooled (B, D) float32, tokens (B, N, D') float32, N = TOKEN_GRID^2 or 1."""

    pooled: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class TextFeatures:
    """Of B texts: pooled (B, D) float32, tokens (B, T, D') float32, mask (B, T) bool,
    T <= MAX_TOKENS, and the token ids of each whole text without special ones (none where the model
    has none). cut: (B,) int64, the tokens that the model itself does not read. unattended: (B,)
    int64, those that it reads and that are none of `tokens`.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    ids: list[list[int]]
    cut: np.ndarray
    unattended: np.ndarray


class ImageTower:
    """An image model of transformers, frozen. `width` and `token_width`: of pooled and tokens."""

    def __init__(self, model: str, settings: EncoderSettings) -> None:
        self.device, self.precision = _device_and_precision(settings)
        self.folder = find_model("hf", model, WEIGHTS)
        self.side, self._resample, self._scale = _processor(self.folder)
        self._dtype = PRECISIONS[self.precision]
        self._network = _vision(self.folder, self._dtype).to(self.device)
        self.preprocessing = {
            "resize": [self.side, self.side],
            "resample": Image.Resampling(self._resample).name.lower(),
            **self._scale.describe(),
        }
        self.fingerprint = self.folder.fingerprint(self.preprocessing)
        ramp = np.arange(self.side, dtype=np.float32)[None, :, None] * (255 / self.side)
        pixels = np.broadcast_to(ramp, (3, self.side, self.side)).astype(np.uint8)
        with translating_load_errors(self.folder.title, "an image model that encodes pictures"):
            probe = self([pixels, 255 - pixels])
        _require_finite(self.folder, probe.pooled, self.precision)
        self.width, self.token_width = probe.pooled.shape[-1], probe.tokens.shape[-1]

    def preprocess(self, picture: Picture) -> np.ndarray:
        """One RGB picture -> uint8 (3, S, S), the whole of it."""
        squeezed = resize(picture, (self.side, self.side), self._resample)
        return np.ascontiguousarray(squeezed.transpose(2, 0, 1))

    @torch.inference_mode()
    def __call__(self, pixels: Sequence[np.ndarray]) -> ImageFeatures:
        """B outputs of `preprocess` -> their features, on the tower's device."""
        size = CPU_BATCH if self.device.type == "cpu" else len(pixels)
        parts = [self._block(pixels[at : at + size]) for at in range(0, len(pixels), size)]
        return ImageFeatures(
            torch.cat([part.pooled for part in parts]), torch.cat([part.tokens for part in parts])
        )

    def augmented(self, pixels: Sequence[np.ndarray], pooled: Tensor) -> Tensor:
        """Test-time augmentation: B outputs of `preprocess` and their pooled features (B, D) ->
        (B, D) float32, the mean of these and of the features of two augmentations, the horizontal
        flip and an enlarged centre crop."""
        if not pixels:
            return pooled
        flipped = self([np.ascontiguousarray(item[..., ::-1]) for item in pixels])
        cropped = self([self._centre_crop(item) for item in pixels])
        return (pooled + flipped.pooled + cropped.pooled) / 3

    def _centre_crop(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (3, S, S) -> the same without CROP_MARGIN on every side, resized to S."""
        margin = CROP_MARGIN * self.side
        box = (margin, margin, self.side - margin, self.side - margin)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        larger = image.resize((self.side, self.side), self._resample, box)
        return np.ascontiguousarray(np.asarray(larger).transpose(2, 0, 1))

    @property
    def network(self) -> nn.Module:
        """The model of transformers itself."""
        return self._network

    def states(
        self, pixels: Sequence[np.ndarray], *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """B outputs of `preprocess` -> pooled (B, D) float32 and the last hidden states, (B, D', h,
        w) or (B, S, D'). differentiable: by gradients of the pixels, whose weights are frozen."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device)
        values = self._scale(batch).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out = self._network(pixel_values=values.requires_grad_(differentiable))
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            pooled = _grid_tokens(out.last_hidden_state.float()).mean(1)
        return pooled.float().flatten(1), out.last_hidden_state

    def _block(self, pixels: Sequence[np.ndarray]) -> ImageFeatures:
        pooled, states = self.states(pixels)
        return ImageFeatures(pooled, _grid_tokens(states.float()))


class TextTower:
    """A SentenceTransformer, frozen. `width` and `token_width`: of pooled and tokens."""

    def __init__(self, model: str, settings: EncoderSettings) -> None:
        self.folder, network, self.precision, self.device = load_network(
            SentenceTransformer, model, settings
        )
        self._network = network.eval()
        prompt = default_prompt(network)
        self._prompt = prompt or None
        self.preprocessing = {"prompt": prompt}
        self.fingerprint = self.folder.fingerprint(self.preprocessing)
        special = getattr(network.tokenizer, "all_special_ids", None)
        self._special = frozenset(special or ())
        # A bare text that reads like the path or the URL of a picture is opened or fetched by
        # models that take pictures too. Models of texts alone open nothing, and most kinds of
        # modules (StaticEmbedding, BoW, WordEmbeddings) fail at a text that is named.
        self._named = any(kind != "text" for kind in network.modalities)
        with translating_load_errors(self.folder.title, "a text model that encodes texts"):
            self._lengths = TextLengths(network, None, prompt)
            probe = self(PROBE_TEXTS)
            _require_masked_padding(self.folder, self.precision, probe, self(PROBE_TEXTS[:1]))
        _require_finite(self.folder, probe.pooled, self.precision)
        self.width, self.token_width = probe.pooled.shape[-1], probe.tokens.shape[-1]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """B texts -> their features, on the tower's device."""
        clean = [replace_surrogates(text) for text in texts]
        inputs = self._network.preprocess(
            [{"text": text} for text in clean] if self._named else clean, prompt=self._prompt
        )
        inputs = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        ids = inputs.get("input_ids")
        out = self._network(dict(inputs))
        pooled = out["sentence_embedding"].float()
        tokens, mask = out.get("token_embeddings"), out.get("attention_mask")
        if ids is None or tokens is None or mask is None or tokens.shape[:2] != mask.shape:
            whole = torch.ones(len(pooled), 1, dtype=torch.bool, device=pooled.device)
            none = np.zeros(len(texts), np.int64)
            return TextFeatures(pooled, pooled[:, None], whole, [[] for _ in texts], none, none)
        # Padding last, whichever side the model pads: the tokens kept are the same in any batch.
        order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :MAX_TOKENS]
        return TextFeatures(
            pooled,
            tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])).float(),
            mask.gather(1, order).bool(),
            [self._words(*row) for row in zip(ids.tolist(), mask.tolist(), strict=True)],
            self._lengths.cut(clean),
            (mask.sum(1) - MAX_TOKENS).clamp(min=0).cpu().numpy(),
        )

    def _words(self, ids: list[int], mask: list[int]) -> list[int]:
        return [
            i for i, unmasked in zip(ids, mask, strict=True) if unmasked and i not in self._special
        ]


def _require_masked_padding(
    folder: ModelFolder, precision: str, beside: TextFeatures, alone: TextFeatures
) -> None:
    """Raise EncoderError for a tower that gives a text other features `alone` than `beside` a
    longer one."""
    first, second = (functional.normalize(made.pooled[:1], dim=1) for made in (beside, alone))
    if (first - second).norm() > most_moved(precision):
        raise EncoderError(
            folder.title,
            expected="features that depend on their text alone",
            found=f"cosine {float((first * second).sum()):.4f} between those of the same text, "
            "alone and beside a longer one",
            do="take another model; this one does not mask what it pads",
        )


def _require_finite(folder: ModelFolder, pooled: Tensor, precision: str) -> None:
    """Raise EncoderError for a tower that gives NaN for everything."""
    if not pooled.isfinite().all(dim=1).any():
        wide = precision == "float32"
        raise EncoderError(
            folder.title,
            expected="finite features, as a trial",
            found="NaN or infinity",
            do="fetch its weights again" if wide else "try --set encoder.precision=float32",
        )


def _device_and_precision(settings: EncoderSettings) -> tuple[torch.device, str]:
    device = resolve_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return device, resolve_precision(settings.precision, device)


def _vision(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The network that takes pixel_values; of a model of pictures and texts its vision tower."""
    with translating_load_errors(folder.title, "an image model"):
        network, report = transformers.AutoModel.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **LOCAL,
        )
    require_shapes(folder.title, report)
    network = getattr(network, "vision_model", network)
    # A pooler may be without weights: such checkpoints are pooled by the mean of their tokens.
    lacking = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if lacking or network.main_input_name != "pixel_values":
        raise EncoderError(
            folder.title,
            expected="an image model of transformers with all its weights",
            found=f"none for {lacking[0]}" if lacking else type(network).__name__,
            do="name the folder of a vision model, such as a ViT, a ResNet or a CLIP",
        )
    if report["missing_keys"] and hasattr(network, "pooler"):
        network.pooler = None
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _processor(folder: ModelFolder) -> tuple[int, int, Scale]:
    """(S, resampling, scale) as the model's own image processor has them."""
    folder.require_one_of(("preprocessor_config.json", "processor_config.json"), "image processor")
    with translating_load_errors(folder.title, "an image processor"):
        made: Any = transformers.AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", **LOCAL
        )
    size = made.crop_size if getattr(made, "do_center_crop", False) else made.size
    side = getattr(size, "height", None) or getattr(size, "shortest_edge", None)
    if not side:
        raise EncoderError(
            folder.title,
            expected="an image processor that makes pictures of one size",
            found=f"{type(made).__name__} {made.to_dict()}"[:300],
        )
    resample = Image.Resampling.BILINEAR if made.resample is None else made.resample
    return int(side), int(resample), Scale.of(made)


def _grid_tokens(states: Tensor) -> Tensor:
    """Last hidden states (B, D, h, w) or (B, extra + N, D) -> (B, n, D), n <= TOKEN_GRID^2."""
    if states.ndim == 3:
        side = int(states.shape[1] ** 0.5)
        states = states[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    if states.ndim == 2:
        return states[:, None]
    side = min(TOKEN_GRID, *states.shape[-2:])
    return functional.adaptive_avg_pool2d(states, side).flatten(2).transpose(1, 2)
