"""How well a model predicts texts.

    nats(text)     the sum of -ln p(token | those before it) over its tokens and its end of text
    loss           nats / predictions                     perplexity   e^loss
    bits per byte  nats / ln 2 / bytes of the text in UTF-8

Tokens differ from vocabulary to vocabulary, bytes do not: models are compared in bits per byte.
What the tokens of a window cost, and then the windows, are added exactly and rounded once: a figure
depends on the texts and the windows alone. A training's validation is made of the same sums.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystalline._native import Team
from crystalline.checkpoints.checkpoint import STATE, load_model
from crystalline.config import PRECISIONS
from crystalline.data.batches import NO_LOSS
from crystalline.data.reading import Skipped, Source, collect, shown
from crystalline.data.shards import TokenStore
from crystalline.data.tokenizer import Tokenizer
from crystalline.decoder.decoder import Decoder, Parameters, check_precision
from crystalline.errors import DataError, NumericsError, UsageError
from crystalline.evaluation.windows import Row, window_nats, windows
from crystalline.team import make_team

BATCH_TOKENS = 3072  # measured together: the layers' matrices are read once for so many
GROUP = 4 << 20  # characters of text read before they are encoded together

OnProgress = Callable[[float, float], None]  # bytes of text done, and bytes in all


@dataclass(frozen=True)
class Document:
    """A text as it is measured: ``tokens`` (n,) begin and end with the end-of-text token, ``size``
    is its length in bytes of UTF-8."""

    name: str
    tokens: Row
    size: int


@dataclass(frozen=True)
class Score:
    """What one text, or all of them, cost the model."""

    name: str
    tokens: int  # predictions: the end of a text counts, its beginning does not
    bytes: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """e^loss; infinite where no float is as large."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """What the text would take in a perfect coder that asks the model."""
        return self.nats / math.log(2) / max(self.bytes, 1)

    def described(self) -> dict[str, Any]:
        """JSON-able."""
        finite = math.isfinite(self.perplexity)
        return {
            "name": self.name, "tokens": self.tokens, "bytes": self.bytes, "nats": self.nats,
            "loss": self.loss, "perplexity": self.perplexity if finite else None,
            "bits_per_byte": self.bits_per_byte,
        }  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """The scores of all texts, and how they were taken."""

    total: Score
    documents: list[Score]
    skipped: list[Skipped]
    seq_len: int
    stride: int
    precision: str


class Measure:
    """Windows of a model's texts, measured batch by batch in memory that is planned once."""

    def __init__(
        self, weights: Parameters, team: Team, eot: int, seq_len: int, stride: int,
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        self.weights, self.team, self.eot = weights, team, eot
        self.seq_len, self.stride, self.precision = seq_len, stride, precision
        self.most = max(1, BATCH_TOKENS // seq_len)
        self.decoder: Decoder | None = None

    def scores(
        self, documents: Iterable[Document], total: float, on_progress: OnProgress | None = None
    ) -> tuple[Score, list[Score]]:
        """All together and one by one; ``total`` is about how many bytes the documents have.

        Raises NumericsError where the model's losses are not finite, DataError without documents.
        """
        told: list[tuple[str, int, int]] = []
        sums: list[list[float]] = []
        rows: list[tuple[int, Row, Row]] = []
        done = 0.0

        def measure() -> None:
            nonlocal done
            for (place, _, targets), nats in zip(rows, self._batch(rows), strict=True):
                sums[place].append(nats)
                _, tokens, size = told[place]
                done += int((targets >= 0).sum()) / tokens * size
            rows.clear()
            if on_progress is not None:
                on_progress(min(done, total), total)

        for place, document in enumerate(documents):
            told.append((document.name, len(document.tokens) - 1, document.size))
            sums.append([])
            for ids, targets in windows(document.tokens, self.seq_len, self.stride):
                rows.append((place, ids, targets))
                if len(rows) == self.most:
                    measure()
        if rows:
            measure()
        if not told:
            raise DataError("no text to measure on; give a file or a folder that holds text")
        each = [Score(*one, math.fsum(nats)) for one, nats in zip(told, sums, strict=True)]
        tokens, size = sum(s.tokens for s in each), sum(s.bytes for s in each)
        return Score("all", tokens, size, math.fsum(n for nats in sums for n in nats)), each

    def _batch(self, rows: Sequence[tuple[int, Row, Row]]) -> list[float]:
        """The nats of each window.  A batch that is not full is the last one, or the only one: then
        memory is planned for no more than it has."""
        if self.decoder is None:
            self.decoder = Decoder(
                self.weights, self.team, len(rows), self.seq_len, precision=self.precision
            )
        ids = np.full((self.decoder.B, self.seq_len), self.eot, np.int32)
        targets = np.full(ids.shape, NO_LOSS, np.int32)
        for row, (_, its_ids, its_targets) in enumerate(rows):
            ids[row, : len(its_ids)] = its_ids
            targets[row, : len(its_targets)] = its_targets
        self.decoder.loss(ids, targets)
        nats = window_nats(self.decoder)[: len(rows)]
        if not all(map(math.isfinite, nats)):
            raise NumericsError(
                "the loss is not finite; the model's weights are too large or damaged: choose "
                "precision fp32, or train again"
            )
        return nats


def evaluate(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]] = (),
    *,
    seq_len: int | None = None,
    stride: int | None = None,
    precision: str | None = None,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measures the model in a folder on files, folders and all below them; without ``paths`` on
    the text that its training held out.

    A text longer than ``seq_len`` (the model's own, or fewer tokens) is cut in windows that begin
    ``stride`` tokens apart (``seq_len``; fewer give each prediction more context).  ``precision``
    is that of the model's training where this CPU has it, else fp32.  Raises UsageError,
    DataError, CheckpointError, NumericsError.
    """
    root = Path(folder)
    config, tokenizer, tensors = load_model(root)
    T = _within("seq_len", seq_len, config.seq_len, "the model knows so many positions")
    S = _within("stride", stride, T, "a window has so many tokens")
    team = make_team(threads)
    if precision is None:
        precision = _trained_in(root)
        if precision == "bf16" and not team.has_bf16:
            precision = "fp32"
    check_precision(config, team, precision)
    skipped: list[Skipped] = []
    if paths:
        sources, skipped = collect(paths)
        documents, size = _read(sources, tokenizer), sum(source.size for source in sources)
    else:
        documents, size = held_out(root, tokenizer)
    weights = Parameters(config)
    weights.load(tensors)
    del tensors
    measure = Measure(weights, team, tokenizer.eot, T, S, precision)
    total, each = measure.scores(documents, size, on_progress)
    return Evaluation(total, each, skipped, T, S, precision)


def _within(name: str, value: int | None, most: int, why: str) -> int:
    if value is None:
        return most
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(
            f"{name} is {value!r}, but must be a whole number from 1 to {most}: {why}; "
            f"choose {most}"
        )
    return value


def _trained_in(root: Path) -> str:
    """The precision of the training in a folder; fp32 where there is none."""
    try:  # no more than a default: what cannot be read decides nothing
        said = json.loads((root / STATE).read_bytes())["recipe"]["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return "fp32"
    return str(said) if said in PRECISIONS else "fp32"


def _read(sources: Iterable[Source], tokenizer: Tokenizer) -> Iterator[Document]:
    """Texts as they are stored for training; encoded together, as many as a group holds."""
    group: list[tuple[str, str]] = []
    size = 0
    for source in sources:
        group.append((shown(source.path), source.read()))
        size += len(group[-1][1])
        if size >= GROUP:
            yield from _encoded(group, tokenizer)
            group, size = [], 0
    yield from _encoded(group, tokenizer)


def _encoded(group: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[Document]:
    end = np.array([tokenizer.eot], np.int32)
    rows = tokenizer.encode_batch(text for _, text in group)
    for (name, text), ids in zip(group, rows, strict=True):
        yield Document(name, np.concatenate([end, ids, end]), len(text.encode()))


def held_out(root: Path, tokenizer: Tokenizer) -> tuple[Iterator[Document], int]:
    """What the training in a folder held out, and how many bytes that is."""
    has_data = (root / "data").exists() or (root / "data.new").exists()
    split = TokenStore.open(root).val if has_data else None
    if split is None or not split.documents:
        raise DataError(f"{root}: holds no held-out text; name files or folders to measure on")
    sizes = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])

    def documents() -> Iterator[Document]:
        for number, (a, b) in enumerate(zip(split.offsets, split.offsets[1:], strict=False)):
            tokens = split.slice(int(a), int(b))
            yield Document(f"held out {number + 1}", tokens, int(sizes[tokens].sum()))

    return documents(), split.bytes
