"""WebDataset shards: which there are, their samples, single members, and writing one."""

from chiasm.pipeline.shards.group import PICTURES, ReadSettings, captions_of
from chiasm.pipeline.shards.listing import list_shards, shard_id
from chiasm.pipeline.shards.members import read_checked, read_member, split_member_name
from chiasm.pipeline.shards.samples import DROP_REASONS, NOTE_REASONS, read_samples
from chiasm.pipeline.shards.tar import DAMAGES, Damaged, Tar
from chiasm.pipeline.shards.writer import write_shard

__all__ = [
    "DAMAGES",
    "DROP_REASONS",
    "NOTE_REASONS",
    "PICTURES",
    "Damaged",
    "ReadSettings",
    "Tar",
    "captions_of",
    "list_shards",
    "read_checked",
    "read_member",
    "read_samples",
    "shard_id",
    "split_member_name",
    "write_shard",
]
