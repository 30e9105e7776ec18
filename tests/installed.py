"""crystalline as a user has it: built from its source archive, installed in a venv of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Build tools and NumPy are those of the running interpreter; the network is not asked for any.
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
QUIETLY = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
BUILD_IN = "-Cbuild-dir=build"  # beside the sources: what is installed twice is built once


def run(*command: object, **places: Path) -> str:
    """What the command printed; its own words are the error when it fails."""
    plain = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "PYTHONPATH")}
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300, check=False, env=plain, cwd=places.get("cwd"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A venv that has what the running interpreter has, below what is installed in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def install(self, what: Path, *options: str) -> None:
        # One of the same version may lie in the packages below; pip would be content with it.
        afresh = ["--ignore-installed", *QUIETLY]
        run(*PIP, "--python", self.python, "install", *afresh, *options, what)

    def evaluate(self, expression: str) -> str:
        """The expression's value as the venv's interpreter prints it, away from the sources."""
        imports = "import sys, crystalline, pathlib"
        return run(self.python, "-c", f"{imports}; print({expression})", cwd=self.folder).strip()


def environment(folder: Path) -> Environment:
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    made = Environment(folder)
    outer = [path for path in sys.path if path.endswith("-packages")]
    (made.packages / "zz_outer.pth").write_text("\n".join(outer) + "\n")
    return made


def source_archive(folder: Path) -> Path:
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def wheel(sources: Path, folder: Path) -> Path:
    run(*PIP, "wheel", *QUIETLY, BUILD_IN, "--wheel-dir", folder, sources)
    (made,) = folder.glob("*.whl")
    return made
