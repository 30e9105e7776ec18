"""Configurations: every rule refuses in one line that names field, value, rule and what works."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from crystalline.config import (
    HF_KEYS,
    PRESETS,
    ModelConfig,
    TrainConfig,
    parameter_count,
    parameter_shapes,
)
from crystalline.errors import ConfigError, UsageError
from crystalline.options import load_toml, train_config

GOOD = {
    "vocab_size": 300, "dim": 24, "layers": 2, "heads": 6, "kv_heads": 2, "hidden": 40,
    "seq_len": 16,
}  # fmt: skip
TINY = ModelConfig(**GOOD)


def refused(call, *args, most=300, **kwargs):
    """The one-line message of the ConfigError that the call must raise."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < most
    return message


BROKEN_MODELS = [
    *[(field, value) for field in GOOD for value in (0, -3, 2.0, "8", None, True, 2**31)],
    ("vocab_size", 1),
    ("dim", 1),
    ("dim", 25),
    ("heads", 7),
    ("heads", 24),
    ("kv_heads", 4),
    ("kv_heads", 12),
    *[("rope_theta", value) for value in (0.5, -1, math.inf, math.nan, "10000", None, True)],
    *[("norm_eps", value) for value in (0, 1e-13, 0.2, math.nan, "1e-5", None, False)],
    *[("tied", value) for value in (0, 1, "true", None)],
]


@pytest.mark.parametrize(("field", "value"), BROKEN_MODELS)
def test_a_broken_model_rule_names_field_value_rule_and_a_value_that_works(field, value):
    message = refused(ModelConfig, **{**GOOD, field: value})
    assert message.startswith(f"{field} is {value!r}, but ")
    rule, works = message.split("; choose ")
    assert "must" in rule
    for choice in re.split(", | or ", works):
        fixed = {**GOOD, field: json.loads(choice)}
        if field == "dim":  # the heads are then the next thing to suit
            fixed.update(heads=1, kv_heads=1)
        if field == "heads":
            fixed["kv_heads"] = 1
        ModelConfig(**fixed)


def test_a_rule_between_fields_shows_both_sides():
    assert refused(ModelConfig, **{**GOOD, "heads": 7}) == (
        "heads is 7, but dim 24 must divide into that many heads of an even width; choose 6, 4 or 3"
    )
    assert refused(ModelConfig, **{**GOOD, "dim": 2, "heads": 2}).endswith("; choose 1")
    assert refused(ModelConfig, **{**GOOD, "kv_heads": 4}) == (
        "kv_heads is 4, but heads 6 must be a multiple of it; choose 3, 2 or 6"
    )


def test_a_long_value_is_shortened_and_stays_on_one_line():
    refused(ModelConfig, **{**GOOD, "dim": "x\n" * 1000})


def test_whole_numbers_are_taken_for_real_ones():
    config = ModelConfig(**GOOD, rope_theta=500000)
    assert isinstance(config.rope_theta, float)


def test_configurations_are_frozen_and_errors_are_value_errors():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.dim = 32
    assert issubclass(ConfigError, UsageError)
    assert issubclass(ConfigError, ValueError)


def test_head_dim():
    assert TINY.head_dim == 4


# --- Names and shapes -----------------------------------------------------------------------------


def test_parameter_shapes_in_arena_order():
    one = dataclasses.replace(TINY, layers=1, tied=False)
    p = "model.layers.0."
    assert list(parameter_shapes(one).items()) == [
        ("model.embed_tokens.weight", (300, 24)),
        (p + "input_layernorm.weight", (24,)),
        (p + "self_attn.q_proj.weight", (24, 24)),
        (p + "self_attn.k_proj.weight", (8, 24)),
        (p + "self_attn.v_proj.weight", (8, 24)),
        (p + "self_attn.o_proj.weight", (24, 24)),
        (p + "post_attention_layernorm.weight", (24,)),
        (p + "mlp.gate_proj.weight", (40, 24)),
        (p + "mlp.up_proj.weight", (40, 24)),
        (p + "mlp.down_proj.weight", (24, 40)),
        ("model.norm.weight", (24,)),
        ("lm_head.weight", (300, 24)),
    ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_shapes_are_those_of_transformers(tied, kv_heads):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(TINY, tied=tied, kv_heads=kv_heads)
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf(0)))
    theirs = {name: tuple(p.shape) for name, p in hf.named_parameters()}
    assert parameter_shapes(config) == theirs
    assert parameter_count(config) == hf.num_parameters()


