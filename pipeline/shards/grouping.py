"""The members of a tar -> groups, each a sample to be.

Neighbouring members with the same key are a group, as webdataset has it, and mostly that is all. A
group that lacks a picture or a caption when another key begins waits for the rest of its members:

- of a local tar that is not compressed, they are read by their places, which one look at all
  headers has told (`KeyRuns`);
- of a stream, the group is kept, and what comes behind it, up to WAITING_BYTES; or up to
  BEHIND_BYTES of groups that lack nothing, which tell that members are neighbours here. Then it
  goes on as it is.

What comes after that is a late member. A folder is one sample (`0001/image.jpg` with
`0001/caption.txt`) where its members are neighbours, one key of it has a picture, others have what
belongs to it, none has both, and the names of picture or texts say that they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from chiasm.pipeline.records import Dropped
from chiasm.pipeline.shards.captions import CAPTION_EXTENSIONS
from chiasm.pipeline.shards.key_runs import KeyRuns
from chiasm.pipeline.shards.names import (
    NO_ROLE,
    comparable,
    folder_of,
    is_junk,
    picture_role,
    split_member_name,
    text_role,
)
from chiasm.pipeline.shards.sample_builder import SampleBuilder, Wanted
from chiasm.pipeline.shards.seen_keys import SeenKeys
from chiasm.pipeline.shards.tar import Damaged, Member, Tar

# Enough for a hundred thousand small pictures, or some hundred large ones, before their captions.
WAITING_BYTES = 128 << 20
BEHIND_BYTES = 16 << 20  # a second of decoding
_GROUP_BYTES = 1 << 10  # about what a waiting group takes beside its members
_FOLDER_KEYS = 16  # a folder with more keys is no sample


@dataclass(frozen=True, slots=True)
class Passed:
    """A member that belongs to no group. reason: `late_member`, `no_sample`, or "" for names that
    are none of a member. To be read before the next item is requested."""

    member: Member
    key: str
    reason: str


class Grouping:
    """The groups of one tar; iterated over once, in a `with`."""

    def __init__(self, tar: Tar, wanted: Wanted) -> None:
        self._tar, self._wanted = tar, wanted
        self._seen, self._gathered = SeenKeys(), SeenKeys()
        self._runs: KeyRuns | None = None
        self._waiting = Waiting()
        self._folder, self._is_sample = "", False  # the folder at hand; may it be one sample?
        self._in_folder: dict[str, SampleBuilder] = {}  # its groups, until that is known
        self._joined: set[str] = set()  # extensions of the last folder that was one sample
        self._cut: Dropped | None = None  # a sample whose later member is cut
        self._files = ExitStack()

    def __enter__(self) -> Grouping:
        return self

    def __exit__(self, *raised: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[SampleBuilder | Passed | Dropped]:
        """Groups in the order of their first members, members that belong to none, and a `Dropped`
        at the end where the tar is damaged: it stands for the group at hand or, where that looks
        whole, for the one behind it."""
        group: SampleBuilder | None = None
        expected: set[str] = set()  # the extensions of the group before the one at hand
        try:
            for member in self._tar:
                if group is not None and group.is_next(member.name):
                    group.add(member.name[len(group.key) + 1 :].lower(), member)
                    continue
                name = split_member_name(member.name)
                if name is None:
                    yield Passed(member, "", "no_sample" if is_junk(member.name) else "")
                    continue
                key, extension = name
                if group is None or comparable(key) != group.compared:
                    if group is not None:
                        expected = group.extensions
                        yield from self._close(group)
                    folder = folder_of(key)
                    if folder != self._folder and not self._is_at_hand(folder):
                        yield from self._enter_folder(folder)
                    group = self._begin(key)
                if group is not None:
                    group.add(extension, member)
                elif comparable(key) not in self._gathered:
                    yield Passed(member, key, "late_member")
        except Damaged as damage:
            yield from self._end(group, expected, damage)
            return
        if group is not None:
            yield from self._close(group)
        yield from self._enter_folder("")
        yield from self._waiting.all()
        if self._cut is not None:
            yield self._cut

    def _is_at_hand(self, folder: str) -> bool:
        return comparable(folder) == comparable(self._folder)

    def _end(
        self, group: SampleBuilder | None, expected: set[str], damage: Damaged
    ) -> Iterator[SampleBuilder | Dropped]:
        """What there is where the tar is damaged behind or within the group at hand."""
        key = ""
        if group is not None:
            in_folder = self._is_sample and bool(self._joined)
            others = self._same_sample(group)
            complete = group.is_complete(self._joined if others or in_folder else expected, others)
            if complete if damage.last_is_cut is None else not damage.last_is_cut:
                yield from self._close(group)
            else:
                key = self._folder if others or in_folder else group.key
                self._waiting.remove(group)
                for other in others:
                    del self._in_folder[other.compared]
        yield from self._enter_folder("")
        yield from self._waiting.all()
        yield self._cut or Dropped(key, "read", damage.reason, damage.detail)

    def _same_sample(self, group: SampleBuilder) -> list[SampleBuilder]:
        """The groups of the folder at hand that would be one sample with the one at hand."""
        others = list(self._in_folder.values())
        parts = [*others, group]
        one = self._is_sample and not (group.waits or group.is_whole())
        one = one and comparable(self._folder) not in self._seen
        one = one and sum(part.has_picture for part in parts) < 2
        return others if one and _have_roles(parts) else []

    def _begin(self, key: str) -> SampleBuilder | None:
        """The group of a key, a new one or one that waits; None for one that has gone on."""
        compared = comparable(key)
        if self._seen.add(compared):
            return SampleBuilder(key, self._wanted)
        if compared in self._gathered:
            return None
        return self._in_folder.pop(compared, None) or self._waiting.get(compared)

    def _close(self, group: SampleBuilder) -> Iterator[SampleBuilder]:
        """Other members follow the group's."""
        if group.waits:
            yield from self._waiting.put(group)
            return
        whole = group.is_whole()
        if whole and not self._in_folder and not self._waiting:
            self._is_sample = False
            yield group
            return
        if not whole:
            self._gather(group)
            if self._cut is not None and self._cut.key == group.key:
                return
            whole = group.is_whole()
        pictures = [other for other in self._in_folder.values() if other.has_picture]
        second = bool(pictures) and group.has_picture
        if self._is_sample and not (whole or second) and len(self._in_folder) < _FOLDER_KEYS:
            self._in_folder[group.compared] = group
            return
        self._is_sample = False
        yield from self._release()
        yield from self._go_on(group)

    def _go_on(self, group: SampleBuilder) -> Iterator[SampleBuilder]:
        waits = self._runs is None and (self._waiting or not group.is_whole())
        yield from self._waiting.put(group) if waits else (group,)

    def _gather(self, group: SampleBuilder) -> None:
        """Read the group's later members, where the tar can be read here and there."""
        if self._runs is None:
            reader = self._tar.second_reader()
            if reader is None:
                return
            self._runs = KeyRuns(self._files.enter_context(reader))
        self._gathered.add(group.compared)
        try:
            for extension, member in self._runs.later_members(group.compared):
                group.add(extension, member)
        except Damaged as damage:  # it is met again, and told, where the tar is read on
            if damage.last_is_cut:
                self._cut = Dropped(group.key, "read", damage.reason, damage.detail)

    def _enter_folder(self, folder: str) -> Iterator[SampleBuilder]:
        """What waited in the folder before goes on: as one sample, or each by itself."""
        groups = list(self._in_folder.values())
        pictures = [group for group in groups if group.has_picture]
        others = [group for group in groups if not group.has_picture]
        joined = self._is_sample and pictures and any(group.has_others for group in others)
        joined = joined and _have_roles(groups)
        if joined and self._seen.add(comparable(self._folder)):
            self._in_folder = {}
            others.sort(key=lambda other: text_role(other.key))
            sample = pictures[0].join(self._folder, others)
            self._joined = sample.extensions
            yield sample
        yield from self._release()
        self._folder, self._is_sample = folder, bool(folder)

    def _release(self) -> Iterator[SampleBuilder]:
        groups, self._in_folder = self._in_folder, {}
        for group in groups.values():
            yield from self._go_on(group)


