"""The commands that use a model, or need none: generate, info, demo, bench."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from command import LIMIT, SMALL, invoke, run, start, weights
from conftest import prose

import crystalline
from crystalline import demo
from crystalline.commands import write
from crystalline.inference.model import Model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learnt a little."""
    folder = tmp_path_factory.mktemp("use")
    (folder / "prose.txt").write_text(prose(4000))
    out = folder / "small"
    invoke("train", folder / "prose.txt", "--out", out, "--steps", 150, "--quiet", *SMALL)
    return out


# --- generate -------------------------------------------------------------------------------------


def text_of(folder: Path, *args: Any) -> str:
    """What is generated after a prompt."""
    said = json.loads(invoke("generate", folder, "--prompt", "the quick", "--json", *args))
    assert said["prompt"] == "the quick"
    return str(said["text"])


def test_generate_writes_the_prompt_and_goes_on(trained: Path) -> None:
    said = invoke("generate", trained, "--prompt", "the quick", "--max-tokens", 20)
    assert said == "the quick" + text_of(trained, "--max-tokens", 20) + "\n"
    model = crystalline.load(trained)
    assert said == "the quick" + model.generate("the quick", max_tokens=20) + "\n"
    assert invoke("generate", trained, "--max-tokens", 5)  # no prompt: begins a text


def test_every_option_of_generate_has_its_effect(trained: Path) -> None:
    base = text_of(trained)
    greedy = text_of(trained, "--temperature", 0)
    assert text_of(trained) == base
    assert text_of(trained, "--seed", 1) != base != greedy
    assert len(text_of(trained, "--max-tokens", 3)) < len(base)
    assert base.startswith(text_of(trained, "--max-tokens", 3))
    assert text_of(trained, "--temperature", 3) not in (base, greedy)
    for option, value in (("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1)):
        assert text_of(trained, option, value) == greedy
    assert text_of(trained, "--temperature", 0, "--repetition-penalty", 3) != greedy
    model = crystalline.load(trained, precision="int8")
    assert text_of(trained, "--precision", "int8") == model.generate("the quick")
    first = base.split()[3]
    stopped = text_of(trained, "--stop", "never there", "--stop", first)
    assert stopped == base[: base.index(first)]


def test_generate_writes_the_same_bytes_on_one_and_two_threads(trained: Path) -> None:
    one, two = (
        run("generate", trained, "--threads", n, "--seed", 3, "--max-tokens", 60) for n in (1, 2)
    )
    assert one == two
    assert one[0] == 0


def test_a_reader_that_leaves_ends_the_command_quietly(trained: Path) -> None:
    process = start("generate", trained, "--max-tokens", 2000)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (1, "")


def test_a_process_without_standard_streams(trained: Path) -> None:
    command = f"{sys.executable} -m crystalline info {trained} >&- 2>&-"
    assert os.waitstatus_to_exitcode(os.system(command)) == 0


# --- info, demo, bench ----------------------------------------------------------------------------


def test_info_tells_what_is_in_the_folder(trained: Path) -> None:
    said = invoke("info", trained)
    for words in (r"23,\d+ parameters: 1 layer, width 32", r"step 150 of 150, 9,\d+ tokens",
                  r"validation .* bits per byte, at step 150", r"best .* at step \d+",
                  r"learnt from +1 document", r"7 files, .* all checksums agree"):  # fmt: skip
        assert re.search(words, said), words
    facts = json.loads(invoke("info", trained, "--json"))
    assert facts["verified"] is True
    assert facts["training"]["best"]["bits_per_byte"] > 0
    assert facts["files"]["model.safetensors"] == len(weights(trained))


def test_info_of_a_model_alone(trained: Path) -> None:
    assert "cannot" not in invoke("info", trained / "best")
    assert json.loads(invoke("info", trained / "best", "--json"))["training"] is None


def test_the_bundled_text_is_what_its_origin_says() -> None:
    digest = hashlib.sha256(demo.bundled_text()).hexdigest()
    origin = Path(demo.__file__).with_name("texts") / "ORIGIN.md"
    assert digest in origin.read_text()


def test_demo_trains_resumes_and_then_only_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "bundled_text", lambda: prose(3000).encode())
    args = ["demo", "--minutes", 0.02, "--out", tmp_path / "demo"]
    first = invoke(*args)
    assert first.startswith(write.DEMO_PROMPT)
    before = weights(tmp_path / "demo")
    assert invoke(*args) == first
    assert weights(tmp_path / "demo") == before
    state = tmp_path / "demo" / "training_state.json"
    unfinished = json.loads(state.read_text())
    unfinished["course"]["steps"] += 5
    resumed: list[bool] = []

    def train(out: Path, resume: bool, on_event: Any) -> Model:
        resumed.append(resume)
        return crystalline.load(out)

    monkeypatch.setattr(demo, "load_training", lambda folder: ({}, unfinished))
    monkeypatch.setattr("crystalline.api.train", train)
    assert invoke(*args) == first
    assert resumed == [True]


def test_bench_step_prints_one_object() -> None:
    args = ["bench", "step", "--preset", "nano", "--batch", 2, "--seq", 8, "--threads", 1]
    said = json.loads(invoke(*args, "--precision", "fp32", "--loss", "full", "--json"))
    assert {"tokens_per_s", "ms_per_step", "peak_rss_mib", "gflops", "threads", "isa", "preset",
            "batch", "seq", "precision", "loss", "steps", "config"} <= set(said)  # fmt: skip
    assert said["tokens_per_s"] == pytest.approx(2 * 8 / said["ms_per_step"] * 1e3)
    assert said["gflops"] == pytest.approx(said["tokens_per_s"] * said["mflop_per_token"] / 1e3)
    assert (said["config"]["seq_len"], said["config"]["vocab_size"]) == (8, 65)
    assert "full loss" in invoke(*args) and "tokens/s" in invoke(*args)
    sampled = json.loads(invoke(*args, "--loss", "sampled", "--samples", 12, "--json"))
    assert (sampled["loss"], sampled["samples"]) == ("sampled", 12)
    assert sampled["mflop_per_token"] < said["mflop_per_token"]
    assert json.loads(invoke(*args, "--loss", "sampled", "--json"))["samples"] == 65
