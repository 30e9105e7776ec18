"""crystalline: trains small language models on ordinary CPUs, to the same bits on any threads."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalline._native import cry_kernels, kernel_table
    from crystalline.api import train
    from crystalline.config import ModelConfig, TrainConfig
    from crystalline.inference.model import Model, load
    from crystalline.reuse import get_cmake_dir, get_include

__version__ = "0.1.0"
__all__ = [
    "Model", "ModelConfig", "TrainConfig", "__version__", "cry_kernels", "get_cmake_dir",
    "get_include", "kernel_table", "load", "train",
]  # fmt: skip

_HOMES = {
    "train": "api", "load": "inference.model", "Model": "inference.model",
    "ModelConfig": "config", "TrainConfig": "config",
    "get_include": "reuse", "get_cmake_dir": "reuse",
    "kernel_table": "_native", "cry_kernels": "_native",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported on first use so that ``import crystalline`` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'crystalline' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"crystalline.{_HOMES[name]}"), name)
