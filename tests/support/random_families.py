"""Model folders of further families in the real formats, tiny, with random weights: dual encoders
other than CLIP and SigLIP, and models that match. `random_models.py` says what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from random_models import (
    WORDS,
    _clip_tokenizer,
    _save,
    _vocabulary,
    clip_folder,
    naflex_folder,
    siglip_folder,
)

from chiasm.pipeline.pretrained.hub import capture_warnings

SIDE, WIDTH = 32, 24
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EIGHT = {"patch_size": 8}
# Some of transformers start at 1e-10, with which no picture would matter.
VISION = {**TOWER, **EIGHT, "image_size": SIDE, "initializer_range": 0.02}
CHINESE = "红色的船大小猫狗"


@capture_warnings()
def chinese_clip_folder(folder: Path, seed: int = 0) -> Path:
    """A Chinese-CLIP: BERT's tokenizer and text tower, pictures squeezed to a square."""
    tokenizer = _bert_tokenizer()
    config = transformers.ChineseCLIPConfig(
        text_config={**_text(tokenizer), "max_position_embeddings": 52},
        vision_config=VISION,
        projection_dim=WIDTH,
    )
    pixels = transformers.ChineseCLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False
    )
    return _save(folder, transformers.ChineseCLIPModel, config, seed, tokenizer, pixels)


@capture_warnings()
def altclip_folder(folder: Path, seed: int = 0) -> Path:
    """An AltCLIP: the text tower of XLM-RoBERTa, whose positions begin behind the padding token's,
    and a tokenizer that states no limit."""
    tokenizer = _roberta_tokenizer()
    config = transformers.AltCLIPConfig(
        text_config={**_text(tokenizer), "max_position_embeddings": 42, "project_dim": 20},
        vision_config=VISION,
        projection_dim=WIDTH,
    )
    return _save(folder, transformers.AltCLIPModel, config, seed, tokenizer, _clip_pixels())


@capture_warnings()
def metaclip2_folder(folder: Path, seed: int = 0) -> Path:
    """A MetaCLIP 2: CLIP's towers and a tokenizer of many languages."""
    tokenizer = _roberta_tokenizer()
    config = transformers.MetaClip2Config(
        text_config={**_text(tokenizer), "max_position_embeddings": 77},
        vision_config=VISION,
        projection_dim=WIDTH,
    )
    return _save(folder, transformers.MetaClip2Model, config, seed, tokenizer, _clip_pixels())


@capture_warnings()
def clipseg_folder(folder: Path, seed: int = 0) -> Path:
    """A CLIPSeg as it is published: with its decoder, and pictures larger than its towers' own."""
    tokenizer = _clip_tokenizer()
    config = transformers.CLIPSegConfig(
        text_config=_text(tokenizer),
        vision_config=VISION,
        projection_dim=WIDTH,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    pixels = transformers.ViTImageProcessorPil(size={"height": SIDE + 16, "width": SIDE + 16})
    return _save(folder, transformers.CLIPSegForImageSegmentation, config, seed, tokenizer, pixels)


@capture_warnings()
def aimv2_folder(folder: Path, seed: int = 0) -> Path:
    """An AIMv2 with the text tower of its LiT training."""
    tokenizer = _clip_tokenizer()
    config = transformers.Aimv2Config(
        text_config=_text(tokenizer), vision_config=VISION, projection_dim=WIDTH
    )
    return _save(folder, transformers.Aimv2Model, config, seed, tokenizer, _clip_pixels())


@capture_warnings()
def groupvit_folder(folder: Path, seed: int = 0) -> Path:
    """A GroupViT: patches gathered in groups."""
    tokenizer = _clip_tokenizer()
    config = transformers.GroupViTConfig(
        text_config=_text(tokenizer),
        vision_config={
            **VISION,
            "depths": [1, 1, 1],
            "num_group_tokens": [4, 2, 0],
            "num_output_groups": [4, 2, 0],
        },
        projection_dim=WIDTH,
        projection_intermediate_dim=32,
    )
    return _save(folder, transformers.GroupViTModel, config, seed, tokenizer, _clip_pixels())


@capture_warnings()
def align_folder(folder: Path, seed: int = 0) -> Path:
    """An ALIGN: an EfficientNet, whose pictures are squeezed, cropped and scaled to [-1, 1], and a
    BERT. config.json tells of another size of pictures, as the published one does."""
    tokenizer = _bert_tokenizer()
    config = transformers.AlignConfig(
        text_config={**_text(tokenizer), "max_position_embeddings": 128},
        vision_config={
            "image_size": 2 * SIDE,
            "hidden_dim": 64,
            "width_coefficient": 0.2,
            "depth_coefficient": 0.2,
            "initializer_range": 0.3,  # its own leaves nothing of a picture
        },
        projection_dim=64,  # the channels of its last block
    )
    pixels = transformers.EfficientNetImageProcessorPil(
        size={"height": SIDE + 7, "width": SIDE + 7},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=True,
        do_normalize=False,
        include_top=False,
        rescale_offset=True,
        rescale_factor=1 / 127.5,
        resample=2,
    )
    return _save(folder, transformers.AlignModel, config, seed, tokenizer, pixels)


@capture_warnings()
def tipsv2_folder(folder: Path, seed: int = 0) -> Path:
    """A TIPSv2, whose own image processor needs torchvision: its file is written as that would."""
    tokenizer = _tipsv2_tokenizer()
    config = transformers.Tipsv2Config(
        text_config={**_text(tokenizer), "max_position_embeddings": 64},
        vision_config={
            "hidden_size": TOWER["hidden_size"],
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
        },
    )
    pixels = transformers.ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_normalize=False, resample=2
    )
    _save(folder, transformers.Tipsv2Model, config, seed, tokenizer, pixels)
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("ViTImageProcessor", "Tipsv2ImageProcessor"))
    return folder


