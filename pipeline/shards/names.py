"""Names of members: key and extension, and which files of a tar are none of a sample.

A member is called KEY.EXTENSION, as webdataset has it. Beside the samples lie files of desktops and
version control, and files about the data set: they are passed over, and noted.
"""

from __future__ import annotations

import re
import unicodedata

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")

# Hidden files and folders (`._0001.jpg` of a Mac, .DS_Store, .git/), folders of desktops and
# network disks, files that they leave in any folder, and texts about the data set, which would be
# read as captions.
_JUNK = re.compile(
    r"""(?:^|/)(?:
        \.(?!\.?(?:/|$))
      | (?:__macosx|\$recycle\.bin|system\ volume\ information|@eadir|\#recycle|lost\+found)/
      | (?:thumbs|ehthumbs(?:_vista)?)\.db(?::[^/]*)?$
      | (?:desktop|picasa)\.ini$
      | (?:readme|license|licence|copying|notice|changelog)
        (?:\.[a-z]{2})?(?:\.(?:md|txt|rst|html?|rtf|pdf))?$
    )""",
    re.IGNORECASE | re.VERBOSE,
)

# Extensions of files about a data set. A key that has only these is no sample.
_DOCUMENTS = re.compile(
    "cfg|conf|csv|db|docx?|html?|ini|ipynb|lnk|lock|log|markdown|md|md5|parquet|pdf|py|rst|rtf|sh|"
    "sha1|sha256|sqlite3?|toml|tsv|url|xlsx?|ya?ml"
)
# Files about a data set whose extension is read. A key of such a name without picture and caption
# is no sample.
_ABOUT = re.compile(
    r"(?:.*/)?(?:_?metadata|meta|dataset_infos?|info|index|manifest|stats|state|config|schema|"
    r"classes|labels|_success)",
    re.IGNORECASE,
)


def split_member_name(name: str) -> tuple[str, str] | None:
    """A member's name -> (key, extension in lower case), as webdataset's `base_plus_ext` has it:
    the key ends at the first dot of the base name. None for a name without extension, for those
    that webdataset skips (`__meta__`, and all in a folder so called), and for `is_junk`."""
    if name.startswith("__") and re.match(r"__[^/]*__($|/)", name):
        return None
    found = _KEY_AND_EXTENSION.match(name)
    return (found[1], found[2].lower()) if found and not _JUNK.search(name) else None


def is_junk(name: str) -> bool:
    """Whether a member is a file of a desktop or a text about the data set, by its name alone."""
    return _JUNK.search(name) is not None


def is_about_dataset(key: str, extensions: set[str]) -> bool:
    """Whether a key without picture and caption is no sample but a file about the data set."""
    read = {extension for extension in extensions if not _DOCUMENTS.fullmatch(extension)}
    return not read or (read <= {"json", "txt"} and _ABOUT.fullmatch(key) is not None)


def comparable(key: str) -> str:
    """The form in which keys are compared: a Mac writes names in NFD, others in NFC."""
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def folder_of(key: str) -> str:
    """The folder that a key lies in, "" for none, and for that which the tar is of (`./0001`)."""
    folder = key.rpartition("/")[0] if "/" in key else ""
    return "" if folder == "." else folder
