"""A trained model in use: logits, losses and text, of one sequence or many."""

from __future__ import annotations

import codecs
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.checkpoints.checkpoint import load_model
from crystalline.config import ModelConfig
from crystalline.data.tokenizer import Tokenizer
from crystalline.decoder.decoder import group_order
from crystalline.errors import UsageError
from crystalline.inference.sampling import Sampling
from crystalline.inference.speaker import Speaker, until
from crystalline.inference.weights import Cache, Weights, checked_precision
from crystalline.team import make_team

Floats = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.integer[Any]]
ROWS = 256  # tokens that go through the layers at once


_models: weakref.WeakSet[Model] = weakref.WeakSet()


def _after_fork() -> None:
    """A child gets locks and teams of its own: the parent's may have been held by other threads."""
    for model in _models:
        model._lock, model.team = threading.RLock(), Team(model.team.threads, model.team.isa)


os.register_at_fork(after_in_child=_after_fork)


class Model:
    """A model ready for use; ``load`` and ``train`` return one.  Threads may share it: calls wait
    for each other.

    ``precision`` is how its weights are kept: "fp32", "bf16" or "int8" (docs/generation.md);
    ``weight_bytes`` is the memory they take.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, weights: dict[str, Floats],
        threads: int | None = None, precision: str = "fp32",
    ) -> None:  # fmt: skip
        self.precision = checked_precision(precision)
        self.config, self.tokenizer, self.team = config, tokenizer, make_team(threads)
        self._lock = threading.RLock()
        _models.add(self)
        self._weights = Weights(config, weights, self.team, precision)
        self.weight_bytes = self._weights.nbytes

    # --- forward ----------------------------------------------------------------------------------

    def _checked(self, ids: Ids, least: int = 1) -> NDArray[np.int32]:
        array = np.asarray(ids)
        if array.ndim != 1 or len(array) < least:
            raise UsageError(
                f"ids has shape {array.shape}, but must be a list of {least} or more ids"
            )
        if len(array) > self.config.seq_len:
            raise UsageError(
                f"ids has {len(array)} tokens, but the model knows {self.config.seq_len} "
                "positions; give fewer"
            )
        if array.dtype.kind not in "iu":
            raise UsageError(f"ids are {array.dtype}, but must be whole numbers")
        if array.min() < 0 or array.max() >= self.config.vocab_size:
            raise UsageError(
                f"ids run from {array.min()} to {array.max()}, but must be from 0 to "
                f"{self.config.vocab_size - 1}"
            )
        return array.astype(np.int32, order="C")

    def _hidden(self, ids: Sequence[NDArray[np.int32]], caches: Sequence[Cache]) -> Floats:
        """The normed last hidden states (R, D) of the new tokens, which join their caches."""
        rows = np.array([len(one) for one in ids], np.int64)
        used = np.array([cache.used for cache in caches], np.int64)
        h = np.empty((int(rows.sum()), self.config.dim), np.float32)
        self.team.decode(
            h, self._weights.stack, np.concatenate(ids),
            [cache.keys for cache in caches], [cache.values for cache in caches], rows, used,
        )  # fmt: skip
        for one, cache in zip(ids, caches, strict=True):
            cache.used += len(one)
        return h

    def _prefill(self, ids: NDArray[np.int32], cache: Cache) -> Iterator[Floats]:
        """Hidden states of the tokens, at most ROWS at a time, so memory stays bounded."""
        for at in range(0, len(ids), ROWS):
            yield self._hidden([ids[at : at + ROWS]], [cache])

    def _project(self, h: Floats) -> Floats:
        logits = np.empty((len(h), self.config.vocab_size), np.float32)
        self.team.matmul_weight(logits, h, self._weights.head)
        return logits

    def logits(self, ids: Ids) -> Floats:
        """Logits float32 (T, V) of the token after each of ``ids`` (T,), T at most seq_len."""
        array = self._checked(ids)
        with self._lock:
            cache = Cache(self.config, len(array))
            return np.concatenate([self._project(h) for h in self._prefill(array, cache)])

    def loss(self, ids: Ids) -> float:
        """Mean cross-entropy in nats of ``ids`` (T,) after the first, T from 2 to seq_len."""
        array = self._checked(ids, least=2)
        with self._lock:
            cache = Cache(self.config, len(array))
            h = np.concatenate(list(self._prefill(array[:-1], cache)))
            losses = np.empty(len(h), np.float32)
            groups = group_order(1)[1] * len(h)
            # The head of training wants rows of float32; they are there for the moment only.
            table = np.empty((self.config.vocab_size, self.config.dim), np.float32)
            rows = np.arange(len(table), dtype=np.int32)
            self.team.embedding_weight(table, self._weights.head, rows)
            self.team.head(losses, h, table, array[1:].copy(), groups)
        return float(np.add.accumulate(losses, dtype=np.float64)[-1] / len(h))

    # --- text -------------------------------------------------------------------------------------

    def _tokens(self, prompt: list[int], most: int, sampling: Sampling, seed: int) -> Iterator[int]:
        """New tokens after the prompt, until the end of text or ``most`` of them."""
        return (token for _, token in self._batch([prompt], most, sampling, [seed]))

    def _batch(
        self, prompts: list[list[int]], most: int, sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """(place, token) as they are drawn, for each prompt until its end of text or ``most``."""
        going = [
            Speaker(place, self.config, ids, most, seed)
            for place, (ids, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        while going:
            with self._lock:
                logits = self._next_logits(going)
                drawn = [s.draw(z, sampling, self.team) for s, z in zip(going, logits, strict=True)]
            for speaker, token in zip(going, drawn, strict=True):
                speaker.take(token, self.tokenizer.eot)
                if not speaker.ended:
                    yield speaker.place, token
            going = [s for s in going if not s.ended and s.left]

    def _next_logits(self, going: Sequence[Speaker]) -> Floats:
        """Logits (B, V) of every speaker's next token: long beginnings alone, the rest together."""
        last = np.empty((len(going), self.config.dim), np.float32)
        single = []
        for i, speaker in enumerate(going):
            fresh = speaker.fresh()
            if len(fresh) == 1:
                single.append(i)
                continue
            for h in self._prefill(fresh, speaker.cache):
                last[i] = h[-1]
        if single:
            ids = [going[i].fresh() for i in single]
            last[single] = self._hidden(ids, [going[i].cache for i in single])
        return self._project(last)

    def stream(
        self, prompt: str = "", *, max_tokens: int = 200, seed: int = 0,
        stop: str | Sequence[str] = (), temperature: float = 0.8, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
    ) -> Iterator[str]:  # fmt: skip
        """Yields the text after ``prompt`` as it is made; the prompt itself is not repeated.

        Ends at the end of text, at ``max_tokens``, or before the first of the ``stop`` strings.
        The same seed gives the same text on any number of threads.  Raises UsageError for values
        out of range or of another type, NumericsError where the logits are not finite.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        _check_run(max_tokens, seed)
        stops = _stops(stop)
        pieces = self._pieces(self._tokens(self._ids(prompt), max_tokens, sampling, seed))
        return until(pieces, stops)

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The text after ``prompt``, as one string; the options are those of ``stream``."""
        return "".join(self.stream(prompt, **options))

    def generate_batch(
        self, prompts: Sequence[str], *, max_tokens: int = 200, seed: int = 0,
        stop: str | Sequence[str] = (), temperature: float = 0.8, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
    ) -> list[str]:  # fmt: skip
        """The texts after the prompts, made together: the weights are read once for all of them.

        Text i is that of ``generate(prompts[i], seed=seed + i, ...)``.  Raises as ``stream`` does.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        _check_run(max_tokens, seed)
        if isinstance(prompts, str):
            raise UsageError("prompts is one string, but must be a list of them; use generate")
        if not isinstance(prompts, Iterable):
            kind = type(prompts).__name__
            raise UsageError(f"prompts is {kind}, but must be a list of strings")
        stops, prompts = _stops(stop), list(prompts)
        tokens: list[list[int]] = [[] for _ in prompts]
        seeds = range(seed, seed + len(prompts))
        begun = [self._ids(prompt) for prompt in prompts]
        for place, token in self._batch(begun, max_tokens, sampling, seeds):
            tokens[place].append(token)
        return ["".join(until(self._pieces(iter(one)), stops)) for one in tokens]

    def _ids(self, prompt: str) -> list[int]:
        if not isinstance(prompt, str):
            raise UsageError(f"prompt is {type(prompt).__name__}, but must be a string")
        return self.tokenizer.encode(prompt).tolist() or [self.tokenizer.eot]

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """Text of the tokens; bytes of a character that is not complete yet wait."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        known = self.tokenizer.vocab_size  # the model may have rows that no token belongs to
        for token in tokens:
            if token < known and (text := decoder.decode(self.tokenizer.token_bytes(token))):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text


def _check_run(max_tokens: int, seed: int) -> None:
    for name, value in (("max_tokens", max_tokens), ("seed", seed)):
        if not isinstance(value, Integral):
            raise UsageError(f"{name} is {value!r}, but must be a whole number")
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}, but must be 1 or more")
    if seed < 0:
        raise UsageError(f"seed is {seed}, but must be 0 or more")


def _stops(stop: str | Sequence[str]) -> list[str]:
    if not isinstance(stop, Iterable):
        raise UsageError(f"stop is {stop!r}, but must be a string or a list of strings")
    stops = [stop] if isinstance(stop, str) else list(stop)
    for one in stops:
        if not isinstance(one, str):
            raise UsageError(f"stop holds {one!r}, but must be a string or a list of strings")
    return [s for s in stops if s]


def load(
    folder: str | os.PathLike[str], threads: int | None = None, precision: str = "fp32"
) -> Model:
    """The model in a folder, its weights kept in ``precision``: "fp32", "bf16" or "int8".

    Raises CheckpointError if a file is missing or damaged, UsageError for another precision.
    """
    checked_precision(precision)
    config, tokenizer, weights = load_model(folder)
    return Model(config, tokenizer, weights, threads, precision)
