"""What a running training shows to other processes: its weights of now, and a board of figures.

``live.json`` in the model's folder names two regions and the process that writes them.  A file that
a killed training left names a process that is gone: nobody believes it, and the next training
replaces it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from crystalline import _region
from crystalline.checkpoints.checkpoint import load_model
from crystalline.decoder.decoder import Parameters
from crystalline.errors import CrystallineError, UsageError
from crystalline.files import remove, write_durably
from crystalline.inference.model import Model
from crystalline.spheres.region import RegionTorn, SharedRegion, discard

LIVE = "live.json"
FORMAT = 1
# Weights: step and tokens as int64, then the parameters as float32.  Board: the length of the JSON
# as int64, then the JSON.
PREFIX = np.dtype([("step", "<i8"), ("tokens", "<i8")])
LENGTH = np.dtype("<i8")
LONGEST = 65536  # bytes of live.json, with room to spare

Floats = NDArray[np.float32]

Number = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[^/\x00]+$")]


class Notice(msgspec.Struct):
    """live.json: who shows what under which names; None for what found no room."""

    format: int
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    start: Number
    parameters: Number
    weights: Name | None
    board: Name | None
    problem: str | None


class Broadcast:
    """Shows a training to other processes, from the one that trains.

    It never stops a training: what finds no room in shared memory is not shown, and ``problem``
    says so in one sentence.
    """

    def __init__(self, folder: Path, parameters: int, board_bytes: int) -> None:
        self.folder, self.parameters = Path(folder), parameters
        self.problem: str | None = None
        self._pid = os.getpid()
        self._forget_the_dead()
        self._weights = self._region(PREFIX.itemsize + 4 * parameters, "weights")
        self._board = self._region(LENGTH.itemsize + board_bytes, "board")
        notice = Notice(
            FORMAT, self._pid, _region.process_start(self._pid), parameters,
            _name(self._weights), _name(self._board), self.problem,
        )  # fmt: skip
        path = os.fspath(self.folder / LIVE)
        try:
            write_durably(path + ".new", [msgspec.json.encode(notice)])
            os.replace(path + ".new", path)
        except OSError as error:
            self.problem = f"{path}: cannot be written ({error.strerror or error})"
            self.close()

    def publish(self, flat_weights: Floats, step: int, tokens: int) -> None:
        """The weights (parameters,) after ``step``: they and their step are one version."""
        if flat_weights.shape != (self.parameters,) or flat_weights.dtype != np.float32:
            raise ValueError(
                f"publish: flat_weights is {flat_weights.dtype} {flat_weights.shape}, "
                f"but must be float32 ({self.parameters},)"
            )
        if self._weights is not None:
            self._weights.write(np.array([(step, tokens)], PREFIX), flat_weights)

    def show(self, snapshot: dict[str, Any]) -> None:
        """Replaces what the board says.  Raises UsageError if it is longer than the board."""
        if self._board is None:
            return
        text = msgspec.json.encode(snapshot)
        room = self._board.size - LENGTH.itemsize
        if len(text) > room:
            raise UsageError(
                f"board: the snapshot is {len(text)} bytes of JSON, but room is for {room}; "
                "show less, or make the board larger"
            )
        self._board.write(np.array([len(text)], LENGTH), text)

    def close(self) -> None:
        """Ends the show.  May be called again; a forked child leaves its parent's alone."""
        regions = [region for region in (self._weights, self._board) if region is not None]
        self._weights = self._board = None
        if os.getpid() != self._pid:
            return
        if regions:
            with contextlib.suppress(OSError):  # a file that stays names a process that ends
                remove(os.fspath(self.folder / LIVE))
        for region in regions:
            region.close()
            region.unlink()

    def __enter__(self) -> Broadcast:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _region(self, size: int, what: str) -> SharedRegion | None:
        try:
            return SharedRegion.create(size)
        except CrystallineError as error:
            self.problem = f"the {what} cannot be shown live: {error}"
            return None

    def _forget_the_dead(self) -> None:
        """Removes the segments of a training killed together with its resource tracker."""
        notice = _notice(self.folder)
        if notice is not None and not _runs(notice):
            for name in (notice.weights, notice.board):
                discard(name or "")


