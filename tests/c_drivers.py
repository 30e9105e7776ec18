"""Programs in tests/c: compiled with gcc against the kernels' sources, also under a sanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parent / "src/crystalline/_kernels"
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pthread"]


def compiled(name: str, sources: list[str], folder: Path, *flags: str) -> list[str]:
    """The command of tests/c/``name``.c with ``sources`` of the kernels."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc here")
    program, parts = folder / name, [HERE / f"c/{name}.c", *(KERNELS / s for s in sources)]
    include = [f"-I{KERNELS}", f"-I{KERNELS / 'include'}"]
    built = subprocess.run(
        ["gcc", *FLAGS, *flags, *include, *parts, "-o", program], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return [str(program)]


def sanitized(name: str, sources: list[str], folder: Path) -> list[str]:
    """The same under the thread sanitizer, which cannot live with every layout of memory."""
    empty, flag = folder / "empty.c", "-fsanitize=thread"
    empty.write_text("int main(void) { return 0; }\n")
    built = subprocess.run(
        ["gcc", flag, empty, "-o", folder / "empty"], capture_output=True, check=False
    )
    if built.returncode:
        pytest.skip("this gcc has no thread sanitizer")
    here = [["setarch", platform.machine(), "-R"]] if shutil.which("setarch") else []
    for prefix in [[], *here]:
        if run([*prefix, str(folder / "empty")]).returncode == 0:
            return [*prefix, *compiled(name, sources, folder, "-O1", "-g", flag)]
    pytest.skip("the thread sanitizer does not start here, nor under setarch -R")


def run(command: list[str], limit: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs it, without what else may be preloaded; raises TimeoutExpired when it hangs."""
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=limit, check=False, env=plain
    )
