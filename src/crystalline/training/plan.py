"""What is chosen where the user says nothing: vocabulary, sizes, batch, learning rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crystalline._native import Team
from crystalline.config import (
    DEFAULT_INIT,
    DEFAULT_LAMBDA_CORRECTION,
    DEFAULT_ROPE,
    PRESETS,
    ModelConfig,
    TrainConfig,
    parameter_count,
)
from crystalline.errors import ConfigError
from crystalline.training.schedule import Schedule

DEFAULT_MINUTES = 5.0
DEFAULT_SAMPLES = 512  # of the sampled loss
# Learning rate and weight decay beside AdamW's, which has 3e-3 at width 128 (docs/optimizers.md).
# A step takes their product off a weight: with Lion and SGD as much as with AdamW.
FACTORS = {"adamw": (1.0, 1.0), "muon": (3.0, 1.0), "lion": (1 / 4, 4.0), "sgd": (100.0, 1 / 100)}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    batch_size: int
    accumulate: int
    lr: float
    seed: int
    warmup: float = 0.05  # share of the training with a rising learning rate
    floor: float = 0.02  # the learning rate at the end, as a share of its peak
    weight_decay: float = 0.1
    loss: str = "full"
    samples: int = 0  # classes of the sampled loss; 0 with the full one
    precision: str = "fp32"
    packing: bool = False  # several windows in a row
    optimizer: str = "adamw"
    schedule: str = "cosine"
    decay: float = 0.2  # share of the training in which wsd's learning rate falls
    clip: float = 1.0  # the gradient's norm is held to this; 0 leaves it as it is
    embedding_decay: float | None = None  # None: as weight_decay
    norm_decay: float = 0.0
    ema: float = 0.0  # of the average of the weights; 0: none
    patience: int = 0  # validations without improvement that end the training; 0: none do
    min_delta: float = 0.0  # what an improvement must exceed, in nats per token
    init: str = "normal"  # of the embedding; "given" where training began from learnt weights
    lambda_correction: float = 0.0  # every gradient is multiplied by 1 less this
    boundary_counters: bool = True
    seq_len: int = 0  # T of the training; 0: as many tokens as the model knows positions

    @property
    def learning_rate(self) -> Schedule:
        """The course of the learning rate."""
        return Schedule(self.schedule, self.warmup, self.floor, self.decay)

    @property
    def sequences(self) -> int:
        """Sequences of one step."""
        return self.batch_size * self.accumulate

    @property
    def lends_gradients(self) -> bool:
        """Whether activations may lie in the gradients' memory: nothing is added to gradients."""
        return self.accumulate == 1


# (width, layers, width of a head, sequence length): what is chosen from, smallest first.
LADDER = [
    (64, 3, 32, 64),
    (128, 4, 32, 256),
    (192, 5, 32, 128),
    (256, 6, 32, 128),
    (384, 6, 64, 256),
    (512, 8, 64, 256),
    (768, 12, 64, 512),
]
TOKENS_PER_PARAMETER = 2.5  # trained, at least: fewer do not teach a larger model more
PARAMETERS_PER_TOKEN = 2.5  # of the text, at most: a larger model learns a short text by heart
# With so many passes a model learns a text by heart while the rate falls: from there on it stays,
# and falls over the last of them.
MANY_PASSES, FALLING_PASSES = 20, 15


@dataclass(frozen=True)
class Budget:
    """How much training there will be: ``seconds`` on a machine of ``flops``, or the options'
    steps or epochs, over a text of about ``corpus_tokens``."""

    options: TrainConfig
    corpus_tokens: int
    seconds: float | None = None
    flops: float = 1e9

    def tokens(self, c: ModelConfig) -> float:
        """Tokens that model ``c`` will be trained on."""
        if self.seconds is not None:
            samples = chosen_samples(self.options, c.vocab_size)
            return self.seconds * self.flops / flops_per_token(c, samples)
        if self.options.steps is not None:
            batch = self.options.batch_size or default_batch(c)
            return float(self.options.steps * batch * (self.options.accumulate or 1) * c.seq_len)
        return (self.options.epochs or 1.0) * self.corpus_tokens

    def feeds(self, c: ModelConfig) -> bool:
        """Whether the training and the text are long enough for ``c``."""
        size = parameter_count(c)
        return (
            self.tokens(c) >= TOKENS_PER_PARAMETER * size
            and size <= PARAMETERS_PER_TOKEN * self.corpus_tokens
        )


