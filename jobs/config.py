"""The one place that composes settings: defaults < preset < --set < flags.

Every default is written once, in the dataclass next to what it configures. A preset is one of
`jobs/presets/*.yaml` or any YAML file of the same keys. Unknown keys are refused by name; the
settings in force are saved with every run.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.errors import UsageError, require_at_least
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class NamedEncoder(EncoderSettings):
    """Which encoder, and how it runs."""

    name: str = "pocket"


@dataclass(frozen=True)
class WorkerSettings:
    """The pool of workers, each one process with its own copy of the model.

    count: the most that are asked for; they join as the cluster places them.
    cpus, gpus, memory_gb: what one worker reserves; 0 GB reserves no memory.
    in_flight: shards a worker holds, the one at work and those waiting so that it never idles.
    attempts: how often a shard is tried before it is set aside.
    deadline_seconds: how long one shard may take before its worker is killed; 0 is for ever.
    """

    count: int = 1
    cpus: float = 1
    gpus: float = 0
    memory_gb: float = 0
    in_flight: int = 2
    attempts: int = 3
    deadline_seconds: float = 3600

    def __post_init__(self) -> None:
        require_at_least(
            1,
            workers__count=self.count,
            workers__in_flight=self.in_flight,
            workers__attempts=self.attempts,
        )
        require_at_least(
            0,
            workers__cpus=self.cpus,
            workers__gpus=self.gpus,
            workers__memory_gb=self.memory_gb,
            workers__deadline_seconds=self.deadline_seconds,
        )

    def told(self) -> str:
        """What one worker reserves, in words."""
        parts = {"cores": self.cpus, "accelerators": self.gpus, "GB": self.memory_gb}
        return ", ".join(f"{count:g} {what}" for what, count in parts.items() if count)


@dataclass(frozen=True)
class Settings:
    """Everything a run can be told. `max_loss` is the share of samples that may be dropped."""

    encoder: NamedEncoder = field(default_factory=NamedEncoder)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    max_loss: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss <= 1:
            raise UsageError("max_loss", expected="a share from 0 to 1", found=str(self.max_loss))

    @property
    def embedding(self) -> EmbedSettings:
        return EmbedSettings(self.read, self.decode, self.batch)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compose(
    preset: str = "laptop",
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings in force.

    preset: the name of a shipped preset or the path of a YAML file. assignments: `batch.size=32`,
    values read as YAML. flags: dotted key -> value, None where the flag was not given. Raises
    UsageError.
    """
    told: dict[str, Any] = {}
    _merge(told, _read_preset(preset), preset)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}", expected="key=value, as in batch.size=32")
        _put(told, key.strip(), _yaml(value, f"--set {assignment}"), "--set")
    for key, value in (flags or {}).items():
        if value is not None:
            _put(told, key, value, "the command line")
    try:
        return TypeAdapter(Settings).validate_python(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            "setting " + ".".join(str(part) for part in first["loc"]),
            expected=first["msg"].removeprefix("Input should be "),
            found=repr(first["input"]),
        ) from error


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read_preset(preset: str) -> dict[str, Any]:
    path = PRESETS / f"{preset}.yaml"
    if not path.is_file():
        path = Path(preset)
    if not path.is_file():
        raise UsageError(
            f"preset {preset!r}", expected=f"{', '.join(presets())} or the path of a YAML file"
        )
    told = _yaml(path.read_text(encoding="utf-8"), str(path))
    if told is not None and not isinstance(told, dict):
        raise UsageError(str(path), expected="settings by key", found=type(told).__name__)
    return told or {}


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(where, expected="YAML", found=str(error)) from error


def _merge(told: dict[str, Any], more: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            _merge(told, value, where, f"{prefix}{key}.")
        else:
            _put(told, f"{prefix}{key}", value, where)


def _put(told: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    known = keys(Settings)
    if dotted not in known:
        close = difflib.get_close_matches(dotted, known, 1)
        raise UsageError(
            f"unknown setting {dotted!r} in {where}",
            do=f"did you mean {close[0]}?" if close else "known: " + ", ".join(known),
        )
    *path, last = dotted.split(".")
    place = told
    for part in path:
        place = place.setdefault(part, {})
    place[last] = value


def keys(kind: type, prefix: str = "") -> list[str]:
    """Every key of a settings dataclass, dotted."""
    hints = get_type_hints(kind)
    found: list[str] = []
    for entry in fields(kind):
        inner = hints[entry.name]
        if is_dataclass(inner):
            found += keys(inner, f"{prefix}{entry.name}.")
        else:
            found.append(prefix + entry.name)
    return found
