"""A shard -> its samples in tar order, what was dropped, and notes.

Members are grouped as webdataset groups them: consecutive members with the same key are a sample.
In memory are only the sample in progress (of it the picture in use, other members that the encoder
takes, `txt` and `json`), and 8 bytes for each key, to recognise late members. Every group becomes
exactly one `Sample` or `Dropped`; the `Note`s of a sample follow it. A truncated tar ends with one
`Dropped`, wherever it was cut: the sample in progress or, where that looks complete, the one that
must have come after it. The cost: a tar without an end mark counts one loss even if it lost
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import IMAGE, TEXT, Dropped, Note, Sample, Shard
from chiasm.pipeline.shards.members import split_member_name
from chiasm.pipeline.shards.read_settings import ReadSettings
from chiasm.pipeline.shards.sample_builder import CappedNotes, SampleBuilder
from chiasm.pipeline.shards.seen_keys import SeenKeys
from chiasm.pipeline.shards.tar import Damaged, Tar
from chiasm.pipeline.storage import display_name

DROP_REASONS = {  # every reason of stage "read", and its description
    "truncated": "the shard ends inside this sample",
    "damaged": "the shard cannot be read on from here",
    "bomb": "the shard unpacks to more than 500 times its bytes, and is not read on from here",
    "extension": "its only picture has an extension that is not read",
    "member_too_large": "its picture, or all it has, is larger than read.max_member_bytes",
    "no_file": "its picture, or all it has, is no regular file: a link, a device, a pipe",
    "empty": "neither a picture nor a caption, nor anything else that the encoder takes",
}
NOTE_REASONS = {
    "late_member": "a member of a sample that was closed already; the first group stands",
    "duplicate_member": "a second member with the same key and extension; the first stands",
    "several_pictures": "the one whose extension comes first in the list stands",
    "no_picture": "a caption without a picture",
    "no_caption": "a picture without a caption",
    "no_member": "no member of another modality that the encoder takes",
    "bad_text": "txt is no UTF-8; what could not be read is shown as U+FFFD",
    "bad_json": "json is no JSON object that can be read; the column is null",
    "member_too_large": "txt or json is larger than read.max_text_bytes, and was not read",
    "no_file": "a member is no regular file: a link, a device, a pipe; the sample does without it",
    "many_notes": "so many more notes of the same kind, left out here",
    "no_end_mark": "a compressed shard is cut behind the end of its tar; no member is lost",
    "data_after_end": "bytes after the end of the tar, not read",
}


IMAGE_AND_TEXT: Mapping[str, Sequence[str]] = {IMAGE: (), TEXT: ()}


def read_samples(
    shard: Shard,
    settings: ReadSettings,
    modalities: Mapping[str, Sequence[str]] = IMAGE_AND_TEXT,
) -> Iterator[Sample | Dropped | Note]:
    """Stream a shard. A truncated or damaged one ends with a `Dropped` that says where and why.

    modalities: name -> the extensions of its members, in order of preference; those of
    `image` and `text` are fixed. A sample with any of them is a row. Raises SourceError for a shard
    that is no tar, is empty, or holds no sample at all."""
    seen, late = SeenKeys(), CappedNotes()
    group: SampleBuilder | None = None
    expected: set[str] = set()  # the extensions of the sample before the one in progress
    with Tar(shard.url) as tar:
        try:
            for member in tar:
                name = split_member_name(member.name)
                if name is None:
                    continue
                key, extension = name
                if group is not None and key != group.key:
                    yield from group.items()
                    group, expected = None, group.extensions
                if group is None:
                    if not seen.add(key):
                        yield from late.take(Note(key, "late_member", member.name))
                        continue
                    group = SampleBuilder(key, settings, modalities)
                group.add(extension, member)
        except Damaged as damage:
            yield from late.rest()
            if group is not None and group.is_complete(expected):
                yield from group.items()
                group = None
            yield Dropped(group.key if group else "", "read", damage.reason, damage.detail)
            return
        if group is not None:
            yield from group.items()
        yield from late.rest()
        if tar.odd_end is not None:
            yield Note("", *tar.odd_end)
    if not seen:
        raise SourceError(
            display_name(shard.url),
            expected="a tar of samples",
            found="no member called key.extension",
            do="name members such as 0001.jpg and 0001.txt",
        )
