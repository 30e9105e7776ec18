"""The decoder: weights in one block, activations in another, and the graph that uses them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.checkpoints.pending import Tensor
from crystalline.config import (
    PRECISIONS,
    ModelConfig,
    parameter_count,
    parameter_shapes,
    parameter_spans,
)
from crystalline.decoder.activations import decoder_arrays, layout, views
from crystalline.decoder.layers import FP32, Floats, SampledHead, Workspace, decoder_steps
from crystalline.decoder.layers_bf16 import BF16
from crystalline.decoder.memory import arena
from crystalline.decoder.positions import model_tables, window_starts
from crystalline.decoder.sparse import EMBEDDING
from crystalline.errors import UsageError
from crystalline.lattice.embedding import SIGMA, lattice_embedding

GROUPS = 12
DRAWS = 3  # of 64 bits, for a normal number


class Parameters:
    """Weights, gradients or moments: one flat array with a view for every name.

    Beside the names of the file format there are ``self_attn.qkv`` and ``mlp.gate_up``: what lies
    next to each other in memory, as one matrix.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.flat = arena(parameter_count(config))
        self.named: dict[str, Floats] = {}
        self.spans = parameter_spans(config)
        for name, shape in parameter_shapes(config).items():
            begin, end = self.spans[name]
            self.named[name] = self.flat[begin:end].reshape(shape)
        self.fused = dict(self.named)
        for layer in range(config.layers):
            p = f"model.layers.{layer}."
            self.fused[p + "self_attn.qkv"] = self._joined(
                p + "self_attn.q_proj.weight", p + "self_attn.v_proj.weight"
            )
            self.fused[p + "mlp.gate_up"] = self._joined(
                p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight"
            )

    def _joined(self, first: str, last: str) -> Floats:
        return self.flat[self.spans[first][0] : self.spans[last][1]].reshape(-1, self.config.dim)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies tensors named and shaped like these."""
        for name, view in self.named.items():
            view[...] = np.asarray(tensors[name])


def initialise(parameters: Parameters, seed: int, init: str = "normal") -> None:
    """Normal weights of deviation 0.02, the layers' outputs 0.02 / sqrt(2 L); norm gains one.

    With ``init`` "lattice" the embedding follows from no seed; the others are the same in both.

    A value is the sum of twelve 16-bit uniform integers (variance 1, mean 0 after centring): only
    integer draws and exact arithmetic, so no machine's logarithm can change a bit.
    """
    c = parameters.config
    bits = np.random.PCG64(seed)
    for name, view in parameters.named.items():
        if view.ndim == 1:
            view[...] = 1.0
            continue
        if name == EMBEDDING and init == "lattice":
            lattice_embedding(view)
            bits.advance(DRAWS * view.size)
            continue
        sigma = SIGMA
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            sigma /= (2 * c.layers) ** 0.5
        draw_normal(view, bits, sigma)


def draw_normal(view: Floats, bits: np.random.PCG64, sigma: float) -> None:
    """Fills ``view`` with about normal values, the same on every machine (see ``initialise``)."""
    flat = view.reshape(-1)
    for at in range(0, flat.size, 1 << 18):
        n = min(1 << 18, flat.size - at)
        draws = bits.random_raw(DRAWS * n).view(np.uint16).reshape(n, 12).sum(1, dtype=np.int64)
        flat[at : at + n] = (draws - 6 * 65535) * (sigma / 65536)


def group_order(B: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order in which B sequences are laid out, group by group (sequence s is of group s mod
    12), and the 13 starts of the groups, in sequences."""
    order = np.argsort(np.arange(B) % GROUPS, kind="stable")
    return order, group_starts(B)


