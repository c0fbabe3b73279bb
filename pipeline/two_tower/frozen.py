"""The two towers as they are: pictures or texts -> pooled features and tokens; nothing learns here.

Any image model of transformers will do (CLIP's vision tower, DINO, a MobileNet that knows ImageNet
alone), and any SentenceTransformer. Pictures are squeezed whole to the square that the model takes:
captions tell of margins too, which a crop would cut away.
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
from torch import Tensor
from torch.nn import functional

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device import PRECISIONS, resolve_device, resolve_precision
from chiasm.pipeline.pretrained.hub import ModelFolder, find_model, translating_load_errors
from chiasm.pipeline.pretrained.image_processing import Scale
from chiasm.pipeline.pretrained.sentence_models import load_network, replace_surrogates

WEIGHTS = "model*.safetensors"
SQUARE = 4  # picture tokens a side: finer grids are averaged down to it
MARGIN = 1 / 9  # of the side, left out where a picture's middle is looked at by itself
WORDS = 24  # text tokens that are looked at one by one; the pooled vector sees the whole text
# Pictures of a forward pass on a CPU: the activations of 64 are mapped anew for every layer, which
# took a MobileNetV2 2.8 times as long a picture as those of 8 (torch 2.13, two cores).
AT_ONCE = 8
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Pictures:
    """Of B pictures: pooled (B, D) float32, tokens (B, N, D') float32, N = SQUARE^2 or 1."""

    pooled: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Texts:
    """Of B texts: pooled (B, D) float32, tokens (B, T, D') float32, mask (B, T) bool, T <= WORDS,
    and the token ids of each whole text, special ones left out (none where the model has none).
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    ids: list[list[int]]


class ImageTower:
    """An image model of transformers, frozen. `width` and `token_width`: of pooled and tokens."""

    def __init__(self, model: str, settings: EncoderSettings) -> None:
        self.device, self.precision = _where(settings)
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
        seen = self([np.zeros((3, self.side, self.side), np.uint8)])
        self.width, self.token_width = seen.pooled.shape[-1], seen.tokens.shape[-1]

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """One RGB picture -> uint8 (3, S, S), the whole of it."""
        squeezed = image.resize((self.side, self.side), self._resample)
        return np.ascontiguousarray(np.asarray(squeezed).transpose(2, 0, 1))

    @torch.inference_mode()
    def __call__(self, pixels: Sequence[np.ndarray]) -> Pictures:
        """B outputs of `preprocess` -> their features, on the tower's device."""
        size = AT_ONCE if self.device.type == "cpu" else len(pixels)
        parts = [self._block(pixels[at : at + size]) for at in range(0, len(pixels), size)]
        return Pictures(
            torch.cat([part.pooled for part in parts]), torch.cat([part.tokens for part in parts])
        )

    def closely(self, pixels: Sequence[np.ndarray], pooled: Tensor) -> Tensor:
        """B pictures and their pooled features (B, D) -> (B, D), these meaned with those of the
        mirror image and of the middle, enlarged."""
        if not pixels:
            return pooled
        mirrored = self([np.ascontiguousarray(each[..., ::-1]) for each in pixels])
        middle = self([self._middle(each) for each in pixels])
        return (pooled + mirrored.pooled + middle.pooled) / 3

    def _middle(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (3, S, S) -> the same, without a margin on every side."""
        margin = MARGIN * self.side
        box = (margin, margin, self.side - margin, self.side - margin)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        larger = image.resize((self.side, self.side), self._resample, box)
        return np.ascontiguousarray(np.asarray(larger).transpose(2, 0, 1))

    def _block(self, pixels: Sequence[np.ndarray]) -> Pictures:
        batch = torch.from_numpy(np.stack(pixels)).to(self.device)
        values = self._scale(batch).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out = self._network(pixel_values=values)
        tokens = _square(out.last_hidden_state.float())
        pooled = getattr(out, "pooler_output", None)
        pooled = tokens.mean(1) if pooled is None else pooled.float().flatten(1)
        return Pictures(pooled, tokens)


class TextTower:
    """A SentenceTransformer, frozen. `width` and `token_width`: of pooled and tokens."""

    def __init__(self, model: str, settings: EncoderSettings) -> None:
        self.folder, network, self.precision, self.device = load_network(
            SentenceTransformer, model, settings
        )
        self._network = network.eval()
        prompt = network.prompts.get(network.default_prompt_name or "", "")
        self._prompt = prompt or None
        self.preprocessing = {"prompt": prompt}
        self.fingerprint = self.folder.fingerprint(self.preprocessing)
        special = getattr(network.tokenizer, "all_special_ids", None)
        self._special = frozenset(special or ())
        seen = self(["a"])
        self.width, self.token_width = seen.pooled.shape[-1], seen.tokens.shape[-1]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Texts:
        """B texts -> their features, on the tower's device."""
        inputs = self._network.preprocess(
            [replace_surrogates(text) for text in texts], prompt=self._prompt
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
            return Texts(pooled, pooled[:, None], whole, [[] for _ in texts])
        # Words first, whichever side the model pads: what is looked at is the same in any batch.
        order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :WORDS]
        return Texts(
            pooled,
            tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])).float(),
            mask.gather(1, order).bool(),
            [self._words(*row) for row in zip(ids.tolist(), mask.tolist(), strict=True)],
        )

    def _words(self, ids: list[int], mask: list[int]) -> list[int]:
        return [i for i, there in zip(ids, mask, strict=True) if there and i not in self._special]


def _where(settings: EncoderSettings) -> tuple[torch.device, str]:
    device = resolve_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return device, resolve_precision(settings.precision, device)


def _vision(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The network that takes pixel_values; of a model of pictures and texts its vision tower."""
    with translating_load_errors(folder.what, "an image model"):
        network, report = transformers.AutoModel.from_pretrained(
            folder.path, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    network = getattr(network, "vision_model", network)
    # A pooler may be without weights: such checkpoints are pooled by the mean of their tokens.
    lacking = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if lacking or network.main_input_name != "pixel_values":
        raise EncoderError(
            f"encoder {folder.what}",
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
    with translating_load_errors(folder.what, "an image processor"):
        made: Any = transformers.AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", **LOCAL
        )
    size = made.crop_size if getattr(made, "do_center_crop", False) else made.size
    side = getattr(size, "height", None) or getattr(size, "shortest_edge", None)
    if not side:
        raise EncoderError(
            f"encoder {folder.what}",
            expected="an image processor that makes pictures of one size",
            found=f"{type(made).__name__} {made.to_dict()}"[:300],
        )
    resample = Image.Resampling.BILINEAR if made.resample is None else made.resample
    return int(side), int(resample), Scale.of(made)


def _square(states: Tensor) -> Tensor:
    """Last hidden states (B, D, h, w) or (B, extra + N, D) -> (B, n, D), n = SQUARE^2 at most."""
    if states.ndim == 3:
        side = int(states.shape[1] ** 0.5)
        states = states[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    if states.ndim == 2:
        return states[:, None]
    side = min(SQUARE, *states.shape[-2:])
    return functional.adaptive_avg_pool2d(states, side).flatten(2).transpose(1, 2)
