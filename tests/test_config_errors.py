"""Every error of a configuration names the field, its value, the rule, and a value that works.

What is broken follows from each field's type, so a field that is added without a rule fails here.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import prose

import crystalline
from crystalline.config import HF_KEYS, REAL_RULES, WHOLE_RULES, ModelConfig, TrainConfig
from crystalline.errors import ConfigError, UsageError
from crystalline.options import train_config
from crystalline.spheres.messages import Setting
from crystalline.training.plan import check_samples
from crystalline.training.settings import SETTERS

TYPES = {field.name: str(field.type) for field in fields(TrainConfig)}
GOOD = {"vocab_size": 300, "dim": 24, "layers": 2, "heads": 6, "kv_heads": 2, "hidden": 40,
        "seq_len": 16}  # fmt: skip
# What has to be said as well for a field's value to work.
BESIDE = {"samples": {"loss": "sampled"}, "decay": {"schedule": "wsd"}}
PATHS = {
    "val": [3, [3], {}], "tokenizer": [3, ["a"], True], "start_from": [3, ["a"], True],
}  # fmt: skip


class Said(NamedTuple):
    """The parts of a message."""

    field: str
    value: str
    rule: str
    works: str


def said(error: UsageError, where: str = "") -> Said:
    message = str(error)
    assert "\n" not in message and len(message) < 300
    assert message.startswith(where)
    found = re.fullmatch(r"(\w+) is (.+?), but (.+); choose (.+)", message[len(where) :])
    assert found, message
    return Said(*found.groups())


def broken(field: str) -> list[Any]:
    """Values that a field must refuse, by its rule or its type."""
    kind = TYPES[field]
    if field in PATHS:
        return PATHS[field]
    if field in WHOLE_RULES:
        low, high, _ = WHOLE_RULES[field]
        return [low - 1, high + 1, low + 0.5, "x", True, [low]]
    if field in REAL_RULES:
        low, high, _ = REAL_RULES[field]
        above = math.nextafter(high, math.inf)
        return [math.nextafter(low, -math.inf), above, -1.0, math.nan, math.inf, "x", True, [low]]
    if "bool" in kind:
        return ["true", 0, 1, [True]]
    assert "str" in kind, f"{field} ({kind}) has no rule in WHOLE_RULES or REAL_RULES"
    return ["zzz", "", "Auto", 7, 1.0, True, ["auto"]]


def meant(works: str) -> Any:
    """The value that a message names: as JSON, as Python's literals, or a bare word."""
    try:
        return json.loads(works.replace("(", "[").replace(",)", "]").replace("'", '"'))
    except ValueError:
        return works


BROKEN = [(field, value) for field in TYPES for value in broken(field)]


def test_every_field_of_a_training_is_among_them() -> None:
    assert {field for field, _ in BROKEN} == set(TYPES)
    assert set(WHOLE_RULES) | set(REAL_RULES) <= set(TYPES)
    whole = {f for f, kind in TYPES.items() if kind.startswith("int") and "str" not in kind}
    real = {f for f, kind in TYPES.items() if kind.startswith("float")}
    assert (whole, real) == (set(WHOLE_RULES), set(REAL_RULES))


@pytest.mark.parametrize(("field", "value"), BROKEN)
@pytest.mark.parametrize("said_as", ["an option", "a keyword"])
def test_a_broken_value_is_refused_with_one_that_works(
    said_as: str, field: str, value: Any
) -> None:
    beside = BESIDE.get(field, {})

    def configured(value: Any) -> TrainConfig:
        if said_as == "a keyword":
            return TrainConfig(**beside, **{field: tuple(value) if field == "val" else value})
        return train_config({**beside, field: value}, "train.toml")

    if said_as == "a keyword" and field == "val":
        value = [value]  # a tuple is what this is about, and what is in it
    with pytest.raises(ConfigError) as caught:
        configured(value)
    got = said(caught.value, "train.toml: " if said_as == "an option" else "")
    assert got.field == field
    shown = value if said_as == "an option" or field != "val" else tuple(value)
    assert got.value in (reprlib.repr(shown), reprlib.repr([shown]))  # one path is a list of one
    assert "must be" in got.rule
    fixed = getattr(configured(meant(got.works)), field)
    assert fixed == meant(got.works) or list(fixed) == meant(got.works)


@pytest.mark.parametrize("field", [f for f, kind in TYPES.items() if "None" not in kind])
def test_what_has_a_default_may_be_left_out_but_not_be_nothing(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{field: None})
    got = said(caught.value)
    assert (got.field, got.value, got.rule) == (field, "None", "must be given")
    assert got.works == repr(getattr(TrainConfig(), field))
    assert train_config({field: None}, "") == TrainConfig()  # as an option: not said


