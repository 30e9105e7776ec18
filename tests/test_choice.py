"""What is chosen for so many minutes: the model by trying it, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command import run

from crystalline._native import Team
from crystalline.config import PRESETS, ModelConfig, TrainConfig, parameter_count
from crystalline.forecast import choice as module
from crystalline.forecast.choice import choose
from crystalline.forecast.speed import MOST_FLOPS, Pace, _part, measure
from crystalline.training.plan import (
    LADDER,
    Budget,
    Recipe,
    bytes_per_token,
    choose_recipe,
    continued_recipe,
    flops_per_token,
    ladder_config,
)

V = 1024
RECIPE = Recipe(12, 1, 1e-3, 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """A machine whose speed is not that of its matrix products: both are said here."""
    said: dict[str, list[int]] = {"tried": [], "rough": [20], "real": [20]}

    def tried(c: ModelConfig, recipe: Recipe, team: Team, seconds: float) -> Pace:
        said["tried"].append(c.dim)
        work = recipe.sequences * c.seq_len * flops_per_token(c, recipe.samples)
        return Pace(work / (said["real"][0] * 1e9), 0.0, 1.0)

    monkeypatch.setattr(module, "measure", tried)
    monkeypatch.setattr(module, "machine_flops", lambda team, precision: said["rough"][0] * 1e9)
    return said


def fed(gflops: float, seconds: float, corpus: int) -> int:
    """The width that the rule gives, by hand."""
    best = LADDER[0][0]
    for rung in range(len(LADDER)):
        c = ladder_config(rung, V)
        trained = seconds * gflops * 1e9 / flops_per_token(c)
        if trained >= 2.5 * parameter_count(c) and parameter_count(c) <= 2.5 * corpus:
            best = c.dim
    return best


@pytest.mark.parametrize("rough", [1, 20, 400])
@pytest.mark.parametrize("real", [5, 20, 80, 400])
@pytest.mark.parametrize("seconds", [20, 90, 600, 3600])
def test_what_is_really_fast_enough_is_chosen(
    machine: dict[str, list[int]], rough: int, real: int, seconds: int
) -> None:
    machine["rough"], machine["real"] = [rough], [real]
    made = choose(Budget(TrainConfig(), 10**7, seconds), V, Team(1))
    assert made.config.dim == fed(real, seconds, 10**7)
    assert len(machine["tried"]) <= len(LADDER)
    assert made.pace is not None and f"{made.config.dim} x {made.config.layers}" in made.reason


def test_a_short_text_feeds_no_large_model(machine: dict[str, list[int]]) -> None:
    made = choose(Budget(TrainConfig(), 400_000, 36000), V, Team(1))
    assert made.config.dim == fed(20, 36000, 400_000) == 128
    assert "feeds no larger one" in made.reason


def test_sizes_that_are_told_are_only_measured(machine: dict[str, list[int]]) -> None:
    options = TrainConfig(dim=96, layers=2, batch_size=7)
    made = choose(Budget(options, 400_000, 90), V, Team(1))
    assert machine["tried"] == [96] and made.recipe.batch_size == 7
    assert "sizes as told" in made.reason and made.described()["seconds_a_step"] > 0


def test_without_a_time_nothing_is_measured(machine: dict[str, list[int]]) -> None:
    made = choose(Budget(TrainConfig(steps=100), 400_000), V, Team(1))
    assert machine["tried"] == [] and made.pace is None
    assert "seconds_a_step" not in made.described()


def timed(seconds: float, **options: object) -> Recipe:
    """For a text of 400,000 tokens, of which a second trains about 14,000."""
    c = ladder_config(1, V)
    flops = 14_000 * flops_per_token(c)
    return choose_recipe(Budget(TrainConfig(**options), 400_000, seconds, flops), c)  # type: ignore[arg-type]


def test_the_optimizer_is_chosen_where_time_decides() -> None:
    c = PRESETS["nano"]
    assert timed(90).optimizer == "muon" and timed(90, optimizer="adamw").optimizer == "adamw"
    assert choose_recipe(Budget(TrainConfig(steps=9), 10**6), c).optimizer == "adamw"
    assert continued_recipe(Budget(TrainConfig(), 10**6, 90.0), c, 64).optimizer == "adamw"


def test_many_passes_end_in_a_short_fall() -> None:
    """17.5 passes fall all the way, 35 over the last 15: else the end is learnt by heart."""
    assert timed(500).schedule == "cosine"
    made = timed(1000)
    assert made.schedule == "wsd" and made.decay == pytest.approx(15 / 35, abs=1e-3)
    assert timed(1000, schedule="linear").schedule == "linear"
    assert timed(1000, warmup=0.1).schedule == "cosine"


@pytest.mark.parametrize("c", [
    PRESETS["nano"], PRESETS["m"], ModelConfig(128000, 5120, 40, 40, 8, 13824, 4096),
    ModelConfig(300, 64, 1, 1, 1, 2**30, 64), ModelConfig(300, 64, 3, 2, 2, 176, 2**30),
    ModelConfig(2**30, 64, 3, 2, 2, 176, 64),
])  # fmt: skip
def test_no_more_is_tried_than_takes_a_moment(c: ModelConfig) -> None:
    small, B = _part(c, RECIPE)
    assert flops_per_token(small) * B * small.seq_len <= MOST_FLOPS
    assert small.dim <= 1024 and parameter_count(small) < 2 * 10**8
    if flops_per_token(c) * 12 * c.seq_len <= MOST_FLOPS:
        assert (small, B) == (c, 12)


def test_what_is_tried_stands_for_the_whole() -> None:
    """Half the layers and half the vocabulary are half the arithmetic, so the pace is that of the
    whole: within a factor that the noise of a busy machine leaves."""
    c = replace(PRESETS["nano"], vocab_size=512)
    pace = measure(c, replace(RECIPE, batch_size=2), Team(1), 0.05)
    assert pace.tried == 1.0 and pace.batch > 0 and pace.update > 0
    assert pace.step(replace(RECIPE, accumulate=3)) == 3 * pace.batch + pace.update


def test_tokens_of_a_text_by_its_bytes() -> None:
    sizes = [bytes_per_token(v) for v in (257, 1024, 10000, 32000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(1, abs=0.05) and sizes[1] == pytest.approx(2.42, rel=0.05)


def test_the_choice_is_told_and_kept(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    code, said, _ = run("train", text_file, "--out", out, "--minutes", "0.1", "--json")
    plan = next(e for e in map(json.loads, said.splitlines()) if e["event"] == "plan")
    assert code == 0 and plan["choice"]["seconds_a_step"] > 0
    state = json.loads((out / "training_state.json").read_text())
    assert state["options"]["choice"] == plan["choice"]
    code, _, lines = run("train", text_file, "--out", tmp_path / "n", "--minutes", "0.05")
    assert code == 0 and "\nchosen " in lines
