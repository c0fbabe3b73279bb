"""Where in a tar the members of each key lie, for tars in which they are not neighbours.

A run is a row of neighbouring members of one key. Only headers are read, and 16 bytes a run are in
memory, whatever the size of the shard.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from chiasm.pipeline.shards.names import comparable, split_member_name
from chiasm.pipeline.shards.seen_keys import digest_of
from chiasm.pipeline.shards.tar import Damaged, Member, Tar


class KeyRuns:
    """The runs of every key that has more than one. Two keys with one digest are told apart by
    their members' names."""

    def __init__(self, tar: Tar) -> None:
        """Reads every header of `tar`, a `second_reader`, up to its end or its damage."""
        self._tar = tar
        digests, headers = array("Q"), array("Q")
        last = None
        try:
            for member in tar:
                name = split_member_name(member.name)
                if name is not None and name[0] != last:
                    last = name[0]
                    digests.append(digest_of(comparable(last)))
                    headers.append(member.header)
        except Damaged:
            pass  # it is met again, and told, where the members are read
        found = np.frombuffer(digests, np.uint64) if digests else np.empty(0, np.uint64)
        order = np.argsort(found, kind="stable")
        found = found[order]
        equal = found[1:] == found[:-1]
        several = np.append(equal, False) | np.insert(equal, 0, False) if len(found) else equal
        self._digests = found[several]
        self._headers = np.frombuffer(headers, np.uint64)[order][several] if len(found) else found

    def later_members(self, compared: str) -> Iterator[tuple[str, Member]]:
        """(extension, member) of a key behind its first run. A member is to be read before the next
        is requested; raises Damaged."""
        digest = np.uint64(digest_of(compared))
        first, last = (int(self._digests.searchsorted(digest, side)) for side in ("left", "right"))
        for header in self._headers[first + 1 : last].tolist():
            for member in self._tar.members_from(header):
                name = split_member_name(member.name)
                if name is None:
                    continue
                if comparable(name[0]) != compared:
                    break
                yield name[1], member
