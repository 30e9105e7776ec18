"""SmolLM2-135M, a real model, through import, training and export.

Runs where CRYSTALLINE_SMOLLM2 names SmolLM2-135M-Instruct.Q4_1.gguf: `make smollm2` fetches it.
Figures are printed, nothing is asserted of times.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import crystalline
from crystalline.checkpoints.checkpoint import load_model
from crystalline.formats.convert import export_model, import_model
from crystalline.formats.gguf_read import read_gguf

GGUF = os.environ.get("CRYSTALLINE_SMOLLM2", "")
TEXT = os.environ.get("CRYSTALLINE_KJV", "")  # the King James Bible, as `bible` prints it
pytestmark = pytest.mark.skipif(
    not GGUF, reason="CRYSTALLINE_SMOLLM2 does not name the GGUF file; run `make smollm2`"
)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "m"
    begun = time.monotonic()
    import_model(GGUF, out)
    print(f"\nimported in {time.monotonic() - begun:.1f} s")
    return out


def varied() -> list[str]:
    """Prose, code in two languages, scripts, numbers, white space, what looks special."""
    code = sorted((HERE.parent / "src").rglob("*.py"))[:20]
    kernels = sorted((HERE.parent / "src").rglob("*.h"))[:10]
    texts = [p.read_text() for p in (*code, *kernels)]
    return [*texts, "Ünïcode ☃ 日本語 🙂 e\u0301 \t\n\r\n x  y   z", "it's we'll I'D 'S", "",
            "In 1984, 12345.67 % of 007"]  # fmt: skip


def plain(text: str) -> str:
    """A text in which transformers, which does not read how a GGUF file cuts words, agrees: it
    does not split digits off, and takes what looks like a special token for one."""
    return re.sub(r"(?<=\s)\s+(?=\d)", "", re.sub(r"<\|?\w+\|?>", "", text))


def test_ids_and_logits_are_those_of_transformers(folder: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = os.path.split(GGUF)
    ours = crystalline.load(folder)
    theirs = AutoTokenizer.from_pretrained(where, gguf_file=name)
    count = 0
    for text in map(plain, varied()):
        ids = ours.tokenizer.encode(text).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.tokenizer.decode(ids) == text
        count += len(ids)
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32).eval()
    ids = ours.tokenizer.encode(varied()[0])[:512]
    with torch.no_grad():
        want = model(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    got = ours.logits(ids)
    off = np.abs(got - want).max() / np.abs(want).max()
    print(f"\n{count:,} ids equal; logits of {len(ids)} tokens off by {off:.2g} of the largest")
    assert off <= 1e-3
    weights = load_model(folder)[2]
    assert all(np.array_equal(w, model.state_dict()[n].numpy()) for n, w in weights.items())


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_out_and_in_again(folder: Path, tmp_path: Path, kind: str) -> None:
    begun = time.monotonic()
    said = export_model(folder, tmp_path / "x.gguf", kind=kind)
    print(f"\n{kind}: {said['bytes'] / 2**20:,.0f} MiB in {time.monotonic() - begun:.1f} s")
    config, tokenizer, weights = load_model(folder)
    again = read_gguf(str(tmp_path / "x.gguf"))
    assert again.config == config
    assert again.tokenizer.to_json() == tokenizer.to_json()
    exact = {n: np.array_equal(w, np.asarray(again.weights[n])) for n, w in weights.items()}
    if kind == "f32":
        assert all(exact.values())
        return
    import_model(tmp_path / "x.gguf", tmp_path / "m")
    ids = tokenizer.encode(varied()[0])[:128]
    want, got = (crystalline.load(f).logits(ids) for f in (folder, tmp_path / "m"))
    off = np.abs(got - want).max() / np.abs(want).max()
    print(f"f16: logits off by {off:.2g} of the largest")
    assert off <= 1e-2


TRAIN = """
import json, resource, sys, crystalline
events = []
crystalline.train(sys.argv[1], sys.argv[3], start_from=sys.argv[4], val=[sys.argv[2]], steps=20,
                  seq_len=256, batch_size=4, on_event=events.append)
results = [e["loss"] for e in events if e["event"] == "validation"]
steps = [e["seconds"] for e in events if e["event"] == "step"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"results": results, "seconds": sum(steps), "gib": peak}))
"""


@pytest.mark.skipif(not TEXT, reason="CRYSTALLINE_KJV does not name the text of the Bible")
def test_twenty_steps_lower_the_held_out_loss_in_less_than_6_gib(
    folder: Path, tmp_path: Path
) -> None:
    text = Path(TEXT).read_text()
    cut = int(0.9 * len(text))
    (tmp_path / "learn.txt").write_text(text[:cut])
    # The end of the Bible, in part: eight validations of all of it take longer than the training.
    (tmp_path / "held_out.txt").write_text(text[cut + 100_000 : cut + 108_000])
    paths = [tmp_path / n for n in ("learn.txt", "held_out.txt", "out")]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, paths), str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    first, last = said["results"][0], said["results"][-1]
    print(f"\nheld-out loss {first:.3f} -> {last:.3f}, 20 steps in {said['seconds']:.0f} s, "
          f"peak {said['gib']:.2f} GiB")  # fmt: skip
    assert last < first
    assert said["gib"] < 6e9 / 2**30
