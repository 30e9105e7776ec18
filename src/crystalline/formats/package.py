"""The gguf package, which not everybody needs."""

from __future__ import annotations

import importlib
from typing import Any

from crystalline.errors import UsageError


def gguf_package() -> Any:
    """The module.  UsageError says what to install where it is missing."""
    try:
        module = importlib.import_module("gguf")
        importlib.import_module("gguf.quants")
    except ImportError as error:
        raise UsageError(
            f"GGUF files need the package gguf, which cannot be imported ({error}); "
            "pip install 'crystalline[gguf]'"
        ) from error
    if not hasattr(module.ReaderField, "contents"):
        raise UsageError(
            "GGUF files need gguf 0.16, but an older one is installed; "
            "pip install --upgrade 'crystalline[gguf]'"
        )
    return module
