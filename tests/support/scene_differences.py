"""How many attributes two scenes differ in, counted one by one."""

from __future__ import annotations

import itertools

from chiasm.pipeline.scenes.world import VALUES, Scene


def differences(one: Scene, other: Scene) -> int:
    """In how many attributes two scenes differ, things being compared in the order that fits best.

    A thing too many or too few counts as all of its attributes.
    """
    longer, shorter = sorted((one.things, other.things), key=len, reverse=True)
    missing = (len(longer) - len(shorter)) * len(VALUES)
    best = min(
        sum(
            getattr(a, name) != getattr(b, name)
            for a, b in zip(order, shorter, strict=False)
            for name in VALUES
        )
        for order in itertools.permutations(longer, len(shorter))
    )
    return best + missing + (one.background != other.background)
