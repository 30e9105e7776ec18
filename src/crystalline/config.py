"""What a model is and what a training run was asked for: two frozen records, checked at birth.

A ModelConfig or TrainConfig that exists is valid. Whatever breaks a rule raises ConfigError in one
line: the field, its value, the rule, and a value that works.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from crystalline.checkpoints.llama_config import HF_KEYS, from_keys, to_keys
from crystalline.decoder.scaling import RopeScaling
from crystalline.errors import ConfigError
from crystalline.lattice.constants import EINSTEIN_LAMBDA
from crystalline.rules import INT32_MAX, named, real_number, refuse, whole_number

MOST_LAYERS = 10_000  # every layer has its entries in tables: more would fill the memory
SEED_MAX = 2**63 - 1
MOST_THREADS = 4096
ROPES = ("standard", "lattice")
INITS = ("normal", "lattice")
SMALLEST_VOCAB = 257  # a byte-level tokenizer needs the 256 bytes and the end-of-text token


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _near(allowed: Iterable[int], value: int) -> str:
    """The allowed values nearest to ``value``, three at most, in words."""
    nearest = sorted(allowed, key=lambda a: (abs(a - value), a))[:3]
    *most, last = [str(a) for a in nearest]
    return f"{', '.join(most)} or {last}" if most else last


def _check_model(values: Mapping[str, object], shown: Mapping[str, str]) -> dict[str, Any]:
    """Return the values with their exact types; ``shown`` says what errors call each field."""
    works = {"vocab_size": 10000, "dim": 256, "layers": 4, "heads": 1, "kv_heads": 1,
             "hidden": 688, "seq_len": 256}  # fmt: skip
    smallest = {"vocab_size": 2, "dim": 2}
    largest = {"layers": MOST_LAYERS}
    out: dict[str, Any] = {
        field: whole_number(
            shown[field], values[field], smallest.get(field, 1), largest.get(field, INT32_MAX), good
        )
        for field, good in works.items()
    }
    dim, heads, kv_heads = out["dim"], out["heads"], out["kv_heads"]
    if dim % 2:
        refuse(shown["dim"], dim, "must be even", f"{dim - 1}")
    if dim % (2 * heads):
        rule = f"{shown['dim']} {dim} must divide into that many heads of an even width"
        refuse(shown["heads"], heads, rule, _near(_divisors(dim // 2), heads))
    if heads % kv_heads:
        rule = f"{shown['heads']} {heads} must be a multiple of it"
        refuse(shown["kv_heads"], kv_heads, rule, _near(_divisors(heads), kv_heads))
    out["rope_theta"] = real_number(shown["rope_theta"], values["rope_theta"], 1.0, 1e12, 10000.0)
    out["norm_eps"] = real_number(shown["norm_eps"], values["norm_eps"], 1e-12, 0.1, 1e-5)
    if not isinstance(values["tied"], bool):
        refuse(shown["tied"], values["tied"], "must be true or false", "true")
    out["tied"] = values["tied"]
    scaling = values.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, RopeScaling):
        refuse("rope_scaling", scaling, "must be a RopeScaling", "None")
    out["rope_scaling"] = scaling
    out["rope"] = named("rope", values.get("rope", "standard"), ROPES)
    if out["rope"] != "standard" and scaling is not None:
        rule = "the lattice's frequencies cannot be stretched, which rope_scaling says"
        refuse("rope", out["rope"], rule, "standard")
    return out


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a Llama-style decoder: V = vocab_size, D = dim, L = layers, H = heads,
    K = kv_heads, F = hidden, T = seq_len. Raises ConfigError at birth if they do not fit."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    seq_len: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True
    rope_scaling: RopeScaling | None = None
    rope: str = "standard"  # with "lattice", rope_theta has no meaning

    def __post_init__(self) -> None:
        checked = _check_model(vars(self), {field: field for field in HF_KEYS})
        for field, value in checked.items():  # an int given for a float becomes one
            object.__setattr__(self, field, value)

    @property
    def head_dim(self) -> int:
        """Width of one head, D / H: even, because rotary positions turn pairs."""
        return self.dim // self.heads

    def to_hf(self, eot: int, bos: int | None = None) -> dict[str, Any]:
        """The config.json of a LlamaForCausalLM whose texts end with token ``eot`` and begin with
        ``bos``, or with ``eot`` too.

        ``torch_dtype`` and a plain ``rope_theta`` are the spellings every version of transformers
        and the GGUF converters read; transformers 5 takes them silently as ``dtype`` and
        ``rope_parameters``.  With ``rope`` "lattice" it says that it is no Llama.
        """
        return to_keys(self, eot, eot if bos is None else bos)

    @classmethod
    def from_hf(cls, d: Mapping[str, Any], where: str) -> ModelConfig:
        """Read a config.json; ConfigError names ``where``, the key, and what does not fit."""
        try:
            config = cls(**_check_model(from_keys(d), HF_KEYS))
            if d.get("head_dim") not in (None, config.head_dim):
                rule = f"hidden_size / num_attention_heads is {config.head_dim}"
                refuse("head_dim", d["head_dim"], rule, f"a model with {config.head_dim}")
            return config
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def parameter_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape (out, in), in the order in which they lie in the arena.

    The names are Hugging Face's. There is no padding: q, k, v are neighbours and gate, up are
    neighbours, so that the model can multiply by each run as by one matrix.
    """
    D, F, kv = c.dim, c.hidden, c.kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, D)}
    for layer in range(c.layers):
        p = f"model.layers.{layer}."
        shapes[p + "input_layernorm.weight"] = (D,)
        shapes[p + "self_attn.q_proj.weight"] = (D, D)
        shapes[p + "self_attn.k_proj.weight"] = (kv, D)
        shapes[p + "self_attn.v_proj.weight"] = (kv, D)
        shapes[p + "self_attn.o_proj.weight"] = (D, D)
        shapes[p + "post_attention_layernorm.weight"] = (D,)
        shapes[p + "mlp.gate_proj.weight"] = (F, D)
        shapes[p + "mlp.up_proj.weight"] = (F, D)
        shapes[p + "mlp.down_proj.weight"] = (D, F)
    shapes["model.norm.weight"] = (D,)
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, D)
    return shapes