def test_tied_embeddings_have_no_head_and_count_once():
    untied = dataclasses.replace(TINY, tied=False)
    assert "lm_head.weight" not in parameter_shapes(TINY)
    assert parameter_count(untied) - parameter_count(TINY) == 300 * 24


def test_presets():
    assert list(PRESETS) == ["seed", "nano", "m"]
    seed = PRESETS["seed"]
    assert (seed.vocab_size, seed.dim, seed.layers, seed.heads) == (10000, 256, 4, 8)
    assert (seed.kv_heads, seed.hidden, seed.seq_len) == (8, 688, 256)


# --- config.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_config_json_round_trip(tied):
    config = ModelConfig(**GOOD, tied=tied, rope_theta=5e5, norm_eps=1e-6)
    text = json.dumps(config.to_hf(7))
    assert ModelConfig.from_hf(json.loads(text), "config.json") == config


def test_transformers_reads_config_json_as_meant():
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(**GOOD, rope_theta=5e5, norm_eps=1e-6)
    hf = transformers.LlamaConfig(**config.to_hf(7))
    assert str(hf.dtype) == "torch.float32"
    assert hf.rope_parameters["rope_theta"] == 5e5
    assert hf.rope_parameters["rope_type"] == "default"
    assert (hf.rms_norm_eps, hf.head_dim, hf.num_key_value_heads) == (1e-6, 4, 2)
    assert (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id) == (7, 7, None)
    # What transformers writes in turn, with its newer spellings, means the same to us.
    assert ModelConfig.from_hf(hf.to_dict(), "there") == config


def test_keys_left_out_mean_what_they_mean_to_transformers():
    d = TINY.to_hf(0)
    for key in ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings"):
        del d[key]
    for key in ("head_dim", "hidden_act", "attention_bias", "mlp_bias", "model_type"):
        del d[key]
    expected = dataclasses.replace(TINY, kv_heads=6, rope_theta=10000.0, norm_eps=1e-6, tied=False)
    assert ModelConfig.from_hf(d, "there") == expected


INEXPRESSIBLE = [
    ("model_type", "mistral"),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("quantization_config", {"bits": 4}),
    ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
    ("rope_scaling", {"type": "linear"}),
    ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ("rope_scaling", 2.0),
    ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
    ("rope_parameters", [1]),
    ("head_dim", 8),
]


@pytest.mark.parametrize(("key", "value"), INEXPRESSIBLE)
def test_what_we_cannot_express_is_refused_by_its_key(key, value):
    message = refused(ModelConfig.from_hf, {**TINY.to_hf(0), key: value}, "m/config.json")
    assert message.startswith(f"m/config.json: {key} is ")
    assert "; choose " in message


@pytest.mark.parametrize("rope", [None, {"rope_type": "default"}, {"type": "default"}])
def test_plain_rope_scaling_is_no_scaling(rope):
    assert ModelConfig.from_hf({**TINY.to_hf(0), "rope_scaling": rope}, "there") == TINY


@pytest.mark.parametrize("field", GOOD)
def test_errors_from_config_json_use_its_own_keys(field):
    key = HF_KEYS[field]
    d = TINY.to_hf(0)
    message = refused(ModelConfig.from_hf, {**d, key: 0}, "m/config.json")
    assert message.startswith(f"m/config.json: {key} is 0, but ")
    del d[key]
    if field != "kv_heads":
        message = refused(ModelConfig.from_hf, d, "m/config.json")
        assert message.startswith(f"m/config.json: {key} is missing")


# --- What the user asks for -----------------------------------------------------------------------


def test_options_become_a_train_config():
    options = {"minutes": 10, "dim": 128, "val": ["a", "b"], "lr": 1e-3, "threads": None}
    config = train_config(options, "train.toml")
    assert config == TrainConfig(minutes=10.0, dim=128, val=("a", "b"), lr=1e-3)
    assert isinstance(config.minutes, float)
    assert train_config({}, "") == TrainConfig()


