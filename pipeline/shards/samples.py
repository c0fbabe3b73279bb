"""A shard -> its samples, what was dropped, and notes.

`Grouping` finds the members of a sample, mostly neighbours. In memory are only the sample in
progress (of it the picture in use, other members that the encoder takes, and texts), those that
wait for members of theirs, within a bound, and 8 bytes for each key, to recognise late members.
Every group becomes exactly one `Sample` or `Dropped`; the `Note`s of a sample follow it. A tar that
is cut inside a member or a header, or damaged, ends with one `Dropped`: the sample in progress or,
where that looks complete, the one that must have come after it. One that ends behind a whole
member without the mark of its end has a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import IMAGE, TEXT, Dropped, Note, Sample, Shard
from chiasm.pipeline.shards.grouping import Grouping, Passed
from chiasm.pipeline.shards.read_settings import ReadSettings
from chiasm.pipeline.shards.sample_builder import Wanted
from chiasm.pipeline.shards.tar import Tar
from chiasm.pipeline.storage import display_name

DROP_REASONS = {  # every reason of stage "read", and its description
    "truncated": "the shard ends inside this sample",
    "damaged": "the shard cannot be read on from here, or zeros stand in place of members",
    "bomb": "the shard unpacks to more than 500 times its bytes, and is not read on from here",
    "extension": "its only picture has an extension that is not read",
    "member_too_large": "its picture, or all it has, is larger than read.max_member_bytes",
    "no_file": "its picture, or all it has, is no regular file: a link, a device, a pipe",
    "empty": "neither a picture nor a caption, nor anything else that the encoder takes",
}
NOTE_REASONS = {
    "late_member": "a member that came after its sample had gone on; the sample does without it",
    "duplicate_member": "a second member with the same key and extension; the first stands",
    "several_pictures": "the one whose extension comes first in the list stands",
    "no_picture": "a caption without a picture",
    "no_caption": "a picture without a caption",
    "no_member": "no member of another modality that the encoder takes",
    "no_caption_field": "json has no field read.caption_field; captions of txt stand, if any",
    "bad_text": "a text is no UTF-8, nor UTF-16 with a mark, or has NUL characters",
    "bad_json": "json is no JSON object that can be read; the column is null",
    "member_too_large": "txt or json is larger than read.max_text_bytes, and was not read",
    "no_file": "a member is no regular file: a link, a device, a pipe; the sample does without it",
    "many_notes": "so many more notes of the same kind, left out here",
    "no_sample": "a file of a desktop, or about the data set (README.md), not read",
    "no_end_mark": "the shard ends behind a whole member, without the mark of its end",
    "cut_after_end": "a compressed shard is cut, but behind the last member of its tar",
    "archives_joined": "another tar follows the end of the first, and is read (cat a.tar b.tar)",
    "zeros_after_end": "more zeros after the end than tar writes, as of a download cut off",
    "data_after_end": "bytes after the end of the tar, not read",
}


# Ends the detail of a late member that would not be late in a tar that is not compressed.
IN_COMPRESSED = ", in a compressed shard"

IMAGE_AND_TEXT: Mapping[str, Sequence[str]] = {IMAGE: (), TEXT: ()}


def read_samples(
    shard: Shard,
    settings: ReadSettings,
    modalities: Mapping[str, Sequence[str]] = IMAGE_AND_TEXT,
) -> Iterator[Sample | Dropped | Note]:
    """Stream a shard. A cut or damaged one ends with a `Dropped` that says where and why.

    modalities: name -> the extensions of its members, in order of preference; those of
    `image` and `text` are fixed. A sample with any of them is a row. Raises SourceError for a shard
    that is no tar, is empty, or holds no sample at all, and ChangedError, one of its kind, for one
    that is not as it was listed."""
    found, passed = 0, ""
    with Tar(shard.url, shard) as tar, Grouping(tar, Wanted(settings, modalities)) as groups:
        for group in groups:
            if isinstance(group, Passed):
                passed = passed or group.member.name
                if group.reason:
                    late = group.reason == "late_member" and tar.compressed
                    detail = group.member.name + (IN_COMPRESSED if late else "")
                    yield Note(group.key, group.reason, detail)
            elif isinstance(group, Dropped):
                found += 1
                yield group
            else:
                for item in group.items():
                    found += not isinstance(item, Note)
                    yield item
        for note in tar.notes:
            yield Note("", *note)
    if not found:
        raise SourceError(
            display_name(shard.url),
            expected="a tar of samples",
            found="no member called key.extension"
            + (f", only others such as {passed}" if passed else ""),
            do="name members such as 0001.jpg and 0001.txt",
        )
