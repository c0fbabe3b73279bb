"""What a file is that is no tar, by its first bytes."""

from __future__ import annotations

_FILE_TYPES = {  # first bytes of files that are mistaken for shards -> their name in messages
    b"\x1f\x8b": "a gzip file without a tar in it",
    b"\x28\xb5\x2f\xfd": "a zstd file without a tar in it",
    b"\xfd7zXZ\x00": "an xz file (of the compressed tars, .tar.gz and .tar.zst are read)",
    b"BZh": "a bzip2 file (of the compressed tars, .tar.gz and .tar.zst are read)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a RIFF file (WebP, WAV or AVI)",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull fetches the file itself)",
}


def file_type(head: bytes) -> str:
    """In words, for a message."""
    if not head:
        return "an empty file"
    for magic, kind in _FILE_TYPES.items():
        if head.startswith(magic):
            return kind
    begins = head[:16].decode("ascii", "backslashreplace")
    return f"a file that begins with {begins!r}"
