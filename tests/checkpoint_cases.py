"""Small checkpoints, and a disk that fails or loses power at any chosen operation."""

import fcntl
import hashlib
import os
import shutil

import numpy as np

from crystalline.checkpoints.checkpoint import load_model, load_training, save_model
from crystalline.config import ModelConfig, parameter_shapes
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError

TOKENIZER = Tokenizer.train(["to be or not to be, that is the question\n"] * 3, 270)
CONFIG = ModelConfig(270, 8, 1, 2, 1, 12, 16)


def weights_of(config, seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


class Case:
    """A checkpoint whose every file differs from those of a Case with another number."""

    def __init__(self, number, training=True):
        self.number, self.training = number, training
        self.config = ModelConfig(280 + number, 8, 1, 2, 1, 12, 16 + number)
        self.weights = weights_of(self.config, number)

    def save(self, folder):
        extra = {}
        if self.training:
            extra["optimizer"] = {"m": np.full(5, self.number, np.float32)}
            extra["state"] = {"step": self.number}
        save_model(folder, self.config, TOKENIZER, self.weights, **extra)

    def is_in(self, folder):
        """Whether the folder holds exactly this checkpoint, in all its files."""
        config, tokenizer, weights = load_model(folder)
        if config != self.config or tokenizer.to_json() != TOKENIZER.to_json():
            return False
        if not all(np.array_equal(weights[name], w) for name, w in self.weights.items()):
            return False
        try:
            optimizer, state = load_training(folder)
        except CheckpointError:
            return not self.training
        return (
            self.training
            and state == {"step": self.number}
            and list(optimizer["m"]) == [self.number] * 5
        )


class Crash(BaseException):
    """The end of a simulated process: no except clause for errors may catch it."""


class Disk:
    """Counts the operations of a save, acts up at one of them, and knows what power loss leaves.

    Bytes are safe after an fsync of their file, names after an fsync of the folder; ``lose_power``
    takes the rest away, as a real disk may.
    """

    def __init__(self, monkeypatch, folder, *, at=-1, act=None, only=None):
        self.folder, self.at, self.act, self.only = str(folder), at, act, only
        self.kept = self.folder + ".kept"
        os.makedirs(self.kept, exist_ok=True)
        self.count, self.dead, self.unsynced, self.names = 0, False, set(), {}
        self._keep_names()
        for module, name in (
            (os, "open"), (os, "write"), (os, "fsync"), (os, "posix_fadvise"), (os, "replace"),
            (os, "unlink"), (os, "mkdir"), (hashlib, "file_digest"), (fcntl, "flock"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name, real):
        def operation(*args, **kwargs):
            if self.dead:
                raise Crash
            if self.only in (None, name):
                self.count += 1
                if self.count - 1 == self.at:
                    if name == "write":  # half of it arrives
                        real(args[0], args[1][: len(args[1]) // 2])
                    self.act(self)
            if name == "write":
                self.unsynced.add(os.fstat(args[0]).st_ino)
            if name == "fsync":  # believed, not waited for
                self.unsynced.discard(os.fstat(args[0]).st_ino)
                if self._is_folder(args[0]):
                    self._keep_names()
                return None
            return real(*args, **kwargs)

        return operation

    def _is_folder(self, fd):
        return os.path.isdir(self.folder) and os.path.samestat(os.fstat(fd), os.stat(self.folder))

    def _keep_names(self):
        self.names = {}
        for entry in os.scandir(self.folder) if os.path.isdir(self.folder) else ():
            self.names[entry.name] = entry.inode()
            if not os.path.exists(f"{self.kept}/{entry.inode()}"):
                os.link(entry.path, f"{self.kept}/{entry.inode()}")

    def lose_power(self, *, names_too):
        """Empty what was not forced to the disk; optionally undo names that were not either."""
        if names_too and os.path.isdir(self.folder):
            shutil.rmtree(self.folder)
            os.mkdir(self.folder)
            for name, inode in self.names.items():
                os.link(f"{self.kept}/{inode}", f"{self.folder}/{name}")
        for entry in os.scandir(self.folder) if os.path.isdir(self.folder) else ():
            if entry.inode() in self.unsynced:
                os.truncate(entry.path, 0)
        shutil.rmtree(self.kept)

    def crash(self):
        self.dead = True
        raise Crash


def fail_with(code):
    def act(disk):
        raise OSError(code, os.strerror(code))

    return act


def fresh(folder, template):
    """Make ``folder`` a copy of ``template``, or nothing at all."""
    shutil.rmtree(folder, ignore_errors=True)
    if template is not None:
        shutil.copytree(template, folder)