def group_starts(B: int) -> NDArray[np.int64]:
    """The 13 starts alone, which take no memory however many sequences there are."""
    sizes = [(B + GROUPS - 1 - g) // GROUPS for g in range(GROUPS)]
    return np.cumsum([0, *sizes], dtype=np.int64)


def check_precision(c: ModelConfig, team: Team, precision: str) -> None:
    """UsageError where a model cannot be trained in ``precision`` by this team."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, but must be {' or '.join(PRECISIONS)}")
    if precision == "bf16" and not team.has_bf16:
        raise UsageError(
            "precision is bf16, but this CPU has no AVX512_BF16 (or CRYSTALLINE_ISA rules it out); "
            "choose fp32"
        )
    if precision == "bf16" and c.hidden % 2:
        raise UsageError(f"hidden is {c.hidden}, but must be even for bf16; choose {c.hidden + 1}")


class Decoder:
    """Forward and backward over batches of B sequences of T tokens, planned at birth.

    ``gradients`` None plans for losses only, with one layer's activations.  With ``log_expected``
    (V,) gradients are those of the sampled loss.  ``precision`` is "fp32", or "bf16" for bf16
    operands (see ``check_precision``).  ``lend_gradients`` keeps activations in the gradients'
    memory until these are set: they cannot be added to, and last only until the next forward.
    """

    def __init__(
        self, weights: Parameters, team: Team, B: int, T: int, gradients: Parameters | None = None,
        precision: str = "fp32", log_expected: Floats | None = None, lend_gradients: bool = False,
    ) -> None:  # fmt: skip
        c, training, sampled = weights.config, gradients is not None, log_expected is not None
        check_precision(c, team, precision)
        kinds = BF16 if precision == "bf16" else FP32
        if sampled:
            kinds = (*kinds[:2], SampledHead)
        self.lends = lend_gradients and training
        arrays = decoder_arrays(c, B, T, training, precision == "bf16", sampled)
        self.layout = layout(arrays, c, self.lends)
        wide, narrow = views(arrays, self.layout, gradients.flat if gradients else None)
        self.config, self.B, self.T = c, B, T
        self.order, starts = group_order(B)
        cosine, sine = model_tables(c, T)
        self.space = Workspace(
            config=c, team=team, w=weights.fused, g=gradients.fused if gradients else {},
            a=wide, n=narrow, cosine=cosine, sine=sine, groups=starts * T,
            ids=np.zeros(B * T, np.int32), targets=np.zeros(B * T, np.int32),
            lengths=np.full(B, T, np.int64), T=T, log_expected=log_expected,
        )  # fmt: skip
        self._lengths, self._positions = self.space.lengths, np.zeros(B * T, np.int32)
        self.steps = decoder_steps(c, training, kinds)
        self.group_losses = [0.0] * GROUPS  # of the last batch
        rows = np.diff(starts * T)
        self._by_group = np.zeros((GROUPS, int(rows.max())))  # losses, a group's in its own row
        self._places = np.flatnonzero(np.arange(self._by_group.shape[1]) < rows[:, None])

    def _take(
        self, ids: NDArray[np.int32], targets: NDArray[np.int32],
        positions: NDArray[np.int32] | None = None,
    ) -> None:  # fmt: skip
        if ids.shape != (self.B, self.T) or targets.shape != ids.shape:
            raise ValueError(
                f"batch is {ids.shape} with targets {targets.shape}, "
                f"but was planned as ({self.B}, {self.T})"
            )
        self._lay_out(ids, self.space.ids)
        self._lay_out(targets, self.space.targets)
        # What comes after the last target can change nothing: attention leaves it out.
        if positions is not None:
            self._take_windows(positions)
            return
        self.space.starts = self.space.positions = None
        self.space.lengths = self._lengths
        self.space.lengths[...] = self.T
        if self.space.targets.min() < 0:
            learnt = self.space.targets.reshape(self.B, self.T) >= 0
            self.space.lengths[...] = np.where(learnt, np.arange(1, self.T + 1), 0).max(1)

    def _lay_out(self, given: NDArray[np.int32], to: NDArray[np.int32]) -> None:
        """The sequences group by group."""
        # No index is outside; only with "clip" does NumPy write without a copy between.
        np.take(given, self.order, 0, to.reshape(self.B, self.T), "clip")

    def _take_windows(self, positions: NDArray[np.int32]) -> None:
        s = self.space
        if positions.shape != (self.B, self.T) or positions.dtype != np.int32:
            raise ValueError(
                f"positions are {positions.shape} of {positions.dtype}, "
                f"but must be ({self.B}, {self.T}) of int32"
            )
        window_starts(positions)  # whose errors name a sequence by the caller's order
        self._lay_out(positions, self._positions)
        s.positions = self._positions
        s.starts = window_starts(s.positions.reshape(self.B, self.T))
        learnt = np.where(s.targets >= 0, s.positions + np.int64(1), 0)
        s.lengths = np.maximum.reduceat(learnt, s.starts[:-1])

    def _loss(self) -> float:
        """The sum of the losses: in a group in row order, then by the tree of the groups."""
        self._by_group.reshape(-1)[self._places] = self.space.a["losses"]
        # Adding up shows every sum on the way: left to right, on any CPU.  Zeros change nothing.
        s = self.group_losses = np.add.accumulate(self._by_group, 1)[:, -1].tolist()
        q = [(s[j] + s[j + 1]) + s[j + 2] for j in range(0, GROUPS, 3)]
        return float(((q[0] + q[1]) + q[2]) + q[3])

    def loss(
        self, ids: NDArray[np.int32], targets: NDArray[np.int32],
        positions: NDArray[np.int32] | None = None,
    ) -> float:  # fmt: skip
        """The summed cross-entropy in nats of ids, targets (B, T); targets of -1 do not count.

        ``positions`` (B, T) int32 packs windows into the sequences: they begin where it is 0, rise
        by one, and each is as if it stood in a row alone, to the last bit.  None: a sequence is one
        window.  ValueError where positions are anything else.
        """
        self._take(ids, targets, positions)
        for step in self.steps:
            step.forward(self.space)
        return self._loss()

    def gradient(
        self, ids: NDArray[np.int32], targets: NDArray[np.int32], scale: float, accumulate: bool,
        samples: NDArray[np.int32] | None = None,
        positions: NDArray[np.int32] | None = None,
    ) -> float:  # fmt: skip
        """As ``loss``; the gradients of scale * loss are set, or added with ``accumulate``.

        With the sampled loss it is among ``samples`` (rising), and the gradients of embedding and
        output weight are added in any case, to the rows of ids, targets and samples alone.
        """
        if accumulate and self.lends:
            raise ValueError("gradients that are lent to activations cannot be added to")
        self._take(ids, targets, positions)
        self.space.samples = samples
        self.space.scale, self.space.accumulate = scale, accumulate
        for step in self.steps[:-1]:
            step.forward(self.space)
        for step in reversed(self.steps):
            step.backward(self.space)
        return self._loss()
