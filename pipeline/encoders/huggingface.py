"""`hf:ID_OR_DIR`: CLIP, SigLIP and SigLIP2 models through transformers.

Pictures follow the model's own image processor (pretrained/image_processing.py). Texts follow its
tokenizer, padded as the model was trained: CLIP's to the longest of the batch, under a mask;
SigLIP's always to full length, because it reads its vector off the last position, padding or not.
Weights are in the chosen precision; vectors come back in float32. All is read from one folder, and
no code in it is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from chiasm.pipeline.encoders.base import BaseEncoder, require_modality, unit
from chiasm.pipeline.encoders.explain_huggingface import HuggingFaceMapper
from chiasm.pipeline.encoders.explainer import DEFAULT, GRAD_ECLIP, LEGRAD, Explanation
from chiasm.pipeline.encoders.explaining import explain
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Input
from chiasm.pipeline.encoders.words import Span, align, word_spans
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.hub import ModelFolder, find_model, translating_load_errors
from chiasm.pipeline.pretrained.image_processing import (
    ImageProcessing,
    PatchProcessing,
    SquareProcessing,
)
from chiasm.pipeline.records import IMAGE, TEXT

WEIGHTS = "model*.safetensors"
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Set explicitly, because transformers asks at the terminal where it is left open.
OURS_ALONE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Kind:
    """What differs between model types: the class, how texts are padded, how pictures go in."""

    model: str
    padding: str
    pixels: type[SquareProcessing] | type[PatchProcessing]


KINDS = {  # by `model_type` of config.json. SigLIP2 of fixed resolution calls itself siglip.
    "clip": Kind("CLIPModel", "longest", SquareProcessing),
    "siglip": Kind("SiglipModel", "max_length", SquareProcessing),
    "siglip2": Kind("Siglip2Model", "max_length", PatchProcessing),
}


def load(model: str, settings: EncoderSettings) -> HuggingFaceEncoder:
    """The encoder of a folder or a hub id; raises EncoderError or UsageError, in one line."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = find_model("hf", model, WEIGHTS)
    config = _config(folder)
    kind = KINDS[config.model_type]
    return HuggingFaceEncoder(
        folder,
        dim=_dim(folder, config),
        tokens=_tokens(folder, config, kind),
        pixels=_pixels(folder, config, kind),
        network=load_network(folder, kind.model, PRECISIONS[precision]).to(device),
        precision=precision,
        device=device,
    )


