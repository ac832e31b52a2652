"""mpp: masked-patch pretraining for Vision Transformers.

    encoder = mpp.load_encoder("runs/b16")

docs/python.md.  Nothing slow is imported before it is asked for, since every program imports this; __init__.pyi says to type checkers what there is.
"""

import importlib

__version__ = "0.1.0"

_API = ("load_encoder", "ImageEncoder", "FeatureSet")


def __getattr__(name: str) -> object:
    if name in _API:
        return getattr(importlib.import_module("mpp.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_API]
