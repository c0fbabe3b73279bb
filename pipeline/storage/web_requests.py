"""GET requests to web servers: sessions, and redirects that are checked before they are followed.

The first URL is a person's, and may name any server. A redirect is the server's: it may lead only
where `addresses.py` allows, never from https to http, and to no other scheme. What counts is the
address that is connected to: names are resolved inside the connection, and what the answer holds is
checked there. Connections are shared only by requests under the same rule. A proxy of the
environment connects by itself: then names and addresses are checked as far as they are known here.
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from chiasm.pipeline.storage.addresses import Address, address_of, is_public, may_lead_to
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.storage.store_errors import Refused, TransientError

MAX_REDIRECTS = 10
HEADERS_SECONDS = 60.0  # names, connection and headers, of which each line may come just in time
REDIRECTS = (301, 302, 303, 307, 308)

# The addresses of the server whose redirect is followed; None: no redirect, a person's own URL.
Origin = frozenset[Address] | None


class WebRequests:
    """Sends GET requests; its methods run on the event loop `loop`."""

    def __init__(self, loop: Any, retries: RetrySettings) -> None:
        self._loop = loop
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(10.0, retries.timeout), sock_read=retries.timeout
        )
        # A .tar.gz may be sent with `Content-Encoding: gzip`: it is unpacked where tars are read.
        self._options: dict[str, Any] = {
            "trust_env": True,
            "timeout": timeout,
            "auto_decompress": False,
        }
        self._sessions: dict[Origin, _Session] = {}

    async def get(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The response that the URL leads to, its body unread; Refused for a redirect that is not
        followed."""
        headers = {"Accept-Encoding": "identity", **headers}
        target, session = URL(url, encoded=True), self._session(None)
        for _ in range(1 + MAX_REDIRECTS):
            response = await _answer(session.client, target, headers)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None:
                return response
            response.release()
            known = frozenset() if await _is_proxied(target) else session.addresses(target)
            target = redirected(target, location)
            session = await self._session_for(target, known)
        raise Refused("more than ten redirects", "name the URL of the file itself")

    async def _session_for(self, target: URL, origin: frozenset[Address]) -> _Session:
        """The session for the target of a redirect; Refused where it is known already that the
        redirect is not followed."""
        if await _is_proxied(target):
            await self._check_proxied(target, origin)
            return self._session(None)
        host = target.raw_host or ""
        if address_of(host) is not None:  # it is never resolved
            _check(host, [host], origin)
        return self._session(origin)

    def _session(self, origin: Origin) -> _Session:
        if origin is not None and any(map(is_public, origin)):
            origin = frozenset()  # one rule, so one session, for all public servers
        if origin not in self._sessions:
            resolver = _CheckingResolver(origin)
            connector = aiohttp.TCPConnector(resolver=resolver)
            jars = [session.client.cookie_jar for session in self._sessions.values()]
            jar = jars[0] if jars else None  # the sessions' one jar
            client = aiohttp.ClientSession(connector=connector, cookie_jar=jar, **self._options)
            weakref.finalize(self, _close_later, self._loop, client)
            self._sessions[origin] = _Session(client, resolver)
        return self._sessions[origin]

    async def _check_proxied(self, target: URL, origin: Collection[Address]) -> None:
        """Refused where this machine knows that a proxy would be sent to an inner address."""
        host = target.raw_host or ""
        try:
            found = await self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return  # a name that only the proxy can resolve
        _check(host, (str(entry[4][0]) for entry in found), origin)


async def _answer(
    client: aiohttp.ClientSession, url: URL, headers: dict[str, str]
) -> aiohttp.ClientResponse:
    """A response with its headers; TransientError where they are not there in time."""
    limit = asyncio.timeout(HEADERS_SECONDS)
    try:
        async with limit:
            return await client.get(url, headers=headers, allow_redirects=False)
    except TimeoutError as error:  # aiohttp raises some of its own
        if limit.expired():
            found = f"no whole answer in {HEADERS_SECONDS:g} s"
            raise TransientError(found) from error
        raise


@dataclass(frozen=True)
class _Session:
    client: aiohttp.ClientSession
    resolver: _CheckingResolver

    def addresses(self, url: URL) -> frozenset[Address]:
        """The addresses of a host that has answered."""
        host = url.raw_host or ""
        literal = address_of(host)
        if literal is not None:
            return frozenset({literal})
        return self.resolver.found.get(host, frozenset())


class _CheckingResolver(aiohttp.ThreadedResolver):
    """Raises Refused for a name with an address to which `origin` may not lead."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        self.found: dict[str, frozenset[Address]] = {}  # the last answer for each host

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        answers = await super().resolve(host, port, family)
        texts = [answer["host"] for answer in answers]
        if self.origin is not None:
            _check(host, texts, self.origin)
        self.found[host] = frozenset(filter(None, map(address_of, texts)))
        return answers


def _check(host: str, addresses: Iterable[str], origin: Collection[Address]) -> None:
    for text in addresses:
        address = address_of(text)
        if address is None or not may_lead_to(address, origin):
            raise Refused(
                f"a redirect to {host[:100]}, which is inside a network or this machine",
                "name the URL that it leads to, if that is what you want",
            )


def _close_later(loop: Any, client: aiohttp.ClientSession) -> None:
    """Without waiting: the garbage collector may call this while any lock is held."""
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(client.close(), loop)


async def _is_proxied(url: URL) -> bool:
    try:
        await asyncio.to_thread(get_env_proxy_for_url, url)
    except LookupError:
        return False
    return True


def redirected(url: URL, location: str) -> URL:
    """Where a redirect of `url` leads; Refused for what is no URL of a web server, or a worse
    one."""
    do = "name the URL of the file itself"
    try:
        target = url.join(URL(location))
    except ValueError as error:
        raise Refused("a redirect to what is no URL", do) from error
    if target.scheme not in ("http", "https") or not target.raw_host:
        raise Refused(f"a redirect to {target.scheme}://", do)
    if (url.scheme, target.scheme) == ("https", "http"):
        raise Refused("a redirect from https to http", do)
    return target