def parameter_spans(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """Where each weight begins and ends in the arena."""
    spans, at = {}, 0
    for name, shape in parameter_shapes(c).items():
        spans[name] = at, at + math.prod(shape)
        at = spans[name][1]
    return spans


def parameter_count(c: ModelConfig) -> int:
    """Number of weights; tied embeddings count once."""
    # Every layer has as many: two tell what thousands have.
    one, two = (
        sum(math.prod(shape) for shape in parameter_shapes(replace(c, layers=n)).values())
        for n in (1, 2)
    )
    return one + (c.layers - 1) * (two - one)


PRESETS: dict[str, ModelConfig] = {
    "seed": ModelConfig(10000, 256, 4, 8, 8, 688, 256),
    "nano": ModelConfig(65, 128, 4, 4, 4, 352, 64),
    "m": ModelConfig(32000, 768, 12, 12, 12, 2048, 512),
}


PRECISIONS = ("fp32", "bf16")
LOSSES = ("full", "sampled")
OPTIMIZERS = ("adamw", "muon", "lion", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
STRATEGIES = ("auto", "round_robin", "one_to_one", "compact", "spread")
LAMBDA_CORRECTION = float(EINSTEIN_LAMBDA)  # where it is "on"

# What a new training has where nothing is said, as five seeds judge it (docs/lattice.md).
DEFAULT_INIT = "normal"
DEFAULT_ROPE = "standard"
DEFAULT_LAMBDA_CORRECTION = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """What the user asked of a training run; None means chosen automatically.

    At most one of ``minutes``, ``steps`` and ``epochs`` says how long to train.  ``init``, ``rope``
    and ``lambda_correction`` (a number, or "on" for 3/144000) are the lattice's part in it; None
    means DEFAULT_INIT, DEFAULT_ROPE, DEFAULT_LAMBDA_CORRECTION.
    """

    minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None
    preset: str | None = None
    vocab_size: int | None = None
    dim: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None
    seq_len: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    seed: int = 0
    threads: int | None = None
    hierarchy_depth: int | str = "auto"
    work_stealing: bool = True
    recursive_spawning: bool = True
    thread_allocation: str = "auto"
    pin: bool | None = None
    val: tuple[str, ...] = ()
    tokenizer: str | None = None
    loss: str = "full"
    samples: int | None = None
    precision: str = "fp32"
    packing: bool | None = None
    optimizer: str | None = None
    schedule: str | None = None
    warmup: float | None = None
    floor: float | None = None
    decay: float | None = None
    clip: float | None = None
    weight_decay: float | None = None
    embedding_decay: float | None = None
    norm_decay: float | None = None
    ema: float | None = None
    evaluation_interval: int | None = None
    save_steps: int | None = None
    save_minutes: float | None = None
    keep: int | None = None
    milestones: int | None = None
    patience: int | None = None
    min_delta: float | None = None
    start_from: str | None = None
    init: str | None = None
    rope: str | None = None
    lambda_correction: float | str | None = None
    boundary_counters: bool = True

    def __post_init__(self) -> None:
        self._check_kinds()
        lengths = [f for f in ("minutes", "steps", "epochs") if getattr(self, f) is not None]
        if len(lengths) > 1:
            one, two = (f"{f} {getattr(self, f)!r} alone" for f in lengths[:2])
            rule = f"{lengths[0]} is given too, and both say how long to train"
            refuse(lengths[1], getattr(self, lengths[1]), rule, f"{one} or {two}")
        if self.tokenizer is not None and self.vocab_size is not None:
            rule = "the tokenizer that is given brings its own vocabulary"
            refuse("vocab_size", self.vocab_size, rule, "the tokenizer alone or vocab_size alone")
        for field, (low, high, whole) in WHOLE_RULES.items():
            if getattr(self, field) is not None:
                whole_number(field, getattr(self, field), low, high, whole)
        if self.lambda_correction == "on":
            object.__setattr__(self, "lambda_correction", LAMBDA_CORRECTION)
        for field, (least, most, real) in REAL_RULES.items():
            if getattr(self, field) is not None:
                value = real_number(field, getattr(self, field), least, most, real)
                object.__setattr__(self, field, value)
        if self.hierarchy_depth not in ("auto", 1, 2, 3):
            refuse("hierarchy_depth", self.hierarchy_depth, "must be 1, 2, 3 or auto", "auto")
        for field, names in NAMES.items():
            if getattr(self, field) is not None:
                named(field, getattr(self, field), names)
        self._check_learning()

    def _check_learning(self) -> None:
        """The rules of optimizer and schedule."""
        schedule = self.schedule or "cosine"
        if self.decay is not None and schedule != "wsd":
            rule = f"schedule is {schedule}, which falls all the way"
            if schedule == "constant":
                rule = "schedule is constant, which does not fall"
            refuse("decay", self.decay, rule, "schedule wsd, or leave out decay")
        if self.floor is not None and schedule == "constant":
            rule = "schedule is constant, which does not fall"
            refuse("floor", self.floor, rule, "another schedule, or leave out floor")
        if (self.warmup or 0.0) + (self.decay or 0.0) > 1.0:
            rule = f"warmup is {self.warmup:g}, and both are shares of one training"
            refuse("decay", self.decay, rule, f"{0.5 * (1.0 - (self.warmup or 0.0)):g}")

    def _check_kinds(self) -> None:
        """What the rules of numbers and names below take for granted, or do not look at."""
        for field in fields(self):
            value, kinds = getattr(self, field.name), str(field.type).split(" | ")
            if value is None and "None" not in kinds:
                refuse(field.name, value, "must be given", f"{field.default!r}")
            if "bool" in kinds and not isinstance(value, bool | None):
                refuse(field.name, value, "must be true or false", "true")
        if type(self.hierarchy_depth) not in (int, str):
            refuse("hierarchy_depth", self.hierarchy_depth, "must be 1, 2, 3 or auto", "auto")
        if not isinstance(self.val, tuple) or not all(isinstance(path, str) for path in self.val):
            refuse("val", self.val, "must be a tuple of paths", "('held_out.txt',)")
        for name, works in (("tokenizer", "'tokenizer.json'"), ("start_from", "'models/base'")):
            if not isinstance(getattr(self, name), str | None):
                refuse(name, getattr(self, name), "must be a path", works)


WHOLE_RULES = {  # field: least, most, a value that works
    "steps": (1, INT32_MAX, 1000),
    "vocab_size": (SMALLEST_VOCAB, INT32_MAX, 4096),
    "dim": (2, INT32_MAX, 256),
    "layers": (1, MOST_LAYERS, 4),
    "heads": (1, INT32_MAX, 8),
    "kv_heads": (1, INT32_MAX, 8),
    "hidden": (1, INT32_MAX, 688),
    "seq_len": (1, INT32_MAX, 256),
    "batch_size": (1, INT32_MAX, 12),
    "accumulate": (1, INT32_MAX, 1),
    "seed": (0, SEED_MAX, 0),
    "threads": (1, MOST_THREADS, 1),
    "samples": (1, INT32_MAX, 512),
    "evaluation_interval": (0, INT32_MAX, 100),
    "save_steps": (0, INT32_MAX, 1000),
    "keep": (0, 1000, 3),
    "milestones": (0, INT32_MAX, 10000),
    "patience": (0, INT32_MAX, 3),
}
REAL_RULES = {
    "minutes": (1e-3, 1e7, 10.0),
    "epochs": (1e-6, 1e7, 1.0),
    "lr": (1e-9, 10.0, 1e-3),
    "warmup": (0.0, 0.9, 0.05),
    "floor": (0.0, 1.0, 0.02),
    "decay": (0.01, 1.0, 0.2),
    "clip": (0.0, 1e9, 1.0),
    "weight_decay": (0.0, 100.0, 0.1),
    "embedding_decay": (0.0, 100.0, 0.1),
    "norm_decay": (0.0, 100.0, 0.1),
    "ema": (0.0, 0.999999, 0.999),
    "save_minutes": (0.0, 1e7, 10.0),
    "min_delta": (0.0, 1e3, 0.001),
    "lambda_correction": (0.0, 0.5, LAMBDA_CORRECTION),
}
NAMES: dict[str, tuple[str, ...]] = {
    "thread_allocation": STRATEGIES,
    "loss": LOSSES,
    "precision": PRECISIONS,
    "preset": tuple(PRESETS),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "init": INITS,
    "rope": ROPES,
}
