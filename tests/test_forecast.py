"""The forecast: sizes for a number of parameters, memory that is left, what fits, processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from command import invoke, run

from crystalline.config import PRESETS, TrainConfig, parameter_count
from crystalline.errors import ConfigError
from crystalline.forecast import fits, machine
from crystalline.forecast.clock import process_began
from crystalline.forecast.fits import check_memory, nearest
from crystalline.forecast.memory import MIB, Text, arenas, memory
from crystalline.forecast.planning import PROCESSES, forecast
from crystalline.forecast.sizes import parse_count, sizes_for
from crystalline.team import make_team
from crystalline.training.plan import Recipe

SIZES = ["200k", "1M", "5M", "12.5M", "30M", "70M", "100M", "135M", "360M", "1B", "3B", "7B", "10B"]
RECIPE = Recipe(48, 1, 1e-3, 0)


@pytest.mark.parametrize("asked", SIZES)
def test_sizes_have_the_parameters_that_were_asked_for(asked: str) -> None:
    wanted = parse_count(asked)
    c = sizes_for(wanted)
    assert parameter_count(c) == pytest.approx(wanted, rel=0.03)
    assert c.head_dim in (32, 64, 128) and 1.9 < c.hidden / c.dim < 3.5
    assert 16 <= c.dim / c.layers <= 260


@pytest.mark.parametrize("vocab_size", [300, 5000, 32000, 128000])
def test_sizes_keep_to_the_vocabulary_that_is_given(vocab_size: int) -> None:
    c = sizes_for(100_000_000, vocab_size, 77)
    assert (c.vocab_size, c.seq_len) == (vocab_size, 77)
    assert parameter_count(c) == pytest.approx(1e8, rel=0.03)


def test_a_vocabulary_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 100,000 takes more in any model"):
        sizes_for(1_000_000, 100_000)


@pytest.mark.parametrize(
    ("text", "count"), [("135M", 135_000_000), ("1.5b", 1_500_000_000), ("250k", 250_000),
                        ("2_000_000", 2_000_000), (" 10 B ", 10**10)]
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "10", "1e9", "-5M", "1.2.3M", "500B", "5 x"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"params is .*; choose 100M"):
        parse_count(text)


# --- what the machine has -------------------------------------------------------------------------


def group(folder: Path, names: tuple[str, str], limit: str, used: int, idle: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 5\n{idle} 100\nother 7\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    listed.write_text("4:cpu,memory:/a/b\n0::/\n")
    group(tmp_path / "memory/a/b", V1, "9223372036854771712", 10, "total_inactive_file")
    group(tmp_path / "memory/a", V1, "5000", 1000, "total_inactive_file")
    folders = machine._own_groups(tmp_path, listed)
    assert list(machine._rooms(folders)) == [5000 - 1000 + 100]
    listed.write_text("0::/x/y\n")
    group(tmp_path / "x", V2, "7000", 500, "inactive_file")
    group(tmp_path / "x/y", V2, "max", 500, "inactive_file")
    assert list(machine._rooms(machine._own_groups(tmp_path, listed))) == [7000 - 500 + 100]


def test_inside_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    listed.write_text("4:memory:/docker/0123\n")
    group(tmp_path / "memory", V1, "2000", 500, "total_inactive_file")
    assert list(machine._rooms(machine._own_groups(tmp_path, listed))) == [1600]
    assert machine._own_groups(tmp_path, tmp_path / "none") == []


def test_no_more_is_available_than_the_smallest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = machine.available()
    assert 0 < free <= psutil.virtual_memory().total
    monkeypatch.setattr(machine, "_rooms", lambda folders: iter([123, 10**15]))
    assert machine.available() == 123


def test_the_process_began_when_the_system_says() -> None:
    age = time.monotonic() - process_began()  # the system's own is in whole seconds
    assert age == pytest.approx(time.time() - psutil.Process().create_time(), abs=1.5)
    code = "import time\nfrom crystalline.forecast.clock import process_began\n" \
           "time.sleep(0.3)\nprint(time.monotonic() - process_began())"  # fmt: skip
    before = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 <= float(out.stdout) <= time.monotonic() - before + 0.02


# --- what fits ------------------------------------------------------------------------------------


def room_for(c: object, recipe: Recipe, share: float) -> int:
    return int(share * sum(arenas(c, recipe, make_team(2)).values()))  # type: ignore[arg-type]


def test_what_is_offered_fits_and_is_the_largest() -> None:
    c, team = PRESETS["seed"], make_team(2)
    room = room_for(c, RECIPE, 0.6)
    said = nearest(c, RECIPE, team, room)
    batch, accumulate = map(int, re.findall(r"batch_size (\d+) \(accumulate (\d+)\)", said)[0])
    assert batch * accumulate == RECIPE.sequences
    for size, fit in ((batch, True), (next(n for n in range(batch + 1, 49) if 48 % n == 0), False)):
        smaller = replace(RECIPE, batch_size=size, accumulate=48 // size)
        assert (sum(arenas(c, smaller, team).values()) <= room) == fit


def test_where_the_weights_are_too_large_a_narrower_model_is_offered() -> None:
    c, team = PRESETS["m"], make_team(2)
    room = room_for(c, replace(RECIPE, batch_size=1), 0.3)
    said = nearest(c, replace(RECIPE, batch_size=1), team, room)
    dim = int(re.fullmatch(r"what fits: dim (\d+)", said)[1])  # type: ignore[index]
    assert 0 < dim < c.dim and dim % c.head_dim == 0
    grouped = replace(c, kv_heads=4)
    said = nearest(grouped, replace(RECIPE, batch_size=1), team, room // 4)
    found = re.fullmatch(r"what fits: dim (\d+) with kv_heads (\d)", said)
    dim, kv_heads = map(int, found.groups())  # type: ignore[union-attr]
    assert dim == kv_heads * c.head_dim
    assert nearest(replace(c, kv_heads=1), replace(RECIPE, batch_size=1), team, room).startswith(
        "what fits: dim "
    )
    nothing = "other sizes: no model of this kind fits; or free some memory"
    assert nearest(c, RECIPE, team, 1000) == nothing


def test_a_run_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    c, team = PRESETS["seed"], make_team(2)
    need = room_for(c, RECIPE, 1)
    monkeypatch.setattr(fits, "available", lambda: need)
    assert check_memory(c, RECIPE, team) == need
    monkeypatch.setattr(fits, "available", lambda: need - 1)
    wanted = r"^batch_size is 48 .*are available; choose what fits: batch_size 2"
    with pytest.raises(ConfigError, match=wanted):
        check_memory(c, RECIPE, team)


def test_memory_is_the_largest_of_the_phases() -> None:
    c, team = PRESETS["nano"], make_team(2)
    small = memory(c, replace(RECIPE, batch_size=1), team, Text(100_000, 40_000), 50 * MIB)
    assert small.peak >= max(small.before.values())
    large = memory(PRESETS["seed"], RECIPE, team, Text(100_000, 40_000), 50 * MIB)
    assert large.peak == sum(large.training.values()) > max(large.before.values())
    assert large.arenas == sum(arenas(PRESETS["seed"], RECIPE, team).values())


# --- the command ----------------------------------------------------------------------------------


def test_ten_thousand_million_parameters_are_planned_in_little_memory() -> None:
    code = (
        "import sys\nfrom crystalline.__main__ import main\n"
        "main(['plan', '--params', '10B', '--json'])\n"
        "status = open('/proc/self/status').read()\n"
        "print(status.split('VmHWM:')[1].split()[0])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, peak = out.stdout.splitlines()
    f = json.loads(told)
    assert f["parameters"] == pytest.approx(1e10, rel=0.03)
    assert int(peak) * 1024 < 2 << 30 < f["memory"]["peak"]
    assert sum(f["parts"].values()) == f["parameters"]
    assert f["length"]["tokens"] == 20 * f["parameters"]


def test_processes_divide_the_batch_and_the_time() -> None:
    options = TrainConfig(preset="nano", batch_size=24, steps=10)
    by = {n: forecast(processes=n, options=options) for n in PROCESSES}
    assert [by[n]["batch_of_one"] for n in PROCESSES] == [24, 12, 8, 6, 4, 2]
    needs = [by[n]["memory"]["training"]["activations"] for n in PROCESSES]
    assert needs == sorted(needs, reverse=True) and needs[0] > needs[-1]
    assert by[1]["memory"]["training"]["weights"] == by[12]["memory"]["training"]["weights"]
    with pytest.raises(ConfigError, match=r"processes is 5, .* choose 1, 2, 3, 4, 6, 12"):
        forecast(processes=5, options=options)


def test_the_table_says_what_the_json_does(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 3000)
    args = ["plan", text, "--dim", "32", "--layers", "2", "--epochs", "3", "--optimizer", "lion"]
    f = json.loads(invoke(*args, "--json"))
    assert f["length"]["by"] == "epochs" and f["length"]["epochs"] == pytest.approx(3, rel=0.01)
    assert f["recipe"]["optimizer"] == "lion" and f["fits"] and f["nearest"] is None
    said = invoke(*args)
    for word in ("model", "memory", "activations", "speed", "time", "disk", "fits", "lion"):
        assert word in said
    assert f"feed-forward {f['config']['hidden']}" in " ".join(said.split())


def test_bad_plans_end_in_one_line(tmp_path: Path) -> None:
    for args, said in (
        (["--params", "lots"], "params is 'lots'"),
        (["--params", "5M", "--dim", "64"], "dim is given too"),
        (["--epochs", "2", "--preset", "nano"], "there is no PATH"),
        ([str(tmp_path / "none")], "no such file"),
    ):
        code, out, err = run("plan", *args)
        assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_plan_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from crystalline.forecast import planning

    monkeypatch.setattr(planning, "available", lambda: 300 * MIB)
    options = TrainConfig(preset="m", batch_size=4, steps=10)
    f = forecast(options=options)
    wanted = r"needs [\d,]+ MiB, .*; (choose )?what fits: dim \d+$"
    assert not f["fits"] and re.search(wanted, f["nearest"])
