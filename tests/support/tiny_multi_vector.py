"""Multi-vector models of a few thousand random weights, for tests: one in the library's own form,
and a ColPali in transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import MultiVectorEncoder
from tiny_llava import TOWER, llava_folder
from tokenizers import Tokenizer, models, pre_tokenizers

from chiasm.pipeline.pretrained.hub import capture_warnings


def multi_vector_folder(folder: Path, prompts: dict[str, str] | None = None) -> Path:
    """A MultiVectorEncoder over a Llava, with tokens of 128 numbers."""
    llava = llava_folder(folder / "llava", transformers.LlavaModel)
    saved = folder / "multi-vector"
    torch.manual_seed(1)
    with capture_warnings():
        network = MultiVectorEncoder(str(llava), device="cpu", prompts=prompts)
        network.save_pretrained(str(saved), create_model_card=False)
    return saved


def colpali_folder(folder: Path) -> Path:
    """A ColPali as transformers saves it, with tokens of 16 numbers, 4 of them a picture."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=512,
    )
    pictures: Any = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures.image_seq_length = 4
    processor = transformers.ColPaliProcessor(pictures, tokenizer)
    vision = transformers.SiglipVisionConfig(
        image_size=32, patch_size=16, vision_use_head=False, **TOWER
    )
    text = transformers.GemmaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, pad_token_id=0, **TOWER
    )
    paligemma = transformers.PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        projection_dim=TOWER["hidden_size"],
        hidden_size=TOWER["hidden_size"],
    )
    config = transformers.ColPaliConfig(vlm_config=paligemma, embedding_dim=16)
    torch.manual_seed(2)
    with capture_warnings():
        transformers.ColPaliForRetrieval(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
