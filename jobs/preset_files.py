"""Files of settings: YAML of limited size, without aliases and without a key given twice."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import yaml

from chiasm.pipeline.errors import UsageError

PRESETS = Path(__file__).parent / "presets"
MOST_SETTINGS_BYTES = 1 << 20  # of a file of settings; all of ours are far below


def presets() -> list[str]:
    """The names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(preset: str) -> dict[str, Any]:
    """What a shipped preset, by its name, or a file of settings says. Raises UsageError."""
    path = PRESETS / f"{preset}.yaml" if preset in presets() else Path(preset)
    try:
        if not path.is_file():  # a pipe may never end
            found = "a folder" if path.is_dir() else "a device" if path.exists() else "no such file"
            raise FileNotFoundError(errno.ENOENT, found)
        with path.open("rb") as file:
            data = file.read(MOST_SETTINGS_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UsageError(
            f"preset {preset!r}",
            expected=f"{', '.join(presets())} or the path of a YAML file",
            found=getattr(error, "strerror", None) or str(error),
        ) from error
    if len(data) > MOST_SETTINGS_BYTES:
        raise UsageError(
            str(path), expected=f"settings of at most {MOST_SETTINGS_BYTES >> 20} MiB", found="more"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            str(path), expected="YAML in UTF-8", found=f"other bytes at position {error.start}"
        ) from error
    values = read_yaml(text, str(path))
    if values is not None and not isinstance(values, dict):
        raise UsageError(str(path), expected="settings by key", found=type(values).__name__)
    return values or {}


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can stand for more values than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which settings do not need")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Of a key that is given twice YAML takes the last."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """A value of YAML's own types; UsageError, which names `where`, for what is none."""
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        if mark is not None and "\n" in text.strip():
            problem = f"{problem} in line {mark.line + 1}"
        raise UsageError(where, expected="YAML", found=problem) from error
    except RecursionError as error:
        raise UsageError(where, expected="YAML", found="nesting that is too deep") from error
    # What YAML's own constructors raise for a value such as 2026-13-45 or a key that is a list.
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(where, expected="YAML", found=str(error)) from error
