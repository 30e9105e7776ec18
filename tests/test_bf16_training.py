"""Training with bf16 operands: bits on any threads and after resuming, and how well it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, prose
from test_training import STEPS, fingerprint, run, stop_at

import crystalline
from crystalline._native import Team
from crystalline.checkpoints.checkpoint import load_training
from crystalline.errors import Interrupted, UsageError

pytestmark = pytest.mark.skipif(not Team(1).has_bf16, reason="this CPU has no AVX512_BF16")
BF16 = {"precision": "bf16"}


@pytest.fixture(scope="module", params=["full", "sampled"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bf16")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    options = BF16 | ({"loss": "sampled", "samples": 40} if request.param == "sampled" else {})
    run(text, folder / "model", **options)
    return {"text": text, "hash": fingerprint(folder / "model"), "options": options}


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 12])
def test_same_bits_on_any_threads(
    threads: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run(undisturbed["text"], tmp_path / "m", threads=threads, **undisturbed["options"])
    assert fingerprint(tmp_path / "m") == undisturbed["hash"]


@pytest.mark.parametrize("step", range(1, STEPS, 3))
def test_resuming_gives_the_same_bits(
    step: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out, options = tmp_path / "m", {**TINY, **undisturbed["options"], "steps": STEPS}
    with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
        crystalline.train(undisturbed["text"], out, on_event=stop_at(step), **options)
    crystalline.train(out=out, resume=True, threads=1 + step % 3)
    assert fingerprint(out) == undisturbed["hash"]
    assert load_training(out)[1]["recipe"]["precision"] == "bf16"


def test_it_learns_as_float32_does(text_file: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        events = run(text_file, tmp_path / precision, steps=120, lr=3e-3, precision=precision)
        losses[precision] = [e for e in events if e["event"] == "validation"][-1]["loss"]
        plan = next(e for e in events if e["event"] == "plan")
        assert plan["precision"] == precision
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.005)


def test_the_precision_stays_when_resuming(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        crystalline.train(
            text_file, tmp_path / "m", on_event=stop_at(2), **{**TINY, **BF16, "steps": STEPS}
        )
    with pytest.raises(UsageError, match="precision cannot change when resuming"):
        crystalline.train(out=tmp_path / "m", resume=True, precision="fp32")


def test_a_team_without_it_refuses_before_anything_is_written(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYSTALLINE_ISA", "avx2")
    with pytest.raises(UsageError, match=r"no AVX512_BF16 .* choose fp32"):
        crystalline.train(text_file, tmp_path / "m", **{**TINY, **BF16, "steps": STEPS})
    assert not (tmp_path / "m" / "model.safetensors").exists()
