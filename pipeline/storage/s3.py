"""S3 and compatible stores: the session, credentials and event loop of s3fs, our own requests.

s3fs's own files do not know ETags, clean up a failed upload only after an `Exception`, and retry by
rules of their own. Here every request is one attempt, every range is compared with its
`Content-Range`, and a multipart upload is aborted whatever ends it. Keys are used as they are: no
escapes, double slashes kept.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import IO, Any

from fsspec.asyn import sync
from s3fs import S3FileSystem

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import ByteRange, Listing
from chiasm.pipeline.storage.range_requests import (
    checked_range,
    parse_content_range,
    range_header,
    read_at_most,
    silence_loop,
)
from chiasm.pipeline.storage.retry import RetrySettings, retry
from chiasm.pipeline.storage.s3_errors import translating_errors
from chiasm.pipeline.storage.s3_session import BoundedSession
from chiasm.pipeline.storage.store_errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    NotFound,
    RangeNotSatisfiable,
    Refused,
    StoreError,
    TransientError,
    Unsupported,
)

PART = 32 << 20  # bytes of a part; more for objects that would need over MAX_PARTS of them
MAX_PARTS = 10_000  # S3's limit
CONCURRENT_PARTS = 4  # so an upload takes PART * CONCURRENT_PARTS bytes of memory

Parts = list[dict[str, Any]]

# Where the next page of a listing begins: field of a page -> parameter of the next request.
_NEXT_PAGE = {
    "NextContinuationToken": "ContinuationToken",
    "NextKeyMarker": "KeyMarker",
    "NextUploadIdMarker": "UploadIdMarker",
}


class S3Store:
    """Buckets. Credentials and endpoint are boto's: environment, profile, role.

    A new name is put by If-None-Match. A store that answers it with 501 is asked first whether the
    name is free: there, two writers at the same moment may both succeed."""

    def __init__(self, retries: RetrySettings) -> None:
        self.retries = retries
        self.fs = S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "connect_timeout": min(10.0, retries.timeout),
                "read_timeout": retries.timeout,
                "max_pool_connections": 128,
                "http_session_cls": BoundedSession,
            },
        )
        silence_loop(self.fs.loop)

    def head(self, path: str) -> Stat:
        """By a range of one byte: the length in a HEAD may be wrong, a range's total is checked."""
        try:
            piece = self.get(path, 0, 1)
        except RangeNotSatisfiable:
            return Stat(0, _etag(self._object_request("head_object", path)))
        return Stat(piece.total, piece.version or "")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        bucket, _, key = path.partition("/")
        params = {"Bucket": bucket, "Key": key, "Range": range_header(start, size)}
        try:
            response = self._request("get_object", body_bytes=size + 1, **params)
            data, content_range = response["Body"], response.get("ContentRange")
            if content_range is None and not data:
                raise RangeNotSatisfiable  # how some stores answer for an empty object
        except RangeNotSatisfiable:
            if start <= 0:
                self._require_empty(path)
            raise
        found = parse_content_range(content_range)
        if found.total < 0:
            raise TransientError(f"a Content-Range of {found.text!r}")
        return checked_range(data, found, start, size, _etag(response))

    def _require_empty(self, path: str) -> None:
        """TransientError for an object with bytes: a store that fails is no empty file."""
        length = self._object_request("head_object", path).get("ContentLength")
        if length:
            raise TransientError(f"no bytes of an object of {length}")

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        bucket, _, prefix = folder.partition("/")
        params = {"Bucket": bucket, "Prefix": prefix} | ({} if deep else {"Delimiter": "/"})
        stats: dict[str, Stat] = {}
        folders: list[str] = []
        for page in self._pages("list_objects_v2", params):
            for entry in page.get("Contents", ()):
                modified = entry["LastModified"].timestamp() if "LastModified" in entry else None
                stats[entry["Key"]] = Stat(entry.get("Size", -1), _etag(entry), modified)
            folders += [entry["Prefix"][:-1] for entry in page.get("CommonPrefixes", ())]

        def is_below(key: str) -> bool:
            # Not every store heeds prefix and delimiter.
            return key.startswith(prefix) and (deep or "/" not in key[len(prefix) :])

        found = {f"{bucket}/{key}": stat for key, stat in stats.items() if is_below(key)}
        return Listing(found, sorted(f"{bucket}/{key}" for key in folders if is_below(key)))

    def is_folder(self, path: str) -> bool:
        bucket, _, key = path.rstrip("/").partition("/")
        prefix = f"{key}/" if key else ""
        found = self._request("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        keys = [entry["Key"] for entry in found.get("Contents", ())]
        return any(found.startswith(prefix) for found in keys) or not key

    def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
        metadata = _token_metadata(create_token)
        try:
            self._conditional_request("put_object", path, create_token, Body=data, **metadata)
        except AlreadyExists as taken:
            # An earlier attempt may have put it, and only its answer been lost.
            self._require_token(path, create_token, taken)

    def upload(self, path: str, file: IO[bytes], size: int, *, create_token: str = "") -> None:
        """A multipart upload; every part is retried by itself. Whatever is raised meanwhile, also
        by a signal, aborts it. Where the answer to the last request is lost, the token in the
        object's metadata shows whether it succeeded."""
        token, stop = create_token or secrets.token_hex(8), threading.Event()
        created = retry(
            lambda: self._object_request("create_multipart_upload", path, **_token_metadata(token)),
            self.retries,
        )
        upload_id = created.get("UploadId")
        if not upload_id:
            raise Refused("a multipart upload without an id", "check the endpoint")
        try:
            parts = self._upload_parts(path, upload_id, file, size, stop)
            retry(lambda: self._complete(path, upload_id, parts, token, create_token), self.retries)
        except BaseException:
            stop.set()
            # A store out of reach must not hide why this ends; a sweep aborts what is left.
            with suppress(StoreError):
                retry(lambda: self._abort(path, upload_id), self.retries)
            raise

    def _upload_parts(
        self, path: str, upload_id: str, file: IO[bytes], size: int, stop: threading.Event
    ) -> Parts:
        part_size = max(PART, -(-size // MAX_PARTS))
        file_lock = threading.Lock()

        def upload_part(number: int) -> dict[str, Any]:
            if stop.is_set():
                raise Cancelled
            with file_lock:
                file.seek((number - 1) * part_size)
                data = file.read(part_size)
            params = {"UploadId": upload_id, "PartNumber": number, "Body": data}
            try:
                response = retry(
                    lambda: self._object_request("upload_part", path, **params), self.retries, stop
                )
            except NotFound as failure:
                raise _upload_gone() from failure
            etag = {"ETag": response["ETag"]} if "ETag" in response else {}
            return {"PartNumber": number, **etag}

        # Leaving the `with` waits for parts in flight: none arrives after an abort.
        with ThreadPoolExecutor(CONCURRENT_PARTS, "chiasm-upload") as pool:
            try:
                return list(pool.map(upload_part, range(1, -(-size // part_size) + 1)))
            except BaseException:
                stop.set()
                raise

    def _complete(
        self, path: str, upload_id: str, parts: Parts, token: str, create_token: str
    ) -> None:
        params = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        try:
            self._conditional_request("complete_multipart_upload", path, create_token, **params)
        except (NotFound, AlreadyExists) as failure:
            self._require_token(path, token, failure)

    def _require_token(self, path: str, token: str, failure: StoreError) -> None:
        """Raise what `failure` means unless the object is the one that was put with `token`."""
        taken = isinstance(failure, AlreadyExists)
        try:
            metadata = self._object_request("head_object", path).get("Metadata", {})
        except NotFound:
            if taken:
                raise TransientError("the name was taken, and is free again") from failure
            metadata = {}
        if metadata.get("chiasm") == token:
            return
        if taken:
            raise failure
        raise _upload_gone() from failure

    def remove(self, path: str) -> None:
        self._object_request("delete_object", path)

    def abort_uploads(self, folder: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        bucket, _, prefix = folder.partition("/")
        pages = self._pages("list_multipart_uploads", {"Bucket": bucket, "Prefix": prefix})
        unfinished = [
            (entry["Key"], entry["UploadId"])
            for page in pages
            for entry in page.get("Uploads", ())
            if entry["Key"].startswith(prefix)  # not every store heeds the prefix
        ]
        dead = [(key, upload) for key, upload in unfinished if is_dead(f"s3://{bucket}/{key}")]
        for key, upload_id in dead:
            retry(partial(self._abort, f"{bucket}/{key}", upload_id), self.retries)
        return [f"s3://{bucket}/{key}" for key, _ in dead]

    def _abort(self, path: str, upload_id: str) -> None:
        try:
            self._object_request("abort_multipart_upload", path, UploadId=upload_id)
        except NotFound:
            return  # completed or aborted already

    def _conditional_request(
        self, method: str, path: str, create_token: str, **params: Any
    ) -> None:
        """A request that writes an object; AlreadyExists where a `create_token` is given and the
        name is taken."""
        if not create_token:
            self._object_request(method, path, **params)
            return
        try:
            self._object_request(method, path, IfNoneMatch="*", **params)
        except Unsupported:
            if self._exists(path):
                raise AlreadyExists(path) from None
            self._object_request(method, path, **params)
        except Conflict:
            if self._exists(path):
                raise AlreadyExists(path) from None
            raise

    def _exists(self, path: str) -> bool:
        try:
            self._object_request("head_object", path)
        except NotFound:
            return False
        return True

    def _object_request(self, method: str, path: str, **params: Any) -> dict[str, Any]:
        bucket, _, key = path.partition("/")
        return self._request(method, Bucket=bucket, Key=key, **params)

    def _request(self, method: str, *, body_bytes: int = 0, **params: Any) -> dict[str, Any]:
        """One attempt. Not by `fs.call_s3`, which retries with longer waits than ours. body_bytes:
        the most that is read of an object."""

        async def request() -> dict[str, Any]:
            await self.fs.set_session()
            call = getattr(await self.fs.get_s3(params["Bucket"]), method)
            response = await call(**self.fs._get_s3_method_kwargs(call, **params))
            if "Body" in response:
                async with response["Body"] as body:
                    response["Body"] = await read_at_most(body.read, body_bytes)
            return response

        with translating_errors():
            response: Any = sync(self.fs.loop, request)
        return response

    def _pages(self, method: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Pages of a listing, every one retried by itself, or a long listing would never end."""
        page: dict[str, Any] = {"IsTruncated": True}
        while page.get("IsTruncated"):
            page = retry(partial(self._request, method, **params), self.retries)
            yield page
            following = params | {
                name: page[key] for key, name in _NEXT_PAGE.items() if key in page
            }
            if page.get("IsTruncated") and following == params:
                raise Refused("a listing that does not say how it goes on", "check the endpoint")
            params = following


def _upload_gone() -> Refused:
    do = "another program aborted it: run the same command again"
    return Refused("the upload gone before its end", do)


def _token_metadata(token: str) -> dict[str, Any]:
    """Metadata by which a writer recognises the object that it put."""
    return {"Metadata": {"chiasm": token}} if token else {}


def _etag(response: dict[str, Any]) -> str:
    return response.get("ETag", "").strip('"') or str(response.get("LastModified", ""))
