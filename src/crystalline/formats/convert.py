"""import and export: from a file or folder of others to a model's folder, and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, open_model, save_model
from crystalline.checkpoints.claim import claimed
from crystalline.checkpoints.modelfiles import CONFIG
from crystalline.checkpoints.pending import Floats, Pending
from crystalline.config import parameter_count
from crystalline.errors import CheckpointError, UsageError
from crystalline.formats.gguf_read import MAGIC, read_gguf
from crystalline.formats.gguf_write import KINDS, write_gguf
from crystalline.formats.huggingface import read_huggingface
from crystalline.formats.source import Source
from crystalline.rules import nearest_name, refuse

PathLike = str | os.PathLike[str]
Event = dict[str, Any]
OnEvent = Callable[[Event], None]
TARGETS = ("gguf", "hf")


def import_model(source: PathLike, folder: PathLike, on_event: OnEvent | None = None) -> Event:
    """Takes a model from ``source``, a Hugging Face Llama folder or a GGUF file, into ``folder``.

    Afterwards the folder can be loaded, and trained on.  Weights pass one by one, so that memory
    does not grow with the model.  Returns what was read, as ``on_event`` is told it at the end
    (event ``imported``; ``progress`` before).  Raises UsageError for what crystalline does not
    read or a folder that is not free, CheckpointError for damaged files and a full disk; then
    nothing is left there.
    """
    tell = on_event or (lambda event: None)
    source, folder = os.fspath(source), Path(folder)
    with claimed(folder):
        if (folder / CHECKSUMS).exists() or (folder / COMMIT).exists():
            raise UsageError(f"{folder}: holds a model already; choose another name")
        tell({"event": "progress", "phase": "opening", "done": 0, "total": _size(source)})
        try:
            read = _read(source)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"{source}: cannot be read ({reason}); allow it") from error
        weights = _watched(read, tell)
        save_model(folder, read.config, read.tokenizer, weights)
    lost = len(read.tokenizer.lost_bytes)
    said = {
        "event": "imported", "source": source, "path": str(folder),
        "parameters": parameter_count(read.config), "vocab_size": read.config.vocab_size,
        "context": read.config.seq_len, "bytes_without_token": lost,
    }  # fmt: skip
    tell(said)
    return said


def export_model(
    folder: PathLike, target: PathLike, to: str = "gguf", kind: str = "f32",
    on_event: OnEvent | None = None,
) -> Event:  # fmt: skip
    """Writes the model in ``folder`` for others: ``to`` "gguf", a file, or "hf", a folder.

    ``kind`` is how a GGUF file keeps matrices: f32, f16, bf16 or q8_0.  What was at ``target`` is
    replaced when all is written and read back, if it is a GGUF file; a folder must be new.
    Returns what was written (event ``exported``).  Raises UsageError and CheckpointError.
    """
    tell = on_event or (lambda event: None)
    for name, value, known in (("to", to, TARGETS), ("type", kind, tuple(KINDS))):
        if value not in known:
            near = nearest_name(str(value), known) or known[0]
            refuse(name, value, f"must be one of {', '.join(known)}", near)
    if to == "hf" and kind != "f32":
        refuse("type", kind, "a Hugging Face folder is written as it was trained", "f32")
    path = os.fspath(target)
    config, tokenizer, weights = open_model(folder)
    if config.rope != "standard":
        raise UsageError(
            f"{os.fspath(folder)}: has rope {config.rope}, positions that neither GGUF nor Hugging "
            "Face's Llama can express, so that others would compute something else; it cannot be "
            "exported: train one with rope standard"
        )
    source = Source(config, tokenizer, weights, os.fspath(folder))
    if to == "hf":
        if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
            raise UsageError(f"{path}: is there already; choose a new folder")
        save_model(path, config, tokenizer, _watched(source, tell))
    else:
        _check_file(path)
        name = os.path.basename(os.path.abspath(folder))
        done, total, report = 0, sum(w.nbytes for w in weights.values()), _reporter(tell)

        def written(size: int) -> None:
            nonlocal done
            done += size
            report(done, total)

        report(0, total)
        write_gguf(path, name, config, tokenizer, weights, kind, written)
    size = _size(path)
    said = {"event": "exported", "source": os.fspath(folder), "path": path, "to": to,
            "type": kind, "bytes": size}  # fmt: skip
    tell(said)
    return said


def _read(source: str) -> Source:
    """A model, whichever of the two forms it has."""
    if os.path.isdir(source):
        if os.path.exists(os.path.join(source, CONFIG)):
            return read_huggingface(source)
        found = sorted(n for n in os.listdir(source) if n.endswith(".gguf"))
        hint = f"give one of its files, such as {os.path.join(source, found[0])}" if found else (
            "give the folder of a Hugging Face Llama or a GGUF file"
        )  # fmt: skip
        raise UsageError(f"{source}: holds no {CONFIG}; {hint}")
    try:
        with open(source, "rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror}); check the path") from error
    if magic != MAGIC:
        raise UsageError(
            f"{source}: is no GGUF file; give one, or the folder of a Hugging Face Llama"
        )
    return read_gguf(source)


def _check_file(path: str) -> None:
    """A GGUF file may take the place of another one, of nothing else."""
    if os.path.isdir(path):
        raise UsageError(f"{path}: is a folder; name a file, such as {path}/model.gguf")
    try:
        with open(path, "rb") as file:
            other = file.read(len(MAGIC)) != MAGIC
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); choose another") from error
    if other:
        raise UsageError(f"{path}: is there and no GGUF file; choose another name")


def _size(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())


def _reporter(tell: OnEvent) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        tell({"event": "progress", "phase": "weights", "done": done, "total": total})

    return report


def _watched(source: Source, tell: OnEvent) -> dict[str, Pending]:
    """The weights, told of as they are made, and refused where one is no number."""
    done, total = 0, sum(w.nbytes for w in source.weights.values())
    report = _reporter(tell)

    def made(name: str, weight: Pending) -> Floats:
        nonlocal done
        values = np.asarray(weight)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{source.where}: {name} holds values that are not finite; fetch it again"
            )
        done += weight.nbytes
        report(done, total)
        return values

    return {
        name: Pending(weight.shape, lambda name=name, weight=weight: made(name, weight))  # type: ignore[misc]
        for name, weight in source.weights.items()
    }
