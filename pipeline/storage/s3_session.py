"""The HTTP session of the S3 client: what it reads whole is bounded.

The client reads the body of an error, of a listing and of every other answer but an object's whole,
however long that is. A store that is foreign could fill the memory with one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession

from chiasm.pipeline.storage.range_requests import read_at_most
from chiasm.pipeline.storage.store_errors import Refused

# A page of a listing has 1,000 names of 1,024 bytes at most, each of which takes 3 where it is
# escaped.
MAX_BODY = 16 << 20


@dataclass(frozen=True)
class _Body:
    """A body that was read."""

    data: bytes

    async def read(self) -> bytes:
        return self.data


class BoundedSession(AIOHTTPSession):
    """Bodies of objects are left to be read; of any other at most MAX_BODY is."""

    async def send(self, request: Any) -> AioAWSResponse:
        is_object, request.stream_output = request.stream_output, True  # nothing is read yet
        response = await super().send(request)
        if is_object and response.status_code < 300:
            return response
        try:
            data = await read_at_most(response.raw.content.read, MAX_BODY + 1)
            if len(data) > MAX_BODY:
                found = f"{response.status_code} with more than {MAX_BODY >> 20} MiB of text"
                raise Refused(found, "check the endpoint")
        except BaseException:
            response.raw.close()
            raise
        headers: Any = response.headers
        return AioAWSResponse(response.url, response.status_code, headers, _Body(data))