RELATIONS = [
    ({"minutes": 2.0, "steps": 5}, "steps", "minutes 2.0 alone or steps 5 alone"),
    ({"minutes": 2.0, "epochs": 0.5}, "epochs", "minutes 2.0 alone or epochs 0.5 alone"),
    ({"steps": 5, "epochs": 0.5}, "epochs", "steps 5 alone or epochs 0.5 alone"),
    ({"vocab_size": 400, "tokenizer": "t.json"}, "vocab_size",
     "the tokenizer alone or vocab_size alone"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "field", "works"), RELATIONS)
def test_values_that_exclude_each_other(options: dict[str, Any], field: str, works: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(options, "there")
    got = said(caught.value, "there: ")
    assert (got.field, got.value, got.works) == (field, repr(options[field]), works)
    for name, value in options.items():
        assert name in str(caught.value)
        train_config({name: value}, "")


# --- the model ------------------------------------------------------------------------------------


def test_every_size_of_a_model_has_a_rule() -> None:
    """By its own names and by those of config.json."""
    kinds = {field.name: str(field.type) for field in fields(ModelConfig)}
    wrong = {"int": [0, -3, 2.0, "8", True, 2**31], "float": [-1.0, math.nan, "x", True],
             "bool": [1, "true"]}  # fmt: skip
    for name, key in HF_KEYS.items():
        for value in wrong[kinds[name]]:
            with pytest.raises(ConfigError) as caught:
                ModelConfig(**{**GOOD, name: value})
            got = said(caught.value)
            assert (got.field, got.value) == (name, repr(value)) and "must be" in got.rule
            ModelConfig(**{**GOOD, "heads": 1, "kv_heads": 1, name: meant(got.works)})
            with pytest.raises(ConfigError) as caught:
                ModelConfig.from_hf({**ModelConfig(**GOOD).to_hf(0), key: value}, "config.json")
            assert said(caught.value, "config.json: ") == got._replace(field=key)


def test_a_width_of_heads_that_does_not_fit_names_the_one_that_does() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_hf({**ModelConfig(**GOOD).to_hf(0), "head_dim": 8}, "config.json")
    got = said(caught.value, "config.json: ")
    assert (got.field, got.value, got.works) == ("head_dim", "8", "a model with 4")
    ModelConfig.from_hf({**ModelConfig(**GOOD).to_hf(0), "head_dim": 4}, "config.json")


# --- what only shows with the text or the machine -------------------------------------------------


def test_samples_must_suit_loss_and_vocabulary() -> None:
    for options, rule, works in (
        ({"samples": 9}, "loss is full", "loss sampled, or leave out samples"),
        ({"samples": 301, "loss": "sampled"}, "the vocabulary has 300 tokens", "300 or fewer"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_samples(TrainConfig(**options), 300)
        got = said(caught.value)
        value = str(options["samples"])
        assert (got.field, got.value, got.rule, got.works) == ("samples", value, rule, works)
    check_samples(TrainConfig(samples=300, loss="sampled"), 300)


UNFIT = [({"dim": 3}, "dim"), ({"dim": 64, "heads": 5}, "heads"),
         ({"heads": 4, "kv_heads": 3}, "kv_heads")]  # fmt: skip


@pytest.mark.parametrize(("sizes", "field"), UNFIT)
def test_sizes_that_do_not_fit_the_chosen_ones(
    tmp_path: Path, sizes: dict[str, int], field: str
) -> None:
    (tmp_path / "text.txt").write_text(prose(300))
    with pytest.raises(ConfigError) as caught:
        crystalline.train(tmp_path / "text.txt", tmp_path / "m", **sizes, steps=1)
    got = said(caught.value)
    assert (got.field, got.value) == (field, str(sizes[field]))
    assert not (tmp_path / "m" / "config.json").exists()


def test_a_model_that_the_machine_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(prose(300))
    with pytest.raises(ConfigError, match=r"^\w+ is \S+.* but .* (MiB|GiB).*; choose ") as caught:
        crystalline.train(tmp_path / "text.txt", tmp_path / "m", dim=2**20, heads=1, steps=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "works"),
    [
        (Setting.LEARNING_RATE, 0.0, "0.001"), (Setting.LEARNING_RATE, 10.1, "0.001"),
        (Setting.EPOCHS, -1.0, "10"), (Setting.EPOCHS, 2e7, "10"),
        (Setting.BATCH_SIZE, 0.0, "1"), (Setting.BATCH_SIZE, 11.7, "12"),
        (Setting.BATCH_SIZE, 2.0**40, str(2**20)), (Setting.EVALUATION_INTERVAL, -3.0, "0"),
    ],
)  # fmt: skip
def test_what_a_running_training_refuses(setting: Setting, value: float, works: str) -> None:
    """Before it looks at the training."""
    with pytest.raises(UsageError) as caught:
        SETTERS[setting](None, value)
    got = said(caught.value)
    assert (got.field, got.works) == (setting.name.lower(), works)
    assert got.value == f"{value:g}" and "must be" in got.rule
