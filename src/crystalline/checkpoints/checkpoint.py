"""A model's folder: a Hugging Face Llama checkpoint that is always whole.

How a save commits, and what a crash at each point leaves:

1. Every new file is written as NAME.new, forced to the disk and read back.
   A crash leaves the old checkpoint and stray .new files, which the next save removes.
2. commit.json, the checksums of the new files, is renamed into being: the commit point.
3. Each NAME.new is renamed over NAME, and commit.json becomes checksums.json.
   A crash leaves commit.json: whoever opens the folder next finishes step 3, or, where the folder
   is read-only, reads the .new files instead.

A reader checks all it uses against one manifest, and starts over if another process replaced that
manifest meanwhile: it gets the whole old checkpoint or the whole new one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from crystalline.checkpoints.modelfiles import (
    CONFIG,
    GENERATION,
    REMEDY,
    TOKENIZER,
    TOKENIZER_CONFIG,
    read_object,
    read_tokenizer,
    small_files,
    to_json,
)
from crystalline.checkpoints.pending import Pending, Tensor
from crystalline.config import ModelConfig, parameter_shapes
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError, UsageError
from crystalline.files import (
    Manifest,
    locked,
    make_folder,
    manifest_bytes,
    parse_manifest,
    remove,
    stamp_of_file,
    sync_folder,
    write_durably,
)
from crystalline.formats.safetensors_file import DTYPES, Content, SafetensorsFile, file_chunks

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"
MODEL_FILES = (CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, MODEL)
FILES = (*MODEL_FILES, OPTIMIZER, STATE)
CHECKSUMS = "checksums.json"
COMMIT = "commit.json"
NEW = ".new"

READS = 5  # how often a reader starts over when saves overtake it

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]
PathOf = Callable[[str], str]  # name of a file of the checkpoint -> verified path
T = TypeVar("T")


def save_model(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    *,
    optimizer: Mapping[str, Array] | None = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Replace the folder's checkpoint by this one, whole or not at all.

    ``weights`` are float32, named and shaped as ``parameter_shapes(config)`` says. ``optimizer``
    tensors and the JSON-able ``state`` are what ``load_training`` gives back; without them the
    folder afterwards holds none. Tensors are streamed to the disk, never copied as a whole. Raises
    CheckpointError, after which the earlier checkpoint is intact.
    """
    folder = os.fspath(folder)
    _check_fit(os.path.join(folder, MODEL), config, weights)
    _check_vocabulary(folder, config, tokenizer)
    contents: dict[str, Content] = {**small_files(config, tokenizer)}
    for name, tensor in (optimizer or {}).items():
        if tensor.dtype.str not in DTYPES:
            known = ", ".join(str(np.dtype(d)) for d in DTYPES)
            raise TypeError(f"optimizer: {name} is {tensor.dtype}, expected one of {known}")
    contents[MODEL] = weights
    if optimizer is not None:
        contents[OPTIMIZER] = optimizer
    if state is not None:
        contents[STATE] = to_json(state)
    try:
        make_folder(folder)
        with locked(folder):
            _commit(folder, contents)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{folder}: cannot save there ({reason}); choose a folder that can be written"
        ) from error


def load_model(folder: Path) -> tuple[ModelConfig, Tokenizer, dict[str, Array]]:
    """The model in a folder: float32 weights by name. Never touches the optimizer's files.

    Every file read is checked first; CheckpointError names the one that is missing or damaged.
    """
    config, tokenizer, weights = open_model(folder)
    return config, tokenizer, _all(weights)


def open_model(folder: Path) -> tuple[ModelConfig, Tokenizer, dict[str, Pending]]:
    """As ``load_model``, but each weight is read when it is asked for; a save that comes between
    changes nothing, as the file stays open."""
    return _read(os.fspath(folder), _parse_open)


def holds_training(folder: Path) -> bool:
    """Whether the checkpoint in a folder has a training state; raises as ``load_model`` does."""
    return STATE in _current(os.fspath(folder))[1]


