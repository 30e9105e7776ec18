"""llama.cpp reads what is exported: the same ids, the same logits.  Needs llama-cpp-python."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import prose
from formats_cases import TOKENIZER, WIDE, random_weights

import crystalline
from crystalline.checkpoints.checkpoint import save_model
from crystalline.config import ModelConfig
from crystalline.data.splitting import KNOWN, pre_tokenizer
from crystalline.data.tokenizer import Tokenizer
from crystalline.decoder.scaling import RopeScaling
from crystalline.formats.convert import export_model, import_model

llama_cpp: Any = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed; pip install llama-cpp-python"
)

# llama.cpp rounds what it multiplies by F16, BF16 and Q8_0 weights to these types as well.
CASES = {
    "plain": WIDE,
    "tied": replace(WIDE, tied=True, layers=2, kv_heads=4),
    "linear": replace(WIDE, rope_scaling=RopeScaling("linear", 4.0)),
    "llama3": replace(WIDE, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)),
}


def opened(path: Path, length: int) -> Any:
    return llama_cpp.Llama(
        str(path), n_ctx=length, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
    )  # fmt: skip


def compare(folder: Path, path: Path, text: str, most: float) -> None:
    ours = crystalline.load(folder)
    theirs = opened(path, 256)
    ids = ours.tokenizer.encode(text).tolist()
    assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids
    ids = ids[: min(ours.config.seq_len, 200)]
    theirs.eval(ids)
    got, want = np.array(theirs.scores[: len(ids)]), ours.logits(ids)
    off = np.abs(got - want).max() / np.abs(want).max()
    print(f"\n{path.name}: {len(ids)} tokens, logits off by {off:.2g} of the largest")
    assert off <= most


@pytest.mark.parametrize(
    ("kind", "most"), [("f32", 2e-3), ("f16", 5e-3), ("bf16", 3e-2), ("q8_0", 1e-1)]
)
@pytest.mark.parametrize("case", CASES)
def test_the_same_ids_and_logits(tmp_path: Path, case: str, kind: str, most: float) -> None:
    config: ModelConfig = CASES[case]
    weights = {n: w * (0.2 if w.ndim > 1 else 1) for n, w in random_weights(config).items()}
    save_model(tmp_path / "m", config, TOKENIZER, weights)
    export_model(tmp_path / "m", tmp_path / "m.gguf", kind=kind)
    compare(tmp_path / "m", tmp_path / "m.gguf", prose(8, seed=4), most)


@pytest.mark.parametrize("split", sorted(KNOWN))
def test_words_are_cut_alike(tmp_path: Path, split: str) -> None:
    import json

    described = json.loads(TOKENIZER.to_json()) | {"pre_tokenizer": pre_tokenizer(split)}
    described["model"]["ignore_merges"] = split == "llama-bpe"
    tokenizer = Tokenizer.from_json(json.dumps(described).encode(), "here")
    save_model(tmp_path / "m", WIDE, tokenizer, random_weights(WIDE))
    export_model(tmp_path / "m", tmp_path / "m.gguf")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    files = sorted(Path(crystalline.__file__).parent.rglob("*.py"))[:30]
    texts = [p.read_text() for p in files] + ["Ünïcode ☃ 日本語 🙂\t\n\r\n x  y", "1984  5 007"]
    for text in texts:
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text).tolist()


@pytest.mark.skipif(
    not os.environ.get("CRYSTALLINE_SMOLLM2"),
    reason="CRYSTALLINE_SMOLLM2 does not name the GGUF file; run `make smollm2`",
)
def test_smollm2_comes_back_as_it_went(tmp_path: Path) -> None:
    import_model(os.environ["CRYSTALLINE_SMOLLM2"], tmp_path / "m")
    text = Path(crystalline.data.tokenizer.__file__).read_text()
    for kind, most in (("f32", 5e-3), ("q8_0", 0.15)):
        export_model(tmp_path / "m", tmp_path / f"{kind}.gguf", kind=kind)
        compare(tmp_path / "m", tmp_path / f"{kind}.gguf", text, most)
    theirs = opened(tmp_path / "f32.gguf", 256)
    said = theirs.create_completion("Once upon a time", max_tokens=30, temperature=0)
    ours = crystalline.load(tmp_path / "m")
    want = ours.generate("Once upon a time", max_tokens=30, temperature=0)
    assert said["choices"][0]["text"] == want
