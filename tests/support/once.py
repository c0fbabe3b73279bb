"""A call put into the middle of another: the moment at which two commands meet."""

from __future__ import annotations

from chiasm.pipeline.storage import Folder


class Once:
    """Calls something at the first call of a method of `Folder` for a name that begins so, before
    or after it."""

    def __init__(self, monkeypatch, method: str, name: str, call, *, after: bool = False) -> None:
        real, calls = getattr(Folder, method), [call]

        def wrapped(folder, target, *rest):
            hit = target.startswith(name) and calls
            if hit and not after:
                calls.pop()()
            result = real(folder, target, *rest)
            if hit and after and calls:
                calls.pop()()
            return result

        monkeypatch.setattr(Folder, method, wrapped)
        self.left = calls
