"""A trained model in use: logits, losses and text, from weights packed once and a cache of keys
and values."""

from __future__ import annotations

import codecs
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.checkpoint import load_model
from crystalline.config import ModelConfig
from crystalline.errors import UsageError
from crystalline.model import Parameters, group_order
from crystalline.positions import rope_tables
from crystalline.sampling import Sampling, draw
from crystalline.team import make_team
from crystalline.tokenizer import Tokenizer

Floats = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.integer[Any]]
ROWS = 256  # tokens that go through the layers at once


_models: weakref.WeakSet[Model] = weakref.WeakSet()


def _after_fork() -> None:
    """A child gets locks and teams of its own: the parent's may have been held by other threads."""
    for model in _models:
        model._lock, model.team = threading.RLock(), Team(model.team.threads, model.team.isa)


os.register_at_fork(after_in_child=_after_fork)


class Cache:
    """Keys (K, Dh, C) and values (K, C, Dh up to 32) of every layer; C is T rounded up to 64."""

    def __init__(self, c: ModelConfig, positions: int) -> None:
        room, wide = -(-positions // 64) * 64, -(-c.head_dim // 32) * 32
        self.keys = [np.zeros((c.kv_heads, c.head_dim, room), np.float32) for _ in range(c.layers)]
        self.values = [np.zeros((c.kv_heads, room, wide), np.float32) for _ in range(c.layers)]
        self.used = 0


class Model:
    """A model ready for use; ``load`` and ``train`` return one.  Threads may share it: calls wait
    for each other."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, weights: dict[str, Floats],
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.team = config, tokenizer, make_team(threads)
        self._lock = threading.RLock()
        _models.add(self)
        self._cosine, self._sine = rope_tables(config.seq_len, config.head_dim, config.rope_theta)
        parameters = Parameters(config)
        parameters.load(weights)
        self._plain: dict[str, Floats] = {}
        self._packed: dict[str, Floats] = {}
        self._head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
        joined = (
            "q_proj",
            "k_proj",
            "v_proj",
            "gate_proj",
            "up_proj",
        )  # used as part of a fused one
        for name, w in parameters.fused.items():
            if name.endswith(tuple(f"{part}.weight" for part in joined)):
                continue
            if w.ndim == 1 or name in ("model.embed_tokens.weight", self._head):
                self._plain[name] = w.copy()
            if w.ndim == 2 and (name == self._head or "embed" not in name):
                self._packed[name] = np.empty(self.team.packed_len(*w.shape), np.float32)
                self.team.pack_weight(self._packed[name], w)

    # --- forward ----------------------------------------------------------------------------------

    def _checked(self, ids: Ids, least: int = 1) -> NDArray[np.int32]:
        array = np.ascontiguousarray(ids, dtype=np.int64)
        if array.ndim != 1 or len(array) < least:
            raise UsageError(
                f"ids has shape {array.shape}, but must be a list of {least} or more ids"
            )
        if len(array) > self.config.seq_len:
            raise UsageError(
                f"ids has {len(array)} tokens, but the model knows {self.config.seq_len} "
                "positions; give fewer"
            )
        if array.min() < 0 or array.max() >= self.config.vocab_size:
            raise UsageError(
                f"ids run from {array.min()} to {array.max()}, but must be from 0 to "
                f"{self.config.vocab_size - 1}"
            )
        return array.astype(np.int32)

    def _hidden(self, ids: NDArray[np.int32], cache: Cache) -> Floats:
        """The normed last hidden state (R, D) of new tokens, which join the cache."""
        c, team, R = self.config, self.team, len(ids)
        x, mid, h = (np.empty((R, c.dim), np.float32) for _ in range(3))
        qkv = np.empty((R, (c.heads + 2 * c.kv_heads) * c.head_dim), np.float32)
        gu, act = np.empty((R, 2 * c.hidden), np.float32), np.empty((R, c.hidden), np.float32)
        rrms = np.empty(R, np.float32)
        team.embedding(x, self._plain["model.embed_tokens.weight"], ids)
        for layer in range(c.layers):
            p = f"model.layers.{layer}."
            team.rmsnorm(h, rrms, x, self._plain[p + "input_layernorm.weight"], c.norm_eps)
            team.matmul_packed(qkv, h, self._packed[p + "self_attn.qkv"])
            team.rope(qkv, self._cosine, self._sine, c.heads + c.kv_heads, R, cache.used)
            team.attention_cached(
                h, qkv, cache.keys[layer], cache.values[layer], c.heads, cache.used
            )
            team.matmul_packed(mid, h, self._packed[p + "self_attn.o_proj.weight"], x)
            team.rmsnorm(
                h, rrms, mid, self._plain[p + "post_attention_layernorm.weight"], c.norm_eps
            )
            team.matmul_packed(gu, h, self._packed[p + "mlp.gate_up"])
            team.swiglu(act, gu)
            team.matmul_packed(x, act, self._packed[p + "mlp.down_proj.weight"], mid)
        team.rmsnorm(h, rrms, x, self._plain["model.norm.weight"], c.norm_eps)
        cache.used += R
        return h

    def _prefill(self, ids: NDArray[np.int32], cache: Cache) -> Iterator[Floats]:
        """Hidden states of the tokens, at most ROWS at a time, so memory stays bounded."""
        for at in range(0, len(ids), ROWS):
            yield self._hidden(ids[at : at + ROWS], cache)

    def _project(self, h: Floats) -> Floats:
        logits = np.empty((len(h), self.config.vocab_size), np.float32)
        self.team.matmul_packed(logits, h, self._packed[self._head])
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
            self.team.head(losses, h, self._plain[self._head], array[1:].copy(), groups)
        return float(np.add.accumulate(losses, dtype=np.float64)[-1] / len(h))

    # --- text -------------------------------------------------------------------------------------

    def _tokens(self, prompt: list[int], most: int, sampling: Sampling, seed: int) -> Iterator[int]:
        """New tokens after the prompt, until the end of text or ``most`` of them.

        When the positions run out the model goes on from the last half of them.
        """
        ids, bits, room = list(prompt), np.random.PCG64(seed), self.config.seq_len
        cache, fresh = Cache(self.config, room), ids
        for _ in range(most):
            if cache.used + len(fresh) > room:
                cache, fresh = Cache(self.config, room), ids[-max(room // 2, 1) :]
            with self._lock:
                for h in self._prefill(np.array(fresh, np.int32), cache):
                    last = h[-1:]
                logits = self._project(np.ascontiguousarray(last))[0]
                token = draw(logits, np.array(ids), sampling, bits, self.team)
            if token == self.tokenizer.eot:
                return
            ids.append(token)
            fresh = [token]
            yield token

    def stream(
        self, prompt: str = "", *, max_tokens: int = 200, seed: int = 0,
        stop: str | Sequence[str] = (), temperature: float = 0.8, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
    ) -> Iterator[str]:  # fmt: skip
        """Yields the text after ``prompt`` as it is made; the prompt itself is not repeated.

        Ends at the end of text, at ``max_tokens``, or before the first of the ``stop`` strings.
        The same seed gives the same text on any number of threads.  Raises ConfigError for values
        out of range.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}, but must be 1 or more")
        if seed < 0:
            raise UsageError(f"seed is {seed}, but must be 0 or more")
        stops = [s for s in ([stop] if isinstance(stop, str) else stop) if s]
        ids = self.tokenizer.encode(prompt).tolist() or [self.tokenizer.eot]
        pieces = self._pieces(self._tokens(ids, max_tokens, sampling, seed))
        return _until(pieces, stops)

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """Text of the tokens; bytes of a character that is not complete yet wait."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            if text := decoder.decode(self.tokenizer.token_bytes(token)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The text after ``prompt``, as one string; the options are those of ``stream``."""
        return "".join(self.stream(prompt, **options))


def _until(pieces: Iterator[str], stops: list[str]) -> Iterator[str]:
    """The pieces up to the first stop string; what may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        keep = max((n for s in stops for n in range(len(s)) if held.endswith(s[:n])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def load(folder: str | os.PathLike[str], threads: int | None = None) -> Model:
    """The model in a folder.  Raises CheckpointError if a file is missing or damaged."""
    config, tokenizer, weights = load_model(folder)
    return Model(config, tokenizer, weights, threads)