def load_training(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The optimizer's tensors and the training state, checked like ``load_model``'s files."""
    tensors, state = open_training(folder)
    return _all(tensors), state


def open_training(folder: Path) -> tuple[dict[str, Pending], dict[str, Any]]:
    """As ``load_training``, but each tensor is read when it is asked for."""
    return _read(os.fspath(folder), _parse_training)


# --- What is in the files -------------------------------------------------------------------------


def _check_fit(where: str, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """The tensors are exactly those that the configuration describes."""
    shapes = parameter_shapes(config)
    for name in sorted(tensors.keys() ^ shapes.keys()):
        problem = "is missing" if name in shapes else "is in no model of this config.json"
        raise CheckpointError(f"{where}: tensor {name} {problem}; {REMEDY}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            got = f"{tensor.dtype} {tensor.shape}"
            raise CheckpointError(
                f"{where}: tensor {name} is {got}, config.json says float32 {shape}; {REMEDY}"
            )


def _check_vocabulary(folder: str, config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{os.path.join(folder, TOKENIZER)}: has {tokenizer.vocab_size} tokens, the model in "
            f"config.json knows {config.vocab_size}; use the tokenizer it was trained with"
        )


# --- Manifests ------------------------------------------------------------------------------------


def _read_manifest(path: str) -> Manifest | None:
    """A manifest, or None where there is none; CheckpointError if a single bit of it changed."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    manifest = parse_manifest(data)
    if manifest is not None and manifest.keys() <= set(FILES):
        return manifest
    pending = os.path.basename(path) == COMMIT
    advice = "delete it to return to the earlier checkpoint" if pending else REMEDY
    raise CheckpointError(f"{path}: damaged, it does not match its own checksum; {advice}")


def _current(folder: str) -> tuple[bool, Manifest]:
    """Whether a commit is pending, and the manifest that counts."""
    pending = _read_manifest(os.path.join(folder, COMMIT))
    if pending is not None:
        return True, pending
    path = os.path.join(folder, CHECKSUMS)
    manifest = _read_manifest(path)
    if manifest is not None:
        return False, manifest
    if os.path.exists(os.path.join(folder, MODEL)):
        raise CheckpointError(f"{path}: the file is missing, so nothing can be checked; {REMEDY}")
    what = "holds no checkpoint" if os.path.isdir(folder) else "no such folder"
    raise CheckpointError(f"{folder}: {what}; give the folder that a training run wrote")


def _verified(folder: str, pending: bool, manifest: Manifest, name: str) -> str:
    """The path of a file of the checkpoint, after checking its contents against the manifest."""
    if name not in manifest:
        raise CheckpointError(
            f"{folder}: holds no {name}: the model can be used, but no training can be resumed; "
            "train without resume, which begins from its weights"
        )
    path = os.path.join(folder, name)
    if pending and os.path.exists(path + NEW):
        path += NEW
    try:
        found = stamp_of_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing; {REMEDY}") from None
    wanted = manifest[name]
    if found.size != wanted.size:
        state = "truncated" if found.size < wanted.size else "too long"
        sizes = f"{found.size} bytes instead of {wanted.size}"
        raise CheckpointError(f"{path}: {state}, {sizes}; {REMEDY}")
    if found != wanted:
        raise CheckpointError(f"{path}: damaged, its checksum differs from the saved; {REMEDY}")
    return path


# --- Saving ---------------------------------------------------------------------------------------


def _commit(folder: str, contents: Mapping[str, Content]) -> None:
    """Steps 1 to 3, in a folder that is locked."""
    commit = os.path.join(folder, COMMIT)
    doing, offered = folder, False
    stamps: Manifest = {}
    try:
        _finish(folder, check=True)
        _sweep(folder)
        for name, content in contents.items():
            doing = os.path.join(folder, name)
            stamps[name] = write_durably(doing + NEW, file_chunks(content))
        doing = commit
        write_durably(commit + NEW, [manifest_bytes(stamps)])
        sync_folder(folder)
        offered = True
        os.replace(commit + NEW, commit)
        sync_folder(folder)
        _finish(folder, check=False)
    except OSError as error:
        if offered and not os.path.exists(commit + NEW):
            raise CheckpointError(
                f"{folder}: the new checkpoint is written but not yet in place "
                f"({error.strerror or error}); open the folder again, which completes it"
            ) from error
        with contextlib.suppress(OSError):
            _sweep(folder)
        raise CheckpointError(_failure(folder, doing, error, contents)) from error
    except CheckpointError:
        if doing != folder and not offered:  # a tensor could not be made; no commit is pending
            with contextlib.suppress(OSError):
                _sweep(folder)
        raise


def _finish(folder: str, *, check: bool) -> None:
    """Step 3, if a commit is pending. Each part may be repeated, so a crash here is harmless.

    ``check`` after a crash: files that were damaged since must not replace whole ones.
    """
    commit = os.path.join(folder, COMMIT)
    manifest = _read_manifest(commit)
    if manifest is None:
        return
    if check:
        for name in manifest:
            _verified(folder, True, manifest, name)
    for name in FILES:
        path = os.path.join(folder, name)
        if name not in manifest:
            remove(path)
        else:
            with contextlib.suppress(FileNotFoundError):  # renamed before the crash
                os.replace(path + NEW, path)
    sync_folder(folder)
    os.replace(commit, os.path.join(folder, CHECKSUMS))
    sync_folder(folder)


def _sweep(folder: str) -> None:
    """Remove what a save left that never came to its commit point."""
    for name in (*FILES, COMMIT):
        remove(os.path.join(folder, name + NEW))


def _failure(folder: str, doing: str, error: OSError, contents: Mapping[str, Content]) -> str:
    """One line on a save that failed before its commit point."""
    exists = os.path.exists(os.path.join(folder, CHECKSUMS))
    earlier = "the earlier checkpoint is intact" if exists else "no checkpoint was there before"
    size = sum(
        len(c) if isinstance(c, bytes) else sum(t.nbytes for t in c.values())
        for c in contents.values()
    )
    if error.errno == errno.EFBIG:
        return f"file size limit reached while saving {doing}: raise ulimit -f; {earlier}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # A quota or a reserve can be used up while the disk still shows room: then name it all.
        lacking = size - shutil.disk_usage(folder).free
        mib = math.ceil((lacking if lacking > 0 else size) / 2**20)
        return f"disk full while saving {doing}: free {mib} MiB; {earlier}"
    reason = error.strerror or error
    return f"{doing}: cannot be written ({reason}); check the disk and permissions; {earlier}"


# --- Loading --------------------------------------------------------------------------------------


def _read(folder: str, parse: Callable[[str, PathOf], T]) -> T:
    """``parse(folder, path_of)``, with every path verified and all from one and the same save."""
    for _ in range(READS):
        try:
            if os.path.exists(os.path.join(folder, COMMIT)):
                # A folder that we may not write stays as it is and is read through the .new files.
                with contextlib.suppress(OSError), locked(folder):
                    _finish(folder, check=True)
            before = _current(folder)
            problem: Exception | None = None
            try:
                result = parse(folder, functools.partial(_verified, folder, *before))
            except (CheckpointError, OSError) as error:
                problem = error
            if _current(folder) == before:
                if problem is None:
                    return result
                raise problem
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be read ({error}); allow it") from error
    raise CheckpointError(f"{folder}: another process keeps saving there; try again")


def _parse_open(
    folder: str, path_of: PathOf
) -> tuple[ModelConfig, Tokenizer, dict[str, Pending]]:
    config, tokenizer, path = _parse_small(folder, path_of)
    weights = _opened(path)
    _check_fit(path, config, weights)
    return config, tokenizer, {name: weights[name] for name in parameter_shapes(config)}


def _parse_small(folder: str, path_of: PathOf) -> tuple[ModelConfig, Tokenizer, str]:
    """The model without its weights, and where these lie."""
    paths = {name: path_of(name) for name in MODEL_FILES}
    try:
        said, about = read_object(paths[CONFIG]), read_object(paths[TOKENIZER_CONFIG])
        config = ModelConfig.from_hf(said, paths[CONFIG])
        tokenizer = read_tokenizer(paths[TOKENIZER], about, said)
    except UsageError as error:
        raise CheckpointError(str(error)) from error
    _check_vocabulary(folder, config, tokenizer)
    return config, tokenizer, paths[MODEL]


def _parse_training(folder: str, path_of: PathOf) -> tuple[dict[str, Pending], dict[str, Any]]:
    state = read_object(path_of(STATE))
    return _opened(path_of(OPTIMIZER)), state


def _opened(path: str) -> dict[str, Pending]:
    file = SafetensorsFile.open(path, REMEDY)
    return {name: file.tensor(name) for name in file.places}


def _all(tensors: Mapping[str, Pending]) -> dict[str, Array]:
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}
