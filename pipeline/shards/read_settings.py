"""`ReadSettings`: the settings `read.*` of every command that reads shards."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.pipeline.errors import require_at_least

# The version of the rules by which members become samples: it rises when the same shard gives other
# rows. 2: members of a key anywhere in the shard, keys compared in NFC; `caption` and `text`;
# UTF-16; folders that are samples; files that are none; a tar without its end mark.
RULES = 2


@dataclass(frozen=True)
class ReadSettings:
    """How members become samples.

    caption_field: the json field with the caption, a string or a list of them; it comes before
    `txt`. Without one, `txt` comes first, then json's `caption`, then json's `captions`.
    max_member_bytes: larger members are not read into memory. max_text_bytes: nor is larger txt or
    json, of which 256 rows wait in memory for their row group, and whose parsing takes twenty times
    its size.
    """

    caption_field: str = ""
    max_member_bytes: int = 64 << 20
    max_text_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        require_at_least(
            1,
            read__max_member_bytes=self.max_member_bytes,
            read__max_text_bytes=self.max_text_bytes,
        )
