"""A trained folder in transformers, as it stands: the same logits, the same ids, the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, prose
from transformers import AutoModelForCausalLM, AutoTokenizer

import crystalline


@pytest.fixture(scope="module", params=["grouped-query", "plain"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hf")
    (root / "prose.txt").write_text(prose(4000))
    heads = {"grouped-query": {}, "plain": {"kv_heads": 4}}[request.param]
    crystalline.train(root / "prose.txt", root / "m", **TINY | heads, steps=150, lr=3e-3)
    return root / "m"


def test_logits_agree(folder: Path) -> None:
    ours = crystalline.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = ours.tokenizer.encode(prose(20, seed=9))[: TINY["seq_len"]]
    with torch.no_grad():
        want = theirs(torch.tensor(ids[None], dtype=torch.long)).logits[0].numpy()
    assert np.abs(ours.logits(ids) - want).max() < 1e-4


def test_tokens_and_greedy_text_agree(folder: Path) -> None:
    ours = crystalline.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt in ("the quick", "seven lamps were", "Ünïcode ☃ and code(x);\n\tend"):
        encoded = tokenizer(prompt, return_tensors="pt")
        assert encoded["input_ids"][0].tolist() == ours.tokenizer.encode(prompt).tolist()
        room = TINY["seq_len"] - encoded["input_ids"].shape[1]
        if room < 1:
            continue
        out = theirs.generate(**encoded, max_new_tokens=room, do_sample=False)
        want = tokenizer.decode(out[0][encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        assert ours.generate(prompt, max_tokens=room, temperature=0) == want


def test_the_best_folder_loads_too(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "best")
    assert model.config.vocab_size == 300
