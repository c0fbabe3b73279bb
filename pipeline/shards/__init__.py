"""WebDataset shards: listing them, reading samples and single members, writing them."""

from chiasm.pipeline.shards.captions import (
    every_caption,
    json_bytes,
    json_object,
    without_captions,
)
from chiasm.pipeline.shards.copies import Members, member_groups, writing_copy
from chiasm.pipeline.shards.json_text import with_values
from chiasm.pipeline.shards.listing import TAR_SUFFIXES, list_shards, shard_id
from chiasm.pipeline.shards.members import read_checked, read_member
from chiasm.pipeline.shards.names import split_member_name
from chiasm.pipeline.shards.read_settings import RULES, ReadSettings
from chiasm.pipeline.shards.sample_builder import PICTURE_EXTENSIONS, SampleBuilder
from chiasm.pipeline.shards.samples import (
    DROP_REASONS,
    IMAGE_AND_TEXT,
    IN_COMPRESSED,
    NOTE_REASONS,
    read_samples,
)
from chiasm.pipeline.shards.tar import ChangedError, Damaged, Tar
from chiasm.pipeline.shards.writer import write_shard

__all__ = [
    "DROP_REASONS",
    "IMAGE_AND_TEXT",
    "IN_COMPRESSED",
    "NOTE_REASONS",
    "PICTURE_EXTENSIONS",
    "RULES",
    "TAR_SUFFIXES",
    "ChangedError",
    "Damaged",
    "Members",
    "ReadSettings",
    "SampleBuilder",
    "Tar",
    "every_caption",
    "json_bytes",
    "json_object",
    "list_shards",
    "member_groups",
    "read_checked",
    "read_member",
    "read_samples",
    "shard_id",
    "split_member_name",
    "with_values",
    "without_captions",
    "write_shard",
    "writing_copy",
]