@capture_warnings()
def dual_encoder_folder(folder: Path, seed: int = 0) -> Path:
    """A VisionTextDualEncoder of a ViT and a RoBERTa."""
    tokenizer = _roberta_tokenizer()
    text: Any = {**_text(tokenizer), "max_position_embeddings": 42, "type_vocab_size": 1}
    vision: Any = VISION
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**vision), transformers.RobertaConfig(**text), projection_dim=WIDTH
    )
    pixels = transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    model: Any = transformers.VisionTextDualEncoderModel
    return _save(folder, lambda c: model(config=c), config, seed, tokenizer, pixels)


@capture_warnings()
def flava_folder(folder: Path, seed: int = 0) -> Path:
    """A FLAVA, whose features are those of all tokens."""
    tokenizer = _bert_tokenizer()
    config = transformers.FlavaConfig(
        text_config={**_text(tokenizer), "max_position_embeddings": 77},
        image_config=VISION,
        multimodal_config=TOWER,
        hidden_size=TOWER["hidden_size"],
        projection_dim=WIDTH,
    )
    square = {"height": SIDE, "width": SIDE}
    pixels = transformers.FlavaImageProcessorPil(size=square, crop_size=square)
    return _save(folder, transformers.FlavaModel, config, seed, tokenizer, pixels)


@capture_warnings()
def blip_itm_folder(folder: Path, seed: int = 0) -> Path:
    """A BLIP for retrieval: two towers, and a head that matches."""
    tokenizer = _bert_tokenizer()
    config = transformers.BlipConfig(
        text_config={
            **_text(tokenizer),
            "encoder_hidden_size": TOWER["hidden_size"],
            "max_position_embeddings": 40,
            "bos_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
        },
        vision_config=VISION,
        projection_dim=WIDTH,
        image_text_hidden_size=WIDTH,
    )
    return _save(
        folder, transformers.BlipForImageTextRetrieval, config, seed, tokenizer, _blip_pixels()
    )


@capture_warnings()
def blip2_itm_folder(folder: Path, seed: int = 0) -> Path:
    """A BLIP-2 for retrieval: its Q-Former reads queries and words together."""
    tokenizer = _bert_tokenizer()
    config = transformers.Blip2Config(
        vision_config={**VISION, "initializer_range": 0.2},
        qformer_config={
            **TOWER,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": TOWER["hidden_size"],
            "max_position_embeddings": 40,
            "use_qformer_text_input": True,
            "initializer_range": 0.2,
        },
        text_config={
            "model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 32,
            "num_attention_heads": 2, "vocab_size": len(tokenizer), "word_embed_proj_dim": 32,
        },
        num_query_tokens=4,
        image_text_hidden_size=WIDTH,
    )  # fmt: skip
    return _save(
        folder, transformers.Blip2ForImageTextRetrieval, config, seed, tokenizer, _blip_pixels()
    )


ENCODERS: dict[str, Callable[[Path], Path]] = {
    "clip": lambda at: clip_folder(at, side=SIDE, short=36, width=WIDTH, tower=TOWER, vision=EIGHT),
    "siglip": lambda at: siglip_folder(at, side=SIDE, tower=TOWER, vision=EIGHT),
    "siglip2": lambda at: siglip_folder(at, side=SIDE, tower=TOWER, vision=EIGHT, gemma=True),
    "naflex": lambda at: naflex_folder(at, patch=8, patches=16, tower=TOWER),
    "chinese-clip": chinese_clip_folder,
    "altclip": altclip_folder,
    "metaclip-2": metaclip2_folder,
    "clipseg": clipseg_folder,
    "aimv2": aimv2_folder,
    "groupvit": groupvit_folder,
    "align": align_folder,
    "tipsv2": tipsv2_folder,
    "dual-encoder": dual_encoder_folder,
    "flava": flava_folder,
    "blip-itm": blip_itm_folder,
}
MATCHERS: dict[str, Callable[[Path], Path]] = {
    "blip-itm": blip_itm_folder,
    "blip2-itm": blip2_itm_folder,
}


def _text(tokenizer: Any) -> dict[str, Any]:
    # BERT's own range leaves texts within 1e-5 of one another.
    return {**TOWER, **_vocabulary(tokenizer), "initializer_range": 0.2}


def _clip_pixels() -> Any:
    return transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE + 4}, crop_size={"height": SIDE, "width": SIDE}
    )


def _blip_pixels() -> Any:
    return transformers.BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def _bert_tokenizer() -> Any:
    """BERT's word pieces: WORDS, letters and some Chinese signs."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789!,."
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *CHINESE, *letters]
    pieces = dict.fromkeys([*pieces, *(f"##{letter}" for letter in letters)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=512)


def _roberta_tokenizer() -> Any:
    """XLM-RoBERTa's unigrams, `<s>` and `</s>` around a text."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789!,." + CHINESE
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [("▁", -4.0), *((letter, -6.0) for letter in letters)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    return transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])


def _tipsv2_tokenizer() -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789▁"
    pieces = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.Tipsv2Tokenizer(vocab=vocabulary, merges=[])