class LiveTraining:
    """The training that runs in a folder now, seen from another process.  ``attach`` makes one."""

    def __init__(
        self, folder: Path, notice: Notice, weights: SharedRegion | None, board: SharedRegion | None
    ) -> None:
        self.folder, self.parameters, self._notice = folder, notice.parameters, notice
        self._weights, self._board = weights, board

    @classmethod
    def attach(cls, folder: str | os.PathLike[str]) -> LiveTraining:
        """Raises UsageError where no training runs that shows itself."""
        root = Path(folder)
        notice = _notice(root)
        if notice is None or not _runs(notice):
            _none_runs(root)
        try:
            weights, board = (
                SharedRegion.attach(name) if name else None
                for name in (notice.weights, notice.board)
            )
        except UsageError:
            if not _runs(notice) or not (root / LIVE).exists():  # it ended just now
                _none_runs(root)
            raise
        if (weights is not None and weights.size != PREFIX.itemsize + 4 * notice.parameters) or (
            board is not None and board.size < LENGTH.itemsize
        ):
            raise UsageError(f"{root / LIVE}: does not fit what it names; wait for the next run")
        return cls(root, notice, weights, board)

    @property
    def alive(self) -> bool:
        """Whether the process still runs that was met."""
        return _runs(self._notice)

    @property
    def shown(self) -> bool:
        """Whether the training that was met still shows itself: a process may outlive its own."""
        return self.alive and _notice(self.folder) == self._notice

    def weights(self, out: Floats) -> tuple[int, int]:
        """All parameters of one step into ``out`` (parameters,) float32: the step, the version.

        Raises UsageError where none are shown, or where the training died while it wrote them.
        """
        version, content = self._read(self._weights)
        if out.shape != (self.parameters,) or out.dtype != np.float32:
            raise UsageError(
                f"{self.folder}: the training there has {self.parameters} parameters, float32, "
                f"but they are to go into {out.dtype} {out.shape}"
            )
        if version == 0:
            raise UsageError(f"{self.folder}: the training has shown no weights yet; try again")
        out[...] = content[PREFIX.itemsize :].view(np.float32)
        return int(content[: PREFIX.itemsize].view(PREFIX)["step"][0]), version

    def board(self) -> dict[str, Any]:
        """The last snapshot shown; empty before the first."""
        _, content = self._read(self._board)
        length = int(content[: LENGTH.itemsize].view(LENGTH)[0])
        if length == 0:
            return {}
        start = LENGTH.itemsize
        try:
            return msgspec.json.decode(content[start : start + length].data, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise UsageError(f"{self.folder / LIVE}: names what is no board ({error})") from error

    def close(self) -> None:
        """May be called again; the training goes on."""
        for region in (self._weights, self._board):
            if region is not None:
                region.close()

    def __enter__(self) -> LiveTraining:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _read(self, region: SharedRegion | None) -> tuple[int, NDArray[np.uint8]]:
        if region is None:
            raise UsageError(f"{self.folder}: {self._notice.problem}")
        try:
            return region.read()
        except RegionTorn:
            _none_runs(self.folder)


def load_live(
    folder: str | os.PathLike[str], threads: int | None = None, precision: str = "fp32"
) -> tuple[Model, int]:
    """The model that trains in a folder now, with its weights of a step; and that step.

    Configuration and vocabulary come from the folder's checkpoint.  Raises UsageError where no
    training runs, CheckpointError where it has not saved yet.
    """
    with LiveTraining.attach(folder) as live:
        config, tokenizer, _ = load_model(folder)
        parameters = Parameters(config)
        step, _ = live.weights(parameters.flat)
    return Model(config, tokenizer, parameters.named, threads, precision), step


def _name(region: SharedRegion | None) -> str | None:
    return None if region is None else region.name


def _notice(folder: Path) -> Notice | None:
    """What live.json says, or None if there is nothing to make sense of."""
    try:
        # Whatever lies there instead, a pipe or a device, must not make a training wait.
        fd = os.open(folder / LIVE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            text = file.read(LONGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        notice = msgspec.json.decode(text, type=Notice)
    except (OSError, msgspec.MsgspecError):
        return None
    return notice if notice.format == FORMAT else None


def _runs(notice: Notice) -> bool:
    return notice.start != 0 and _region.process_start(notice.pid) == notice.start


def _none_runs(folder: Path) -> NoReturn:
    raise UsageError(f"{folder}: no training runs there now; crystalline train begins one")