def _have_roles(parts: Sequence[SampleBuilder]) -> bool:
    """Whether the name of the picture in a folder, or those of all texts that may be its caption,
    say what they are (image, caption), not what is on them (cat, sources)."""
    if any(picture_role(part.key) for part in parts if part.has_picture):
        return True
    captions = [part for part in parts if part.texts.keys() & set(CAPTION_EXTENSIONS)]
    texts = captions or [part for part in parts if part.texts]
    return bool(texts) and all(text_role(part.key) < NO_ROLE for part in texts)


class Waiting:
    """Groups of a stream that wait for members, and those behind them, in the order of the tar."""

    def __init__(self) -> None:
        # Whose first is found at once, however many have gone.
        self._groups: OrderedDict[str, SampleBuilder] = OrderedDict()
        self._bytes = self._whole_bytes = 0  # of all; of those that only wait for others

    def __len__(self) -> int:
        return len(self._groups)

    def get(self, compared: str) -> SampleBuilder | None:
        return self._groups.get(compared)

    def put(self, group: SampleBuilder) -> Iterator[SampleBuilder]:
        """Let a group wait, or go on waiting; yields those that have waited enough."""
        if group.compared not in self._groups:  # once it waits, then for its json too: that is last
            group.waits = not group.is_whole()
            self._groups[group.compared] = group
        else:
            self._count(group, -1)
        group.waiting_bytes = group.size + _GROUP_BYTES
        self._count(group, 1)
        while self._bytes > WAITING_BYTES or self._whole_bytes > BEHIND_BYTES or self._may_go():
            first = next(iter(self._groups.values()))
            self.remove(first)
            yield first

    def remove(self, group: SampleBuilder) -> None:
        if self._groups.pop(group.compared, None) is not None:
            self._count(group, -1)

    def all(self) -> Iterator[SampleBuilder]:
        yield from self._groups.values()

    def _may_go(self) -> bool:
        """Whether the first group waits for nothing."""
        return bool(self._groups) and not next(iter(self._groups.values())).waits

    def _count(self, group: SampleBuilder, sign: int) -> None:
        self._bytes += sign * group.waiting_bytes
        self._whole_bytes += 0 if group.waits else sign * group.waiting_bytes
