"""Which Ray a command joins, and whether one answers there.

Ray itself waits for a quarter of an hour at an address where nobody answers, inside compiled code
that no signal ends. So the port is tried first, each step in a thread and within seconds.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ray import _raylet
from ray._private import services

from chiasm.jobs.signals import STOPPING
from chiasm.pipeline.errors import ChiasmError, UsageError

PORT_SECONDS = 10.0  # to find the host and to connect to its port
RAY_SECONDS = 20.0  # for Ray's own first request, once the port is open
FORMS = "host:port of a running Ray, ray://host:port, auto or local"
LEAVE_OUT = "leave --address out to start a Ray here"
UNSET = "unset RAY_ADDRESS to start a Ray here"


@dataclass(frozen=True)
class Address:
    """An address, what error messages call it, and how to do without it."""

    text: str
    name: str
    without: str

    @property
    def is_local(self) -> bool:
        return self.text == "local"

    def refuse(self, found: str, do: str) -> NoReturn:
        raise ChiasmError(
            self.name, expected="a running Ray", found=found, do=f"{do}, or {self.without}"
        )


def chosen_address(given: str | None) -> Address:
    """The address in force: `--address`, else RAY_ADDRESS, else a Ray of our own. `auto` is
    RAY_ADDRESS where that is set, as it is for Ray itself."""
    variable = os.environ.get("RAY_ADDRESS", "").strip()
    if given and (given != "auto" or not variable):
        return Address(given, f"--address {given}", LEAVE_OUT)
    if variable:
        return Address(variable, f"RAY_ADDRESS={variable} in the environment", UNSET)
    return Address("local", "", "")


def require_ray(address: Address, *, announce: bool = True) -> None:
    """Raise ChiasmError unless a Ray answers at the address, within half a minute; UsageError for
    what is no address of a Ray. announce: say on stderr what is joined: that takes seconds."""
    host, port = _host_and_port(address)
    if announce:
        sys.stderr.write(f"joining Ray at {ascii(address.text)[1:-1]}\n")
        sys.stderr.flush()
    why = _within(PORT_SECONDS, lambda: _connect_error(host, port))
    if why is _NO_ANSWER:
        why = f"no answer within {PORT_SECONDS:g} s"
    if why:
        address.refuse(f"{why} at {host}:{port}", "start one there with `ray start --head`")
    if address.text.startswith("ray://"):
        return  # Ray's client gives up by itself, after 30 s
    if _within(RAY_SECONDS, lambda: _first_request(host, port)) is _NO_ANSWER:
        address.refuse(
            f"an open port at {host}:{port}, behind which no Ray answers within {RAY_SECONDS:g} s",
            "give the port of `ray start --head` (6379 by default), not that of the dashboard",
        )


_NO_ANSWER = object()


def _host_and_port(address: Address) -> tuple[str, int]:
    """Where Ray would connect to."""
    if address.text == "auto":
        try:
            return _split(services.canonicalize_bootstrap_address_or_die("auto"))
        except ConnectionError:
            address.refuse("none on this machine", "start one with `ray start --head`")
    scheme, _, rest = address.text.rpartition("://")
    if scheme not in ("", "ray"):
        do = address.without
        if scheme in ("http", "https"):
            do = f"chiasm submit takes the dashboard's address; here {do}"
        raise UsageError(
            address.name,
            expected=FORMS,
            found=f"an address of {scheme}://",
            do=do,
        )
    try:
        host, port = _split(rest)
    except ValueError:
        raise UsageError(
            address.name, expected=FORMS, found="neither", do=address.without
        ) from None
    # Ray takes this machine's own address for localhost.
    return (host, port) if scheme else _split(services.canonicalize_bootstrap_address_or_die(rest))


def _split(text: str) -> tuple[str, int]:
    """Host and port; ValueError where either is missing."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or not parts.port or parts.netloc != text or "@" in text:
        raise ValueError(text)
    return parts.hostname, parts.port


def _connect_error(host: str, port: int) -> str:
    """Why no connection can be made; empty where one can."""
    try:
        socket.create_connection((host, port), timeout=PORT_SECONDS).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: what cannot be a host's name
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ""


def _first_request(host: str, port: int) -> None:
    """Ask Ray for the cluster's id, as `ray.init` does first; where it refuses to say, `ray.init`
    says why."""
    name = f"[{host}]" if ":" in host else host
    try:
        _raylet.GcsClient(address=f"{name}:{port}")  # pyrefly: ignore  a compiled module
    except Exception:  # noqa: BLE001  Ray has no class for what it raises here
        return


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns, or _NO_ANSWER. A thread that hangs is left behind: the name service and
    Ray's client take no timeout. A signal ends the wait."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        STOPPING.check()
        thread.join(0.1)
    return results[0] if results else _NO_ANSWER