class HuggingFaceEncoder(BaseEncoder):
    """The two towers of one transformers model; see the protocol
    `chiasm.pipeline.encoders.Encoder`."""

    methods = (DEFAULT, GRAD_ECLIP, LEGRAD)

    def __init__(
        self,
        folder: ModelFolder,
        *,
        dim: int,
        tokens: Tokens,
        pixels: ImageProcessing,
        network: Any,
        precision: str,
        device: torch.device,
    ) -> None:
        self.name = folder.name
        self.modalities = {IMAGE: Input(side=pixels.side), TEXT: Input()}
        self.dims = dict.fromkeys((IMAGE, TEXT, JOINT), dim)
        self.precision = precision
        self.device = str(device)
        self.preprocessing = {"image": pixels.describe(), "text": tokens.describe()}
        self.fingerprint = folder.fingerprint(self.preprocessing)
        self._tokens, self._pixels, self._network = tokens, pixels, network
        self._device, self._dtype = device, PRECISIONS[precision]

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> uint8 (3, S, S), or (H, W, 3) where the model takes any
        size. A text stays as it is."""
        require_modality(self, modality)
        return self._pixels.preprocess(Image.fromarray(raw)) if modality == IMAGE else raw

    @torch.inference_mode()
    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows; texts are cut to the model's length."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        if modality == IMAGE:
            inputs = self._pixels.inputs(items, self._device, self._dtype)
            return Encoded(_rows(self._network.get_image_features(**inputs)))
        tokens = {name: value.to(self._device) for name, value in self._tokens(items).items()}
        return Encoded(_rows(self._network.get_text_features(**tokens)))

    def explain(
        self, pictures: Sequence[Array], texts: Sequence[str], method: str = DEFAULT
    ) -> list[Explanation]:
        """See the protocol `Explainer`."""
        mapper = HuggingFaceMapper(
            self._network, self._tokens, self._pixels, self._device, self._dtype
        )
        return explain(self, None, mapper, pictures, texts, method)


@dataclass(frozen=True)
class Tokens:
    """Texts -> token ids as the model was trained to see them."""

    tokenizer: Any
    padding: str
    length: int
    lower: bool

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """B texts -> input_ids (B, T) int64, and attention_mask where the tokenizer makes one."""
        made = self.tokenizer(
            [self._normal(text) for text in texts],
            padding=self.padding,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        return {name: made[name] for name in ("input_ids", "attention_mask") if name in made}

    def _normal(self, text: str) -> str:
        # Command lines and sloppy json carry lone surrogates, which no tokenizer takes.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return clean.lower() if self.lower else clean

    def places(self, texts: Sequence[str], *, cut: bool = True) -> list[list[tuple[int, int, int]]]:
        """Of each text's tokens without special ones: first and last character, and the place in
        the row. cut: only those that the model reads."""
        return [
            [(*_of(align(text, read, self._normal), start, end), at) for start, end, at in row]
            for text, read, row in zip(
                texts, map(self._normal, texts), self._offsets(texts, cut), strict=True
            )
        ]

    def _offsets(self, texts: Sequence[str], cut: bool) -> list[list[tuple[int, int, int]]]:
        """The same in the characters of `_normal`. A tokenizer that does not say them is asked how
        many tokens the text has up to the end of each word."""
        read = [self._normal(text) for text in texts]
        padding = self.padding if cut else "do_not_pad"
        settings = {"padding": padding, "truncation": cut, "max_length": self.length}
        settings |= {"verbose": False}  # it says that a text is too long, which the caller asks
        if self.tokenizer.is_fast:
            made = self.tokenizer(read, return_offsets_mapping=True, **settings)
            return [
                [(start, end, at) for at, (start, end) in enumerate(row) if end > start]
                for row in made["offset_mapping"]
            ]
        most = self.length - self.tokenizer.num_special_tokens_to_add() if cut else None
        return [self._counted(text)[:most] for text in read]

    def _counted(self, text: str) -> list[tuple[int, int, int]]:
        places: list[tuple[int, int, int]] = []
        for start, end in word_spans(text, ()):
            ids = self.tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"]
            places += [(start, end, at) for at in range(len(places), len(ids))]
        return places

    def describe(self) -> dict[str, Any]:
        return {
            "tokenizer": type(self.tokenizer).__name__,
            "max_length": self.length,
            "padding": self.padding,
            "lowercase": self.lower,
        }


def _of(spans: Sequence[Span], start: int, end: int) -> Span:
    """The characters of spans start to end."""
    return spans[start][0], spans[end - 1][1]


def _rows(features: Any) -> np.ndarray:
    """The projected vectors (B, D), made unit in float32 whatever the towers ran in."""
    return unit(features.pooler_output.float().cpu().numpy())


def _config(folder: ModelFolder) -> Any:
    with translating_load_errors(folder.title, "a config.json"):
        config = transformers.AutoConfig.from_pretrained(folder.path, **OURS_ALONE)
    if config.model_type not in KINDS:
        raise EncoderError(
            folder.title,
            expected="a model of type " + ", ".join(KINDS),
            found=f"type {config.model_type!r} in config.json",
            do=f"try st{folder.what.removeprefix('hf')} if it is a SentenceTransformer",
        )
    return config


def _tokens(folder: ModelFolder, config: Any, kind: Kind) -> Tokens:
    folder.require_one_of(TOKENIZERS, "tokenizer")
    with translating_load_errors(folder.title, "a tokenizer"):
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder.path, **OURS_ALONE)
    if len(tokenizer) > config.text_config.vocab_size:
        raise EncoderError(
            folder.title,
            expected=f"at most {config.text_config.vocab_size} tokens, as config.json says",
            found=f"a tokenizer of {len(tokenizer)}",
            do="check that all files are of one model",
        )
    return Tokens(
        tokenizer=tokenizer,
        padding=kind.padding,
        length=min(tokenizer.model_max_length, config.text_config.max_position_embeddings),
        # SigLIP2 learnt from lowercased texts. transformers lowercases for the type siglip2 alone;
        # checkpoints of fixed resolution, of type siglip, come with a plain Gemma tokenizer.
        lower=config.model_type == "siglip" and type(tokenizer).__name__.startswith("Gemma"),
    )


def _pixels(folder: ModelFolder, config: Any, kind: Kind) -> ImageProcessing:
    folder.require_one_of(PROCESSORS, "image processor")
    with translating_load_errors(folder.title, "an image processor"):
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", **OURS_ALONE
        )
    return kind.pixels.of(processor, config.vision_config, folder.title)


def load_network(folder: ModelFolder, name: str, dtype: torch.dtype) -> Any:
    """The network of a folder, for inference; name: its class of transformers. Raises EncoderError
    where it cannot be loaded, or lacks weights."""
    with translating_load_errors(folder.title, "weights"):
        network, report = getattr(transformers, name).from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise EncoderError(
            folder.title,
            expected=f"all weights of a {name}",
            found=f"{len(lacking)} missing, the first {lacking[0]}",
            do="check that all files are of one model",
        )
    return network.eval().requires_grad_(False)


def _dim(folder: ModelFolder, config: Any) -> int:
    """The width of the space that both towers project into."""
    if config.model_type == "clip":
        return config.projection_dim
    image, text = config.vision_config.hidden_size, config.text_config.projection_size
    if image != text:
        raise EncoderError(
            folder.title,
            expected="pictures and texts in one space",
            found=f"widths {image} and {text} in config.json",
        )
    return image
