"""A model's name -> the folder of its files, and their fingerprint.

A name is a local folder, or a Hugging Face id (`owner/name`, or `owner/name@revision` for a commit,
a branch or `refs/pr/N`), whose files are downloaded once into the hub's own cache. Weights are read
from safetensors only: nothing is unpickled, so a model with only a .bin file is refused. The
fingerprint reads every byte of the weights each time a model is loaded, at 1 to 2 GB/s a core:
slower than comparing names and dates, and the same for any copy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from chiasm.pipeline.errors import ChiasmError, EncoderError
from chiasm.pipeline.pretrained import mend_model
from chiasm.pipeline.pretrained.folder_kinds import (
    ADAPTER,
    OPEN_CLIP,
    read_json_object,
    refuse_other_kinds,
)

# The files of a model besides its weights. Model cards and training leftovers do not belong to it:
# vectors do not depend on them.
CONFIG_FILES = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "chat_template.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "router_config.json",
)
# What a model that generates says of its end of text and of penalties. Vectors do not depend on it.
GENERATION_FILE = "generation_config.json"
OTHER_RUNTIMES = ("onnx", "openvino")  # folders with the same model for other runtimes
HASH_BLOCK = 16 << 20  # bytes that a thread reads and hashes at a time, to bound memory


@dataclass(frozen=True)
class ModelFolder:
    """The files of one model.

    name: finds the model again from any working directory. what: the name as it was given; title:
    the same for messages, with what the model is used as. weights: a glob. nested: whether
    subfolders contain parts of the model too."""

    name: str
    what: str
    title: str
    path: Path
    weights: str
    nested: bool

    def files(self, pattern: str) -> list[Path]:
        """Matching files, sorted by path."""
        found = self.path.rglob(pattern) if self.nested else self.path.glob(pattern)
        return sorted(
            path
            for path in found
            if path.is_file() and not set(OTHER_RUNTIMES) & set(path.relative_to(self.path).parts)
        )

    def config(self) -> dict[str, Any]:
        """config.json as it lies there; EncoderError where it is no JSON object."""
        return read_json_object(self.path / "config.json", self.title)

    def require_weights(self) -> None:
        """Raise EncoderError where there are no safetensors, or a part has pickled weights only."""
        with_weights = {path.parent for path in self.files(self.weights)}
        pickled = [
            path for path in self.files("pytorch_model*.bin") if path.parent not in with_weights
        ]
        if not with_weights or pickled:
            names = ", ".join(str(path.relative_to(self.path)) for path in pickled[:3])
            raise EncoderError(
                self.title,
                expected=f"weights as {self.weights}",
                found=f"{names} alone, a pickle, which is never read here" if names else "none",
                do="take a revision that has them (ID@refs/pr/N), or save them by save_pretrained",
            )

    def require_one_of(self, names: Sequence[str], role: str) -> None:
        """Raise EncoderError where none of the files exists: transformers would use a default."""
        if not any(self.files(name) for name in names):
            raise EncoderError(
                self.title,
                expected=f"its {role} ({' or '.join(names)})",
                found=f"none in {self.path}",
                do="copy it beside the weights",
            )

    def fingerprint(self, preprocessing: dict[str, Any], more: Sequence[str] = ()) -> str:
        """32 hex digits: blake2b over weights, tokenizer, configuration and `preprocessing`. Equal
        for any copy of the folder, different when a byte differs. more: names of other files that
        belong to it."""
        return self.fingerprints([preprocessing], more)[0]

    def fingerprints(
        self, preprocessings: Sequence[dict[str, Any]], more: Sequence[str] = ()
    ) -> list[str]:
        """That of each, by reading the files once."""
        names = (self.weights, *CONFIG_FILES, *more)
        paths = [path for name in names for path in self.files(name)]
        blocks = [
            (path, offset) for path in paths for offset in range(0, path.stat().st_size, HASH_BLOCK)
        ]
        digests = [
            hashlib.blake2b(json.dumps(one, sort_keys=True).encode(), digest_size=16)
            for one in preprocessings
        ]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for (path, offset), part in zip(blocks, pool.map(_digest, blocks), strict=True):
                name = f"\n{path.relative_to(self.path).as_posix()} {offset} ".encode()
                for digest in digests:
                    digest.update(name + part)
        return [digest.hexdigest() for digest in digests]


def _digest(block: tuple[Path, int]) -> bytes:
    path, offset = block
    with path.open("rb") as file:
        file.seek(offset)
        # CPUs have instructions for sha256: 1.75 GB/s a core where measured, blake2b 0.72.
        return hashlib.sha256(file.read(HASH_BLOCK)).digest()


def find_model(
    family: str, model: str, weights: str, nested: bool = False, use: str = "encoder"
) -> ModelFolder:
    """The folder of `family:model`; use: what it is called in messages; see ModelFolder for the
    other arguments.

    Raises EncoderError where there is no such folder or id, where the hub does not answer and its
    cache has no copy, and where configuration or weights are missing.
    """
    what = name = f"{family}:{model}"
    path = Path(os.path.expanduser(model))
    title = f"{use} {what}"
    if not model:
        raise EncoderError(title, expected="a folder or an id after the colon")
    if path.is_dir():
        path = path.resolve()
        name = f"{family}:{path}"
    elif path.exists() or model.startswith(("/", ".", "~")):
        found = "a file" if path.exists() else "no such folder"
        raise EncoderError(title, expected="a model folder", found=found, do="check the path")
    else:
        path = from_hub(model, title, weights)
    refuse_other_kinds(path, title, family, model, weights)
    if not any((path / name).is_file() for name in ("config.json", "modules.json")):
        raise EncoderError(
            title,
            expected="a model folder with config.json",
            found=", ".join(sorted(os.listdir(path))[:5]) or "an empty folder",
            do="name the folder that save_pretrained or a download filled",
        )
    folder = ModelFolder(name, what, title, path, weights, nested)
    folder.require_weights()
    return folder


def from_hub(model: str, title: str, weights: str, more: Sequence[str] = ()) -> Path:
    """The local copy of an id, fetched where it is not there yet: weights and configuration, and
    files named in `more`. Raises EncoderError where that cannot be had."""
    name, _, revision = model.partition("@")
    wanted = [
        weights,
        f"{weights}.index.json",
        *CONFIG_FILES,
        *more,
        GENERATION_FILE,
        OPEN_CLIP,
        ADAPTER,
        *(f"*/{part}" for part in CONFIG_FILES),
    ]
    try:
        with capture_warnings():
            fetched = huggingface_hub.snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=wanted,
                ignore_patterns=[f"*{foreign}/*" for foreign in OTHER_RUNTIMES],
            )
            return Path(fetched)
    except errors.HFValidationError:
        found, do = "neither", "check the spelling; an id reads owner/name"
    except errors.GatedRepoError:
        found, do = "a model behind a licence", "accept it on huggingface.co, then: hf auth login"
    except errors.RevisionNotFoundError:
        found, do = f"no revision {revision!r} of it", "check what follows the @"
    except errors.RepositoryNotFoundError:
        found, do = "no such folder and no public model of this id", "check the spelling"
    except errors.LocalEntryNotFoundError:
        found = "no such folder, no answer from huggingface.co and no copy in its local cache"
        do = "check the spelling and the network, or name the folder of a download"
    except OSError as error:
        found, do = f"no such folder, and from the hub: {first_sentence(error)}", "try again later"
    raise EncoderError(title, expected="a model folder or a Hugging Face id", found=found, do=do)


@contextmanager
def translating_load_errors(
    title: str, role: str, files: Sequence[Path] = ()
) -> Iterator[list[str]]:
    """A context for loading one part of a model, `role` of `title`: whatever the libraries raise
    becomes an EncoderError. files: the JSON that describes the part, where it is there; it is
    looked at if loading fails. Yields the list that collects the warnings that they would have
    printed."""
    try:
        with capture_warnings() as warnings:
            yield warnings
    except ChiasmError:
        raise
    # transformers, tokenizers and safetensors raise any exception, bare Exception included.
    except Exception as error:
        found = f"{type(error).__name__}: {first_sentence(error)}"
        do = mend_model(str(error))
        own_code = [
            path.name
            for path in files
            if path.is_file() and read_json_object(path, title).get("auto_map")
        ]
        if own_code:
            found = f"{own_code[0]} of a model with code of its own, which is never run here"
            do = "take a model that transformers has itself"
        elif isinstance(error, ImportError):
            do = "install what it needs"
        elif isinstance(error, SafetensorError):
            found, do = "a safetensors file that is cut or damaged", "fetch it again"
        raise EncoderError(
            title, expected=f"{role} that can be loaded", found=found, do=do
        ) from error


def require_shapes(title: str, report: dict[str, Any]) -> None:
    """EncoderError where weights are of another shape than config.json says. report: what
    `from_pretrained` says of a load with `ignore_mismatched_sizes`, which fills such weights with
    random numbers."""
    for weight, found, wanted in sorted(report["mismatched_keys"]):
        raise EncoderError(
            title,
            expected=f"{weight} of shape {tuple(wanted)}, as config.json says",
            found=f"{tuple(found)} in the weights",
            do="check that all files are of one model",
        )


def first_sentence(error: BaseException) -> str:
    """The first sentence of a library's long message, at most 200 characters of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:200] if lines else type(error).__name__


class _ListHandler(logging.Handler):
    """Appends messages to a list."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """A context without progress bars and warnings of the model libraries on the terminal; yields
    the list that collects the warnings."""
    bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    handler = _ListHandler()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.handlers, logger.propagate = list[logging.Handler]([handler]), False
        logger.setLevel(logging.WARNING)
    try:
        yield handler.messages
    finally:
        for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
