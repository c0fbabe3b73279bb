"""A shard copied sample by sample: its members as they are, for whoever changes some of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.shards.grouping import Grouping
from chiasm.pipeline.shards.read_settings import ReadSettings
from chiasm.pipeline.shards.sample_builder import SampleBuilder, Wanted
from chiasm.pipeline.shards.samples import IMAGE_AND_TEXT
from chiasm.pipeline.shards.tar import Tar
from chiasm.pipeline.storage import Folder

Members = list[tuple[str, bytes]]  # names and contents


def member_groups(
    shard: Shard, read: ReadSettings, damage: list[Dropped]
) -> Iterator[tuple[SampleBuilder | None, Members, int]]:
    """The members of each sample, as `read_samples` groups them, and how many of them were too
    large to read; None in place of the sample for other files. What ends the tar before its end
    goes to `damage`."""
    wanted = Wanted(read, IMAGE_AND_TEXT, keep=True)
    with Tar(shard.url, shard) as tar, Grouping(tar, wanted) as groups:
        for group in groups:
            if isinstance(group, Dropped):
                damage.append(group)  # what came before it is whole
            elif isinstance(group, SampleBuilder):
                yield (None if group.is_about_dataset else group), group.kept, group.oversized
            elif not group.member.kind:
                small = group.member.size <= read.max_member_bytes
                kept = [(group.member.name, group.member.read())] if small else []
                yield None, kept, int(not small)


@contextmanager
def writing_copy(
    folder: Folder, name: str, run_id: str, comment: str = ""
) -> Iterator[Callable[[Iterable[tuple[str, bytes]]], None]]:
    """A function that appends members to the tar `name`, which has its name once the `with` is left
    without an exception. comment: of the whole tar, in its first header."""
    headers = {"comment": comment} if comment else None
    with folder.create(name, run_id) as file:
        target: Any = file
        with tarfile.open(
            fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, pax_headers=headers
        ) as out:

            def add(members: Iterable[tuple[str, bytes]]) -> None:
                for member, data in members:
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))

            yield add
        file.commit()
