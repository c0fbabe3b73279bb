"""A shard and the captions that a model gave its pictures -> the same shard with these added.

A caption goes into a `txt` where the sample has no caption, and in every case into its json, under
a key that names the language: `generated_caption_en`. Nothing that is there is overwritten. All
else is kept as it is, byte by byte. The tar's first header names the edition of the answers, which
says whether it is done.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from typing import Any

from chiasm.pipeline.answers.files import AnswersFooter, read_answers
from chiasm.pipeline.collection import storable
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped
from chiasm.pipeline.shards import (
    Members,
    ReadSettings,
    SampleBuilder,
    json_bytes,
    json_object,
    member_groups,
    split_member_name,
    with_values,
    writing_copy,
)
from chiasm.pipeline.storage import Folder, display_name

LOG = logging.getLogger(__name__)


def shard_copy_name(shard_id: str) -> str:
    """The name of the shard with its captions, below the folder of the answers."""
    return f"shards/{shard_id}.tar"


def has_captions(folder: Folder, footer: AnswersFooter) -> bool:
    """Whether the shard with these captions is there."""
    name = shard_copy_name(footer.source.id)
    if not folder.exists(name):
        return False
    with folder.open_stream(name) as file:
        target: Any = file
        try:
            with tarfile.open(fileobj=target, mode="r|") as tar:
                return tar.pax_headers.get("comment") == _comment(footer)
        except tarfile.TarError:
            return False  # of somebody else: it is written anew


def add_captions(footer: AnswersFooter, read: ReadSettings, folder: Folder, run_id: str) -> None:
    """Write the shard with its captions. In memory is one sample.

    footer: of the answers, made by `caption`. A shard that is cut or damaged gives what was read of
    it. Raises SourceError where it is not the one that was asked about, or has a member larger than
    `read.max_member_bytes`: nothing is left out unseen."""
    shard, damage = footer.source, list[Dropped]()
    answers = _captions(footer, folder)
    following = next(answers, None)
    with writing_copy(folder, shard_copy_name(shard.id), run_id, _comment(footer)) as add:
        for sample, members, oversized in member_groups(shard, read, damage):
            if oversized:
                raise SourceError(
                    f"{display_name(shard.url)}, sample {sample.key if sample else ''}".rstrip(),
                    expected=f"members of at most {read.max_member_bytes:,} bytes, to copy them",
                    found=f"{oversized} larger",
                    do="give another --to and --set read.max_member_bytes=N, or no --shards",
                )
            if following and sample is not None and storable(sample.key) == following[0]:
                members, following = (
                    _with_caption(sample, members, footer, following[1]),
                    next(answers, None),
                )
            add(members)
        if following is not None:
            raise SourceError(
                display_name(shard.url),
                expected=f"sample {following[0]}, in the order of the answers",
                found="none",
                do="give another --to",
            )
    LOG.info("wrote %s with captions", display_name(shard.url), extra={"shard": shard.id})


def _comment(footer: AnswersFooter) -> str:
    return f"chiasm captions {footer.edition}"


def _captions(footer: AnswersFooter, folder: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key, and what json says of its caption, of each sample that has a new one."""
    columns = ["key", "answer", "confidence"]
    for row in read_answers(folder, footer.source.id, columns):
        if row["answer"] is not None:
            value = {
                "text": row["answer"],
                "model": footer.model,
                "fingerprint": footer.fingerprint,
            }
            yield row["key"], value | {"confidence": row["confidence"]}


def _with_caption(
    sample: SampleBuilder, members: Members, footer: AnswersFooter, value: dict[str, Any]
) -> Members:
    """The members of a sample with its new caption."""
    key, caption = f"generated_caption_{footer.language}", value["text"].encode()
    has_json = "json" in sample.extensions
    written = False
    out: Members = []
    for name, data in members:
        extension = (split_member_name(name) or ("", ""))[1]
        if extension == "txt" and not sample.captions and not data.strip():
            data, written = caption, True
        elif extension == "json":
            table = json_object(data)
            if table is not None and key not in table:
                data = with_values(data, {key: value})
        out.append((name, data))
    if not sample.captions and not written and "txt" not in sample.extensions:
        out.append((_member_name(sample, members, "caption", "txt"), caption))
    if not has_json:
        name = _member_name(sample, members, "metadata", "json")
        out.append((name, json_bytes({key: value})))
    return out


def _member_name(sample: SampleBuilder, members: Members, base: str, extension: str) -> str:
    """The name of a new member of the sample: beside the first one, or, of a folder that is a
    sample, `base` in it."""
    first = members[0][0]
    if first.startswith(f"{sample.key}/"):
        return f"{sample.key}/{base}.{extension}"
    return f"{first[: first.index('.', len(sample.key))]}.{extension}"
