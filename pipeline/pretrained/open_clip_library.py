"""The library open_clip, an optional extra, imported with or without torchvision.

open_clip and timm, which it builds on, import torchvision for the transforms of pictures, which are
done here by other code (open_clip_images.py), and for a class that only trainings use. torchvision
fits one build of torch alone, and where a machine has none they cannot be imported. So where there
is none, they are given modules with exactly the names that they ask for while they are imported:
nothing in these names can be called. The modules are taken away again: whatever else looks for
torchvision finds what there is. A torchvision that is there is used as it is.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from transformers.utils import is_torchvision_available

from chiasm.pipeline.errors import EncoderError

INSTALL = "pip install 'chiasm[openclip]'"
# By module of torchvision, the classes that open_clip 3.3 and timm 1.0 name at import. What they
# name within `try: ... except ImportError` is left out: they do without it.
CLASSES = {
    "torchvision": (),
    "torchvision.datasets": (
        *("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder"),
    ),
    "torchvision.ops": (),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
    "torchvision.transforms": (
        *("CenterCrop", "ColorJitter", "Compose", "Grayscale", "Normalize", "RandomResizedCrop"),
        *("Resize", "ToTensor"),
    ),
    "torchvision.transforms.functional": (),
}
WITH_MODES = ("torchvision.transforms", "torchvision.transforms.functional")
_PARALLELISM = "TOKENIZERS_PARALLELISM"  # open_clip turns it off, for the whole process
_importing = threading.Lock()


class InterpolationMode(enum.Enum):
    """torchvision's names of ways to resize: both libraries have tables by these."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def open_clip_for(title: str) -> Any:
    """The module `open_clip`; title: what asks for it. Raises EncoderError where it is not
    installed, or cannot be imported."""
    if importlib.util.find_spec("open_clip") is None:
        raise EncoderError(
            title, expected="the package open_clip_torch", found="none installed", do=INSTALL
        )
    try:
        with _importing:
            return _imported()
    except ImportError as error:
        raise EncoderError(
            title,
            expected="open_clip with all that it needs",
            found=f"no module {error.name}" if error.name else str(error),
            do=INSTALL,
        ) from error


def _imported() -> Any:
    names = nullcontext() if "open_clip" in sys.modules else _torchvision_named()
    with parallelism_kept(), names:
        import open_clip  # pyrefly: ignore[missing-import]  an optional extra
    return open_clip


@contextmanager
def _torchvision_named() -> Iterator[None]:
    """A context in which imports of torchvision's names succeed, whether it is there or not."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    is_torchvision_available()  # remembered there: open_clip imports transformers
    modules = _named_modules()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def _named_modules() -> dict[str, ModuleType]:
    modules: dict[str, ModuleType] = {}
    for name, classes in CLASSES.items():
        module = modules[name] = ModuleType(name, f"Names of {name}, which is not installed.")
        for item in classes:
            setattr(module, item, _uncallable(f"{name}.{item}"))
        if name in WITH_MODES:
            module.__dict__["InterpolationMode"] = InterpolationMode
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
            modules[parent].__path__ = []  # a package, in which nothing else is found
    return modules


def _uncallable(name: str) -> type:
    """A class of that name, of which nothing can be made."""

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise ImportError(f"{name} needs torchvision, which is not installed")

    return type(name.rpartition(".")[2], (), {"__init__": refuse, "__module__": __name__})


@contextmanager
def parallelism_kept() -> Iterator[None]:
    """A context that leaves the environment's word on threads of tokenizers as it was."""
    before = os.environ.get(_PARALLELISM)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_PARALLELISM, None)
        else:
            os.environ[_PARALLELISM] = before
