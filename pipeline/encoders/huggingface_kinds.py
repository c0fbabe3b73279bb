"""Which models of transformers `hf:` takes, by `model_type` of config.json, and how; for every
other folder the line that says what it is and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.image_processing_backends import PilBackend
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from chiasm.pipeline.encoders.huggingface_texts import OURS_ALONE
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.cropped_processing import Tipsv2Pixels, square_processing
from chiasm.pipeline.pretrained.folder_kinds import SENTENCE_TRANSFORMER
from chiasm.pipeline.pretrained.hub import ModelFolder, capture_warnings
from chiasm.pipeline.pretrained.image_processing import ImageProcessing, PatchProcessing

BLIP_ITM = "BlipForImageTextRetrieval"
BLIP2_ITM = "Blip2ForImageTextRetrieval"
VIDEOS = ("timesformer", "videomae", "vivit", "vjepa2", "xclip")
BOTH_TOWERS = (
    "take a dual encoder of pictures and texts, such as hf:google/siglip2-base-patch16-224"
)
ONE_TOWER = "chiasm train two-tower joins one of pictures with one of texts"


def _projected(config: Any) -> tuple[int, int]:
    return config.projection_dim, config.projection_dim


def _siglip(config: Any) -> tuple[int, int]:
    return config.vision_config.hidden_size, config.text_config.projection_size


def _tipsv2(config: Any) -> tuple[int, int]:
    return config.vision_config.hidden_size, config.text_config.hidden_size


def _blip(config: Any) -> tuple[int, int]:
    return config.image_text_hidden_size, config.image_text_hidden_size


@dataclass(frozen=True)
class Kind:
    """What differs between model types.

    model: the class of transformers. padding: of texts. pixels: how pictures go in. length: where
    the model's own processor cuts texts, if that is before its last position. any_size: whether
    the image tower takes pictures of other sizes than config.json says. processor: its image
    processor, where transformers has none without torchvision. widths: of the vectors of pictures
    and of texts. text: the network's module that reads texts. attention: how it is computed, where
    not by transformers' choice. explains: whether its attention gives maps of patches and
    tokens."""

    model: str
    padding: str = "longest"
    pixels: Callable[[Any, Any, str], ImageProcessing] = square_processing
    length: int | None = None
    any_size: bool = False
    processor: type[PilBackend] | None = None
    widths: Callable[[Any], tuple[int, int]] = _projected
    text: str = "text_model"
    attention: Mapping[str, str] | None = None
    explains: bool = False


KINDS = {  # SigLIP2 of fixed resolution calls itself siglip.
    "clip": Kind("CLIPModel", explains=True),
    "siglip": Kind("SiglipModel", "max_length", widths=_siglip, explains=True),
    "siglip2": Kind(
        "Siglip2Model", "max_length", PatchProcessing.of, widths=_siglip, explains=True
    ),
    # Its text tower loses its causal mask in fused attention where a batch has no padding.
    "aimv2": Kind("Aimv2Model", attention={"text_config": "eager"}, explains=True),
    # 64 is what AlignProcessor pads to, and what it learnt from.
    "align": Kind("AlignModel", length=64, any_size=True),
    "altclip": Kind("AltCLIPModel", explains=True),
    "blip": Kind(BLIP_ITM, widths=_blip, text="text_encoder"),
    "chinese_clip": Kind("ChineseCLIPModel", explains=True),
    "clipseg": Kind("CLIPSegModel", any_size=True, explains=True),
    "flava": Kind("FlavaModel"),
    "groupvit": Kind("GroupViTModel"),
    "metaclip_2": Kind("MetaClip2Model", explains=True),
    "tipsv2": Kind(
        "Tipsv2Model", any_size=True, processor=Tipsv2Pixels, widths=_tipsv2, explains=True
    ),
    "vision-text-dual-encoder": Kind("VisionTextDualEncoderModel"),
}


# Models that score a text with a picture by reading both together.
MATCHERS = {"blip": KINDS["blip"], "blip-2": Kind(BLIP2_ITM, text="embeddings")}


def read_config(folder: ModelFolder) -> Any:
    """The configuration of an encoder; EncoderError for a folder that is none, in one line that
    says what it is."""
    _require(folder, KINDS, "a dual encoder of pictures and texts, of type " + ", ".join(KINDS))
    return load_config(folder)


def read_matcher_config(folder: ModelFolder) -> Any:
    """The same of a matcher, or of an encoder."""
    _require(folder, KINDS | MATCHERS, f"a matcher: {BLIP_ITM} or {BLIP2_ITM}")
    return load_config(folder)


def _require(folder: ModelFolder, kinds: Mapping[str, Kind], expected: str) -> None:
    """EncoderError for a folder of none of these kinds, and for a BLIP that does not match."""
    raw = folder.config()
    kind, networks = _names(raw)
    matches = MATCHERS.get(kind)
    if kind in kinds and (matches is None or not networks or matches.model in networks):
        return
    found, do = _other(folder, raw)
    raise EncoderError(folder.title, expected=expected, found=found, do=do)


def _names(raw: dict[str, Any]) -> tuple[str, list[str]]:
    """`model_type` and `architectures` of config.json, "" and [] where it has none."""
    kind, networks = raw.get("model_type"), raw.get("architectures")
    named = [str(name) for name in networks] if isinstance(networks, list) else []
    return kind if isinstance(kind, str) else "", named


def load_config(folder: ModelFolder) -> Any:
    """The configuration as transformers reads it; EncoderError for one that it does not take, and
    for a model with code of its own."""
    raw = folder.config()
    kind, _ = _names(raw)
    if kind not in CONFIG_MAPPING_NAMES:
        found, do = _unknown(raw)
        raise EncoderError(folder.title, expected="a model of transformers", found=found, do=do)
    try:
        with capture_warnings():
            return transformers.AutoConfig.from_pretrained(folder.path, **OURS_ALONE)
    except Exception as error:  # its classes check their fields, each in its own way
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EncoderError(
            folder.title,
            expected="a config.json that can be loaded",
            found=f"a value that transformers refuses: {lines[-1][:200] if lines else kind}",
            do="fetch that file again, or set back what was changed in it",
        ) from error


def width(folder: ModelFolder, config: Any) -> int:
    """The width of the space that both towers project into."""
    image, text = KINDS[config.model_type].widths(config)
    if not isinstance(image, int) or image < 1:
        raise EncoderError(
            folder.title,
            expected="a width of vectors above 0 in config.json",
            found=str(image),
            do="fetch that file again, or set back what was changed in it",
        )
    if image != text:
        raise EncoderError(
            folder.title,
            expected="pictures and texts in one space",
            found=f"widths {image} and {text} in config.json",
        )
    return image


def _other(folder: ModelFolder, raw: dict[str, Any]) -> tuple[str, str]:
    """What a folder is that is no dual encoder, and what reads it."""
    (kind, networks), model = _names(raw), folder.what.partition(":")[2]
    if (folder.path / "modules.json").is_file():
        return SENTENCE_TRANSFORMER, f"take st:{model}"
    if BLIP2_ITM in networks:
        return (
            "a BLIP-2 for retrieval, which gives a picture many vectors and matches",
            f"take it as a matcher: --rerank hf:{model}:20, chiasm match or filter",
        )
    if kind in VIDEOS:
        return f"a model of videos (type {kind!r})", BOTH_TOWERS
    if kind not in CONFIG_MAPPING_NAMES or raw.get("auto_map"):
        return _unknown(raw)
    named = f"type {kind!r}, architecture {networks[0] if networks else 'none'}"
    if kind.startswith(("blip", "vilt")) or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return (
            f"a model that answers ({named})",
            f"chiasm caption or ask --model hf:{model} takes those that caption or answer",
        )
    pictures = kind in IMAGE_PROCESSOR_MAPPING_NAMES or "vision" in kind
    texts = kind in TOKENIZER_MAPPING_NAMES or "text" in kind
    if kind in FEATURE_EXTRACTOR_MAPPING_NAMES and not pictures:
        return f"a model of sound ({named})", BOTH_TOWERS
    if texts and not pictures:
        return (
            f"a model of texts alone ({named})",
            f"st:{model} if it is a SentenceTransformer; {ONE_TOWER}",
        )
    if pictures and not texts:
        return f"a model of pictures alone ({named})", ONE_TOWER
    return f"{named}, which is not read here", BOTH_TOWERS


def _unknown(raw: dict[str, Any]) -> tuple[str, str]:
    """The same of a model that transformers itself does not have."""
    kind, _ = _names(raw)
    if raw.get("auto_map"):
        found = f"type {kind!r}, which needs code of its own, which is never run here"
        return found, "take a model that transformers has itself"
    if not kind:
        return "a config.json without model_type", "name a folder that save_pretrained made"
    return (
        f"type {kind!r}, which transformers {transformers.__version__} does not have",
        "take another model, or an environment with a newer transformers",
    )
