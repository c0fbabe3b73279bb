"""How far the vectors and scores of an encoder or a matcher are from those of the model's own
library, called directly on the same input; and how far that input is from the one that the
library's own processor makes. For tests, and for a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional

from chiasm.pipeline.encoders import load_encoder, load_matcher, normalized_mean, unit
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
TEXTS = (
    "a red boat under the moon",
    "cat",
    "a photo of " * 60,
    "红色的船",
    "two people, 2!",
    "Two CATS on the Street",
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = tuple(noise(w, h, w) for w, h in [(70, 50), (50, 70), (33, 33), (200, 20), (5, 9)])


@dataclass(frozen=True)
class Differences:
    """The largest of any element: text, picture and joint of unit vectors, matching of log odds,
    None where a model has none. inputs: the mean of what goes into the image tower, of 255. cosine:
    the least, from pictures to vectors through each side's own processing."""

    text: float | None
    picture: float | None
    joint: float | None
    matching: float | None
    inputs: float
    cosine: float | None


class Own:
    """A model of transformers as its library loads it, in float32. longest: where its processor
    cuts texts. padding: of texts, as it was trained."""

    def __init__(self, folder: Path, longest: int, padding: str | bool = True) -> None:
        self.folder, self.longest, self.padding = folder, longest, padding
        with capture_warnings():
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
            self.model: Any = self.load()

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
    def load(self) -> Any:
        return transformers.Blip2ForImageTextRetrieval.from_pretrained(self.folder).eval()

    def logits(self, pixels: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Any:
        made = self.model(**pixels, **text, use_image_text_matching_head=True)
        return made.logits_per_image


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


def differences(
    model: Any, own: Own, *, encodes: bool = True, matches: bool = False
) -> Differences:
    """Of an encoder or a matcher and the same model as its library runs it."""
    items = [model.preprocess("image", np.asarray(picture)) for picture in PICTURES]
    made = model._parts.image_inputs(items)
    with torch.inference_mode():
        wanted = own.image_inputs(PICTURES)
        text = picture = joint = matching = cosine = None
        if encodes:
            of_images = model.encode("image", items)
            of_texts = model.encode("text", list(TEXTS[: len(items)]))
            images, texts = (
                unit(own.images(made).numpy()),
                unit(own.texts(own.text_inputs(TEXTS)).numpy()),
            )
            text = _largest(model.encode("text", list(TEXTS)).vectors, texts)
            picture = _largest(of_images.vectors, images)
            pairs = model.encode_joint({"image": of_images, "text": of_texts})
            joint = _largest(pairs, normalized_mean([images, texts[: len(items)]]))
            cosine = float((of_images.vectors * unit(own.images(wanted).numpy())).sum(1).min())
        if matches:
            matching = _matching(model, own, items, made)
    return Differences(text, picture, joint, matching, _inputs(model, made, wanted), cosine)


def differences_of(family: str, folder: Path) -> Differences:
    """Of a folder of random_families.py."""
    own, encodes = OWN[family](folder), family != "blip2-itm"
    model = (load_encoder if encodes else load_matcher)(f"hf:{folder}", FLOAT32)
    return differences(model, own, encodes=encodes, matches=family in ("blip-itm", "blip2-itm"))


def _matching(model: Any, own: Own, items: Sequence[Any], made: dict[str, torch.Tensor]) -> float:
    """Every picture with every text, on the library's side one pair at a time."""
    pairs = np.array([(i, j) for j in range(len(TEXTS)) for i in range(len(items))])
    scores = model.match(("image", items), ("text", list(TEXTS)), pairs)
    wanted = []
    for i, j in pairs:
        pixels = {name: values[i : i + 1] for name, values in made.items()}
        logits = own.logits(pixels, own.text_inputs([TEXTS[j]]))[0]
        wanted.append(float(logits[1] - logits[0]))
    return _largest(scores, np.array(wanted))


def _inputs(model: Any, made: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The mean difference of pixels, of 255; AssertionError where other inputs differ."""
    kept = {name: value for name, value in made.items() if name != "pixel_values"}
    assert made.keys() <= wanted.keys()
    for name, values in kept.items():
        np.testing.assert_array_equal(values.numpy(), np.asarray(wanted[name]))
    rule = model._parts.pixels.describe()
    ours, theirs = made["pixel_values"], torch.as_tensor(np.asarray(wanted["pixel_values"]))
    return float((ours - theirs).abs().mean()) * float(np.mean(rule["std"])) / rule["rescale"]


def _largest(made: np.ndarray, wanted: np.ndarray) -> float:
    assert made.shape == wanted.shape
    return float(np.abs(made - wanted).max())
