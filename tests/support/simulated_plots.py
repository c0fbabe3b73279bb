"""Kinds of stories: who is there, and where they are stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulated_world import Moment


def moments(*requests: str) -> list[Moment]:
    """Before and after each of these requests, such as `put index/CURRENT`."""
    parts = [request.split() for request in requests]
    return [(when, kind, area) for kind, area in parts for when in ("before", "after")]


CLAIM = moments("put runs", "list runs", "get runs", "head embeddings")
COMMIT = moments("put ledger", "put embeddings", "list embeddings", "list ledger", "get ledger")
PUBLISH = moments("put index/generations", "put index/CURRENT", "put index/segments")
SWEEP = moments(
    "list runs",
    "list index/segments",
    "list index/generations",
    "remove index/segments",
    "get index/generations",
)
LAST_LOOK: Moment = (
    "before",
    "put",
    "index/generations",
)  # it has seen that its segments are there
SEARCH = moments("get index/CURRENT", "get index/generations", "get index/segments")


@dataclass(frozen=True)
class Plot:
    """What kind of story. shards: how many. embeds, builds, searches: how many there are. ready:
    shards that are embedded before. within: seconds in which they begin; later: in which all
    builds but the first do. seconds: what a shard takes. embeds_stop, builds_stop: where they stand
    still or are killed, of the builds the first alone where `later` is given. stalls: seconds for
    which they stand. until: where another one is that they wait for instead; meet: how often.
    stall, kill, fail: how often. unreachable: how often the store answers nobody for a while.
    loses: how often a file of a build is lost while that stands still. keep: seconds for which
    generations are kept. delay: of a request, at most. apart: whether each process has a machine of
    its own. renewed: how often a run sees the newer version of the first shard."""

    shards: int = 3
    embeds: tuple[int, ...] = (2,)
    renewed: float = 0.33
    builds: tuple[int, ...] = (1, 2)
    searches: int = 1
    ready: int = 0
    within: tuple[float, float] = (0, 20)
    later: tuple[float, float] | None = None
    seconds: tuple[float, ...] = (0.1, 1.0, 5.0)
    embeds_stop: tuple[Moment, ...] = (*CLAIM, *COMMIT)
    builds_stop: tuple[Moment, ...] = (*PUBLISH, *SWEEP)
    stalls: tuple[float, ...] = (2, 10, 29, 45, 10, 29, 45, 62, 100)
    until: tuple[Moment, ...] = (*CLAIM, *COMMIT, *PUBLISH, *SWEEP)
    meet: float = 0.4
    stall: float = 0.5
    kill: float = 0.25
    fail: float = 0.1
    unreachable: float = 0.05
    loses: float = 0.0
    keep: tuple[float, ...] = (3600, 3600, 20, 0)
    delay: float = 0.5
    apart: bool = False


ANYTHING = Plot()
PLOTS = {
    "anything": ANYTHING,
    "claims": replace(
        ANYTHING,
        shards=6,
        embeds=(2, 3),
        builds=(0,),
        searches=0,
        within=(0, 5),
        seconds=(0.1, 0.1, 5.0),
        embeds_stop=(*CLAIM, *COMMIT),
        stalls=(2, 29, 45, 62, 66, 70, 75),
        until=(*CLAIM, *COMMIT),
        stall=0.8,
        kill=0.1,
        delay=0.1,
        apart=True,
    ),
    "long shards": replace(
        ANYTHING,
        builds=(0,),
        searches=0,
        within=(0, 3),
        seconds=(150,),
        stall=0.1,
        kill=0.0,
        unreachable=0.8,
        apart=True,
    ),
    "publish race": replace(
        ANYTHING,
        embeds=(0,),
        builds=(2,),
        searches=0,
        ready=3,
        within=(0, 3),
        later=(15, 40),
        builds_stop=(LAST_LOOK, LAST_LOOK, LAST_LOOK, LAST_LOOK, *PUBLISH),
        stalls=(10, 10, 45, 150, 150, 150),
        until=(("before", "remove", "index/segments"), ("after", "list", "index/generations")),
        meet=0.8,
        stall=1.0,
        kill=0.0,
        fail=0.0,
        loses=0.4,
        apart=True,
    ),
    "two builds": replace(
        ANYTHING,
        embeds=(1,),
        renewed=0.0,
        builds=(2, 3),
        searches=0,
        ready=2,
        within=(0, 10),
        stalls=(2, 10, 29, 45),
        until=(*PUBLISH, *SWEEP),
        stall=0.8,
        kill=0.0,
        fail=0.0,
        keep=(0, 20),
    ),
    "late build": replace(
        ANYTHING,
        embeds=(0,),
        builds=(2,),
        searches=0,
        ready=3,
        within=(0, 1),
        later=(1, 8),
        builds_stop=(("after", "list", "runs"),),
        stalls=(29, 45),
        until=(("after", "put", "index/segments"),),
        meet=0.8,
        stall=1.0,
        kill=0.0,
        fail=0.0,
        apart=True,
    ),
    "generations": replace(
        ANYTHING, embeds=(1,), builds=(4,), searches=2, ready=2, within=(0, 70), keep=(20, 40, 0)
    ),
}
CHOICES = ("anything", "anything", *PLOTS, "two builds")