def test_paths_are_taken_as_text():
    config = train_config({"val": Path("a"), "tokenizer": Path("t.json")}, "")
    assert (config.val, config.tokenizer) == (("a",), "t.json")
    assert train_config({"val": "a"}, "").val == ("a",)
    assert train_config({"val": [Path("a"), "b"]}, "").val == ("a", "b")


WHOLE = (
    "steps", "vocab_size", "dim", "layers", "heads", "kv_heads", "hidden", "seq_len",
    "batch_size", "accumulate", "seed", "threads", "samples",
    "evaluation_interval", "save_steps", "keep", "milestones", "patience",
)  # fmt: skip
MAY_BE_ZERO = ("seed", "evaluation_interval", "save_steps", "keep", "milestones", "patience")
BROKEN_OPTIONS = [
    *[(name, value) for name in WHOLE for value in (-1, 2**63, 1.5, "x", True, [1])],
    *[(name, 0) for name in WHOLE if name not in MAY_BE_ZERO],
    *[(name, value) for name in ("save_minutes", "min_delta") for value in (-1.0, math.nan, "x")],
    ("vocab_size", 256),
    *[(n, v) for n in ("minutes", "epochs", "lr") for v in (0.0, -1.0, math.inf, math.nan, "x")],
    ("preset", "sead"),
    ("preset", "zzz"),
    ("preset", 3),
    ("loss", "sampeld"),
    ("precision", "bf1"),
    ("precision", 16),
    ("loss", "zzz"),
    ("loss", 3),
    ("tokenizer", 3),
    ("val", 3),
    ("val", [3]),
]


@pytest.mark.parametrize(("name", "value"), BROKEN_OPTIONS)
def test_a_broken_option_names_place_field_value_rule_and_a_value_that_works(name, value):
    message = refused(train_config, {name: value}, "train.toml")
    assert message.startswith(f"train.toml: {name} is {value!r}, but ")
    works = message.split("; choose ")[1]
    named = name in ("preset", "loss", "precision") and "'" not in works
    good = works if named else json.loads(works.replace("'", '"'))
    train_config({name: good}, "train.toml")


def test_at_most_one_length():
    message = refused(train_config, {"minutes": 1, "steps": 5}, "options")
    assert message == (
        "options: steps is 5, but minutes is given too, and both say how long to train; "
        "choose minutes 1.0 alone or steps 5 alone"
    )
    refused(TrainConfig, steps=1, epochs=1.0)
    refused(TrainConfig, minutes=1.0, steps=1, epochs=1.0)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("batchsize", "batch_size"),
        ("batch-size", "batch_size"),
        ("Layers", "layers"),
        ("minute", "minutes"),
        ("sequence_len", "seq_len"),
        ("kvheads", "kv_heads"),
        ("tokeniser", "tokenizer"),
    ],
)
def test_an_unknown_option_names_the_nearest(typed, meant):
    message = refused(train_config, {typed: 1}, "train.toml")
    assert message == f"train.toml: unknown option {typed!r}; did you mean {meant}?"


def test_an_option_like_no_other_lists_them():
    message = refused(train_config, {"qqq": None}, "train.toml", most=400)
    assert message.startswith("train.toml: unknown option 'qqq'; the options are minutes, steps,")


# --- TOML -----------------------------------------------------------------------------------------


def test_toml(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text('minutes = 5\nval = ["a"]\n')
    assert load_toml(path) == {"minutes": 5, "val": ["a"]}
    assert load_toml(str(path)) == load_toml(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"dim = 8\nlayers = = 4\n", "line 2"),
        (b"dim = 8\ndim = 9\n", "line 2"),
        (b"dim = 8\n# caf\xe9\n", "line 2 is not UTF-8"),
        (b"dim = " + b"9" * 5000, "not valid TOML"),
    ],
)
def test_bad_toml_names_file_and_line(tmp_path, content, complaint):
    path = tmp_path / "train.toml"
    path.write_bytes(content)
    message = refused(load_toml, path)
    assert message.startswith(f"{path}: ")
    assert complaint in message


def test_toml_that_is_not_there(tmp_path):
    assert "No such file" in refused(load_toml, tmp_path / "none.toml")
    assert "directory" in refused(load_toml, tmp_path)
