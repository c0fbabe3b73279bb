"""The models of a folder as transformers itself runs them, called directly in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from family_differences import PICTURES, Library, unit_rows
from PIL import Image
from tiny_sounds import RATE
from torch.nn import functional

from chiasm.pipeline.pretrained.hub import capture_warnings


class Own(Library):
    """A dual encoder. longest: where its processor cuts texts. padding: of texts, as it was
    trained."""

    def __init__(self, folder: Path, longest: int, padding: str | bool = True) -> None:
        self.folder, self.longest, self.padding = folder, longest, padding
        with capture_warnings():
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
            self.model: Any = self.load()
        self.network = type(self.model).__name__
        self.reads = (self.network,)

    def load(self) -> Any:
        return transformers.AutoModel.from_pretrained(self.folder, dtype=torch.float32).eval()

    def image_inputs(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """What its own image processor makes of pictures."""
        with capture_warnings():
            made = transformers.AutoImageProcessor.from_pretrained(self.folder, backend="pil")
        return dict(made(list(pictures), return_tensors="pt"))

    def text_inputs(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        made = self.tokenizer(
            list(texts),
            padding=self.padding,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
        )
        return {name: made[name] for name in ("input_ids", "attention_mask") if name in made}

    def images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.get_image_features(**inputs).pooler_output

    def texts(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.get_text_features(**inputs).pooler_output

    def logits(self, pixels: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Any:
        """(1, 2) of one pair."""
        raise NotImplementedError

    def made(self, model: Any, modality: str, items: Sequence[Any]) -> dict[str, Any]:
        return model._parts.image_inputs(items)

    def inputs(self, modality: str, raw: Sequence[Any]) -> dict[str, Any]:
        return self.image_inputs(raw)

    def level(self, model: Any, modality: str) -> float:
        rule = model._parts.pixels.describe()
        return float(np.mean(rule["std"])) / rule["rescale"]

    def rows(self, modality: str, raw: Sequence[Any], inputs: dict[str, Any]) -> Any:
        tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
        return unit_rows(self.images(tensors))

    def text_rows(self, texts: Sequence[str]) -> Any:
        return unit_rows(self.texts(self.text_inputs(texts)))

    def score(self, picture: Image.Image, inputs: dict[str, torch.Tensor], text: str) -> float:
        """Log odds."""
        ((no, yes),) = self.logits(inputs, self.text_inputs([text]))
        return float(yes - no)


class Lowercased(Own):
    """SigLIP2 learnt from lowercased texts, which its users are told to make."""

    def text_inputs(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        return super().text_inputs([text.lower() for text in texts])


class Flava(Own):
    def images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().images(inputs)[:, 0]  # as FlavaForPreTraining's contrast

    def texts(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().texts(inputs)[:, 0]


class Tipsv2(Own):
    """Its image processor needs torchvision, whose antialiased resize is torch's."""

    def image_inputs(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        side = self.model.config.vision_config.image_size
        arrays = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
        resized = [
            functional.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)
            for pixels in arrays
        ]
        return {"pixel_values": torch.cat(resized) / 255}


class Blip(Own):
    matches = True

    def load(self) -> Any:
        return transformers.BlipForImageTextRetrieval.from_pretrained(self.folder).eval()

    def images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        made = self.model(**inputs, **self.text_inputs(["a"]), use_itm_head=False)
        return self.model.vision_proj(made.last_hidden_state[:, 0])

    def texts(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels = self.image_inputs(PICTURES[:1])
        made = self.model(**pixels, **inputs, use_itm_head=False)
        return self.model.text_proj(made.question_embeds[:, 0])

    def logits(self, pixels: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Any:
        return self.model(**pixels, **text).itm_score


class Blip2(Own):
    encodes, matches = False, True

    def load(self) -> Any:
        return transformers.Blip2ForImageTextRetrieval.from_pretrained(self.folder).eval()

    def logits(self, pixels: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Any:
        made = self.model(**pixels, **text, use_image_text_matching_head=True)
        return made.logits_per_image


class Clap(Library):
    """Of a sound that is longer than the model takes, the piece in the middle of those among which
    its extractor chooses by chance."""

    seen = ("sound",)

    def __init__(self, folder: Path) -> None:
        with capture_warnings():
            self.model: Any = transformers.ClapModel.from_pretrained(folder).eval()
            self.extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.network = type(self.model).__name__
        self.reads = (self.network,)

    def made(self, model: Any, modality: str, items: Sequence[Any]) -> dict[str, Any]:
        is_longer = torch.tensor([[item.is_long] for item in items])
        mels = torch.from_numpy(np.stack([item.mel for item in items]))
        return {"input_features": mels, "is_longer": is_longer}

    def inputs(self, modality: str, raw: Sequence[Any]) -> dict[str, Any]:
        with middle_by_chance():
            made = self.extractor(list(raw), sampling_rate=RATE, return_tensors="pt")
        return dict(made)

    def level(self, model: Any, modality: str) -> float:
        return 1.0

    def rows(self, modality: str, raw: Sequence[Any], inputs: dict[str, Any]) -> Any:
        return unit_rows(self.model.get_audio_features(**inputs).pooler_output)

    def text_rows(self, texts: Sequence[str]) -> Any:
        made = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return unit_rows(self.model.get_text_features(**made).pooler_output)


@contextmanager
def middle_by_chance() -> Iterator[None]:
    """Inside, a CLAP's extractor draws the middle of what it draws from."""
    drawn = {
        "randint": lambda low, high: (low + high - 1) // 2,
        "choice": lambda starts: starts[len(starts) // 2],
    }
    with mock.patch.multiple(np.random, **drawn):
        yield


# By the names of random_families.py: the model as its own library runs it.
OWN: dict[str, Callable[[Path], Own]] = {
    "clip": lambda at: Own(at, 77),
    "siglip": lambda at: Own(at, 64, "max_length"),
    "siglip2": lambda at: Lowercased(at, 64, "max_length"),
    "naflex": lambda at: Lowercased(at, 64, "max_length"),
    "chinese-clip": lambda at: Own(at, 52),
    "altclip": lambda at: Own(at, 40),
    "metaclip-2": lambda at: Own(at, 77),
    "clipseg": lambda at: Own(at, 77),
    "aimv2": lambda at: Own(at, 77),
    "groupvit": lambda at: Own(at, 77),
    "align": lambda at: Own(at, 64, "max_length"),
    "tipsv2": lambda at: Tipsv2(at, 64, "max_length"),
    "dual-encoder": lambda at: Own(at, 40),
    "flava": lambda at: Flava(at, 77),
    "blip-itm": lambda at: Blip(at, 40),
    "blip2-itm": lambda at: Blip2(at, 40),
}
