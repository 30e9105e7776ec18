"""A corpus like a repository of its own: 4.5 MB of C, headers and documentation, from Debian.

    python bench/corpus.py FOLDER

`apt-get download` fetches the packages below (nothing is installed); of each, files are taken in
the order of a hash of their paths until its share is full, so that one version of the packages
gives one corpus. FOLDER/texts holds the files, FOLDER/manifest.json says of what package, version,
source and licence they are, with the SHA-256 of each and of all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

SMALLEST, LARGEST = 400, 60_000  # bytes of a file: no stubs, no tables of numbers


@dataclass(frozen=True)
class Part:
    """Files of a Debian package whose paths match, up to so many bytes of them."""

    package: str
    files: str
    most: int
    source: str
    licence: str


PARTS = (
    Part("gnulib", r"usr/share/gnulib/lib/[^/]+\.c", 1_650_000, "GNU portability library",
         "GPL-3.0-or-later and LGPL, by file"),
    Part("libcurl4-doc", r".*/examples/[^/]+\.c(\.gz)?", 450_000, "curl, examples", "curl"),
    Part("libssl-doc", r".*/demos/.*\.[ch](\.gz)?", 230_000, "OpenSSL, demos", "Apache-2.0"),
    Part("gnulib", r"usr/share/gnulib/lib/[^/]+\.h", 200_000, "GNU portability library",
         "GPL-3.0-or-later and LGPL, by file"),
    Part("linux-libc-dev", r"usr/include/(linux|asm-generic)/[^/]+\.h", 350_000,
         "Linux, headers for programs", "GPL-2.0 with Linux-syscall-note"),
    Part("nodejs-doc", r".*/api/[^/]+\.md(\.gz)?", 650_000, "Node.js, manual", "MIT"),
    Part("libcurl4-doc", r".*\.md(\.gz)?", 270_000, "curl, documentation", "curl"),
    Part("linux-doc-6.1", r".*/Documentation/.*\.rst(\.gz)?", 800_000, "Linux, documentation",
         "GPL-2.0"),
)  # fmt: skip


def fetched(packages: set[str], folder: Path) -> dict[str, Path]:
    """The packages' files by name, downloaded where they do not lie there yet."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise click.ClickException(f"needs {tool}: make the corpus on a Debian system")
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for package in sorted(packages):
        have = sorted(folder.glob(f"{package}_*.deb"))
        if not have:
            command = ["apt-get", "-qq", "download", package]
            subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
            have = sorted(folder.glob(f"{package}_*.deb"))
        found[package] = have[-1]
    return found


def version(deb: Path) -> str:
    """A package file's version."""
    command = ["dpkg-deb", "--field", str(deb), "Version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def files_of(deb: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Path without ``.gz``, and contents, of the package's matching files."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isfile() or not wanted.fullmatch(name):
                continue
            data = archive.extractfile(member).read()
            if name.endswith(".gz"):
                name, data = name.removesuffix(".gz"), gzip.decompress(data)
            yield name, data


def chosen(deb: Path, part: Part, met: set[str]) -> dict[str, bytes]:
    """What a part takes of its package; ``met`` are the hashes of all that was taken before."""
    found = dict(files_of(deb, re.compile(part.files)))
    kept: dict[str, bytes] = {}
    left = part.most
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        data = found[name]
        digest = hashlib.sha256(data).hexdigest()
        if not SMALLEST <= len(data) <= min(LARGEST, left) or digest in met or not _is_text(data):
            continue
        met.add(digest)
        kept[name] = data
        left -= len(data)
    return kept


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def gather(folder: Path, debs: Path | None = None) -> dict[str, Any]:
    """Makes the corpus in ``folder`` and returns its manifest; one that is whole stays as it is."""
    manifest, texts = folder / "manifest.json", folder / "texts"
    if manifest.exists():
        said: dict[str, Any] = json.loads(manifest.read_text())
        have = {name: hashlib.sha256((texts / name).read_bytes()).hexdigest()
                for name in said["files"] if (texts / name).exists()}  # fmt: skip
        if have == said["files"]:
            return said
    shutil.rmtree(texts, ignore_errors=True)
    with tempfile.TemporaryDirectory() as beside:
        found = fetched({part.package for part in PARTS}, debs or Path(beside))
        met: set[str] = set()
        files: dict[str, str] = {}
        parts = []
        for part in PARTS:
            kept = chosen(found[part.package], part, met)
            for name, data in kept.items():
                path = texts / part.package / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                files[f"{part.package}/{name}"] = hashlib.sha256(data).hexdigest()
            parts.append({
                "package": part.package, "version": version(found[part.package]),
                "source": part.source, "licence": part.licence, "files": len(kept),
                "bytes": sum(map(len, kept.values())),
            })  # fmt: skip
    files = dict(sorted(files.items()))
    whole = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    said = {"sha256": whole, "bytes": sum(p["bytes"] for p in parts), "parts": parts,
            "by_suffix": by_suffix(texts, files), "files": files}  # fmt: skip
    manifest.write_text(json.dumps(said, indent=1) + "\n")
    return said


def by_suffix(texts: Path, files: dict[str, str]) -> dict[str, int]:
    """Bytes of the files of each kind."""
    sizes: dict[str, int] = {}
    for name in files:
        suffix = Path(name).suffix
        sizes[suffix] = sizes.get(suffix, 0) + (texts / name).stat().st_size
    return sizes


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--debs", type=click.Path(path_type=Path),
              help="Folder of package files: those there are not fetched again.")  # fmt: skip
def main(folder: Path, debs: Path | None) -> None:
    """Makes the corpus in FOLDER."""
    said = gather(folder, debs)
    for part in said["parts"]:
        click.echo(f"{part['bytes']:>9,} bytes, {part['files']:>4} files: {part['package']} "
                   f"{part['version']}, {part['source']} ({part['licence']})")  # fmt: skip
    kinds = ", ".join(f"{size:,} {suffix}" for suffix, size in said["by_suffix"].items())
    click.echo(f"{said['bytes']:>9,} bytes, {len(said['files']):>4} files: {kinds}")
    click.echo(f"sha256 {said['sha256']}")


if __name__ == "__main__":
    main()
