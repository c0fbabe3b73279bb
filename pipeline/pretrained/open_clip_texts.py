"""Texts -> token ids, by the tokenizer that a model of open_clip names.

Cleaning, special tokens, truncation and padding to the full context are open_clip's own. It cuts in
silence; here the tokens that were cut off are counted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.hub import ModelFolder, translating_load_errors

CONTEXT = 77  # tokens, where a configuration does not say: open_clip's default
TOKENIZERS = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"),
    "sentencepiece.bpe.model",
)
# What a configuration may say to its tokenizer. Other words of it are of trainings (tokens drawn by
# chance), or would have files read and code run that are not of the model's folder.
SETTINGS = {"clean", "strip_sep_token", "language", "additional_special_tokens"}
MODES = (None, "", "clips")
# Set explicitly, because transformers asks at the terminal where it is left open.
OURS_ALONE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


class OpenClipTexts:
    """The tokenizer of a model. length: tokens that it sees of a text, special ones among them."""

    def __init__(self, tokenizer: Any, length: int, name: str, settings: Mapping[str, Any]) -> None:
        self.length = length
        self._tokenizer, self._name, self._settings = tokenizer, name, settings
        # Of transformers. A copy counts, which never truncates: lanes that share one tokenizer must
        # not change whether it does.
        self._counting = copy.deepcopy(getattr(tokenizer, "tokenizer", None))
        self._clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"

    @classmethod
    def of(cls, library: Any, folder: ModelFolder, text: Mapping[str, Any]) -> OpenClipTexts:
        """library: open_clip; text: its `text_cfg`. EncoderError where the tokenizer is not in the
        folder, or is to be used in a way that is not known here."""
        settings, mode = text.get("tokenizer_kwargs") or {}, text.get("tokenizer_mode")
        if unknown := sorted(set(settings) - SETTINGS):
            raise EncoderError(
                folder.title,
                expected="tokenizer_kwargs of " + ", ".join(sorted(SETTINGS)),
                found=unknown[0],
            )
        if mode not in MODES:
            raise EncoderError(
                folder.title, expected="tokenizer_mode clips, or none", found=repr(mode)
            )
        length = text.get("context_length") or CONTEXT
        named = text.get("hf_tokenizer_name")
        if named:
            folder.require_one_of(TOKENIZERS, f"tokenizer {named}")
        with translating_load_errors(folder.title, "a tokenizer"):
            if not named:
                made = library.SimpleTokenizer(context_length=length, **settings)
                return cls(made, length, "SimpleTokenizer", settings)
            made = library.tokenizer.HFTokenizer(
                str(folder.path),
                context_length=length,
                tokenizer_mode=mode,
                **{**settings, **OURS_ALONE},
            )
        if made.tokenizer.pad_token_id is None:
            raise EncoderError(
                folder.title,
                expected="a tokenizer with a padding token",
                found=f"a {type(made.tokenizer).__name__} without",
                do='name it as "pad_token" in tokenizer_config.json',
            )
        said = {**settings, **({"mode": mode} if mode else {})}
        return cls(made, length, type(made.tokenizer).__name__, said)

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, np.ndarray]:
        """B texts -> ids (B, length) int64, and how many tokens of each were cut off (B,) int64."""
        # Command lines and sloppy json carry lone surrogates, which no tokenizer takes.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = self._tokenizer(clean)
        whole = self._counts(clean, ids)
        return ids, np.maximum(np.array(whole, dtype=np.int64) - self.length, 0)

    def _counts(self, texts: Sequence[str], ids: torch.Tensor) -> list[int]:
        """Tokens of each whole text, special ones among them."""
        if self._counting is None:  # slow: asked only where its last place is not padding
            full = (ids[:, -1] == self._tokenizer.eot_token_id).tolist()
            encode = self._tokenizer.encode
            return [
                len(encode(text)) + 2 if it else 0 for text, it in zip(texts, full, strict=True)
            ]
        read = [self._tokenizer.clean_fn(text) for text in texts]
        # In the mode `clips` three special tokens are put beside those of the text.
        made = self._counting(read, add_special_tokens=not self._clips, verbose=False)["input_ids"]
        return [len(row) + (3 if self._clips else 0) for row in made]

    def describe(self) -> dict[str, Any]:
        """All parameters, for the fingerprint and the collection's identity."""
        return {"tokenizer": self._name, "max_length": self.length, **self._settings}
