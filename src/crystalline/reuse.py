"""Where other projects find the C side: headers, static libraries, CMake package."""

from __future__ import annotations

from importlib.resources import files


def get_include() -> str:
    """The folder for ``-I``: it holds ``crystalline/kernels.h`` and ``crystalline/parallel.h``."""
    return str(files("crystalline") / "include")


def get_cmake_dir() -> str:
    """The folder of ``crystallineConfig.cmake``, for ``-Dcrystalline_DIR=``; the package defines
    ``crystalline::kernels`` and ``crystalline::parallel``."""
    return str(files("crystalline") / "lib" / "cmake" / "crystalline")