def bytes_per_token(V: int) -> float:
    """Of prose or code, about, with a vocabulary of V learnt from it (docs/forecast.md)."""
    return 1.0 + 3.6 * (1.0 - math.exp(-math.log(max(V, 257) / 256.0) / 2.6))


def ladder_config(rung: int, vocab_size: int) -> ModelConfig:
    """The model of one rung: feed-forward width 8/3 of the width, rounded up to 16."""
    dim, layers, head_dim, seq_len = LADDER[rung]
    hidden = -(-(8 * dim // 3) // 16) * 16
    heads = dim // head_dim
    return ModelConfig(vocab_size, dim, layers, heads, heads, hidden, seq_len)


def machine_flops(team: Team, precision: str = "fp32") -> float:
    """What training does in a second here: two thirds of a matrix product's best speed."""
    n, narrow = 512, precision == "bf16" and team.has_bf16
    x, y = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    half = np.zeros((n, n), np.uint16)

    def multiply() -> None:
        if narrow:
            team.matmul_bf16(y, half, x)
        else:
            team.matmul(y, x, x)

    multiply()
    spent = []
    for _ in range(8):
        begun = time.perf_counter()
        multiply()
        spent.append(time.perf_counter() - begun)
    return 0.66 * 2.0 * n**3 / min(spent)


def flops_per_token(c: ModelConfig, samples: int = 0) -> float:
    """Arithmetic of one trained token: 6 a weight of the layers, 12 L T D, 6 V D (with the sampled
    loss 6 S D)."""
    layers = parameter_count(c) - c.vocab_size * c.dim * (1 if c.tied else 2)
    classes = samples or c.vocab_size
    return 6.0 * layers + 12.0 * c.layers * c.seq_len * c.dim + 6.0 * classes * c.dim


def chosen_samples(options: TrainConfig, V: int) -> int:
    """Classes of the sampled loss, 0 with the full one; ``check_samples`` judges them."""
    if options.loss != "sampled":
        return 0
    return options.samples or min(DEFAULT_SAMPLES, V)


def check_samples(options: TrainConfig, V: int) -> None:
    """ConfigError where ``samples`` does not fit the loss or the vocabulary."""
    if options.samples is None:
        return
    if options.loss != "sampled":
        raise ConfigError(
            f"samples is {options.samples}, but loss is {options.loss}; choose loss sampled, or "
            "leave out samples"
        )
    if options.samples > V:
        raise ConfigError(
            f"samples is {options.samples}, but the vocabulary has {V} tokens; choose {V} or fewer"
        )


def choose_model(budget: Budget, vocab_size: int) -> ModelConfig:
    """The model: the preset, or the largest rung that the budget feeds, with what was said."""
    options = budget.options
    if options.preset is not None:
        base = replace(PRESETS[options.preset], vocab_size=vocab_size)
    else:
        rungs = [ladder_config(rung, vocab_size) for rung in range(len(LADDER))]
        base = ([rungs[0]] + [c for c in rungs if budget.feeds(c)])[-1]
    said = {
        name: value
        for name in ("dim", "layers", "heads", "kv_heads", "hidden", "seq_len")
        if (value := getattr(options, name)) is not None
    }
    if "dim" in said and "hidden" not in said:
        said["hidden"] = -(-(8 * said["dim"] // 3) // 16) * 16
    if "dim" in said and "heads" not in said:
        said["heads"] = default_heads(said["dim"])
    if "heads" in said and "kv_heads" not in said:
        said["kv_heads"] = said["heads"]
    return replace(base, rope=options.rope or DEFAULT_ROPE, **said)


def default_heads(dim: int) -> int:
    """Heads about 32 or 64 wide (from width 384 up) that divide the width evenly."""
    wanted = dim // (64 if dim >= 384 else 32)
    for heads in range(max(wanted, 1), 0, -1):
        if dim % (2 * heads) == 0:
            return heads
    return 1


def default_batch(c: ModelConfig) -> int:
    """Sequences of a batch: about 1500 tokens for small models, more for large ones."""
    tokens = 1536 if c.dim <= 128 else 3072 if c.dim <= 256 else 6144
    return max(1, round(tokens / c.seq_len))


def choose_recipe(budget: Budget, c: ModelConfig, learnt: bool = False) -> Recipe:
    """Batch, learning rate, weight decay, and the optimizer: where time is what was said, the one
    that gets furthest in it (Tiny Shakespeare, width 128, 90 s: Muon 2.057, AdamW 2.064).
    Weights that are ``learnt`` already go on with AdamW, by which most were taught.

    The decay is 0.12 for every pass over the text, up to 1: what is seen often is learnt by heart
    unless weights are held small (Tiny Shakespeare, ten passes, width 128: 2.12 bits per byte with
    0.1, 2.08 with 0.5, 2.07 with 1).
    """
    options, passes = budget.options, budget.tokens(c) / max(budget.corpus_tokens, 1)
    timed = budget.seconds is not None and not learnt
    optimizer = options.optimizer or ("muon" if timed else "adamw")
    rate, decay = FACTORS[optimizer]
    said = {
        name: value
        for name in ("schedule", "warmup", "floor", "decay", "clip", "weight_decay",
                     "embedding_decay", "norm_decay", "ema", "lambda_correction")
        if (value := getattr(options, name)) is not None
    }  # fmt: skip
    chosen: dict[str, Any] = {
        "weight_decay": decay * round(min(max(0.12 * passes, 0.1), 1.0), 2),
        "lambda_correction": DEFAULT_LAMBDA_CORRECTION,
    }
    shaped = {"schedule", "decay", "warmup", "floor"} & said.keys()
    if timed and passes > MANY_PASSES and not shaped:
        chosen |= {"schedule": "wsd", "decay": round(FALLING_PASSES / passes, 3)}
    return Recipe(
        batch_size=options.batch_size or default_batch(c),
        accumulate=options.accumulate or 1,
        lr=options.lr or rate * 3e-3 * (128 / max(c.dim, 128)) ** 0.5,
        seed=options.seed,
        loss=options.loss,
        samples=chosen_samples(options, c.vocab_size),
        precision=options.precision,
        patience=options.patience or 0,
        min_delta=options.min_delta or 0.0,
        optimizer=optimizer,
        init=options.init or DEFAULT_INIT,
        boundary_counters=options.boundary_counters,
        **{**chosen, **said},
    )


CONTINUED_LR = 0.1  # of the learning rate that a model of that width begins with
CONTINUED_TOKENS = 2048  # of a batch


def continued_recipe(budget: Budget, c: ModelConfig, T: int) -> Recipe:
    """The recipe of a training that begins from learnt weights, with sequences of T tokens.

    A tenth of the learning rate, as too high a one undoes what was learnt before it teaches; small
    batches, as such models are deep and every layer keeps a batch's activations.
    """
    options = budget.options
    recipe = choose_recipe(budget, replace(c, seq_len=T), learnt=True)
    return replace(
        recipe,
        batch_size=options.batch_size or max(1, CONTINUED_TOKENS // T),
        lr=options.lr or CONTINUED_LR * recipe.lr,
        init="given",
        seq_len=0 if c.seq_len == T else T,
    )
