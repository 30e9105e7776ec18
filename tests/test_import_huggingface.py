"""Hugging Face Llama folders: what transformers wrote is read, to the same logits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import prose
from formats_cases import TINY, TOKENIZER, random_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import crystalline
from crystalline.checkpoints.checkpoint import MODEL_FILES, load_model, save_model
from crystalline.decoder.scaling import RopeScaling
from crystalline.errors import CheckpointError, CrystallineError, UsageError
from crystalline.formats.convert import export_model, import_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip


def written(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A folder as transformers saves it; returns the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=311, hidden_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=52, max_position_embeddings=24, rms_norm_eps=1e-5,
        initializer_range=0.3,
        **{"tie_word_embeddings": True, "eos_token_id": 0, "bos_token_id": 0,
           **changes.pop("config", {})},
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder, **changes)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.to_json())
    return model


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.float()(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_type_and_form_is_read_to_the_last_bit(
    tmp_path: Path, shards: dict[str, str], dtype: torch.dtype, tied: bool
) -> None:
    model = written(tmp_path / "hf", dtype, config={"tie_word_embeddings": tied}, **shards)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == bool(shards)
    import_model(tmp_path / "hf", tmp_path / "m")
    config, tokenizer, weights = load_model(tmp_path / "m")
    want = model.float().state_dict()
    assert weights.keys() == want.keys() - ({"lm_head.weight"} if tied else set())
    assert all(np.array_equal(w, want[name].numpy()) for name, w in weights.items())
    assert config == replace(TINY, tied=tied)
    assert tokenizer.to_json() == TOKENIZER.to_json()
    ids = np.arange(20) * 13 % 311
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ours = crystalline.load(tmp_path / "m").logits(ids)
    np.testing.assert_allclose(ours, logits(theirs, ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.5}, LLAMA3],
                         ids=["linear", "llama3"])  # fmt: skip
def test_stretched_positions_give_the_same_logits_there_and_back(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    model = written(tmp_path / "hf", config={"rope_parameters": {"rope_theta": 500.0, **rope}})
    import_model(tmp_path / "hf", tmp_path / "m")
    ids = np.arange(24) * 13 % 311
    want = logits(model, ids)
    ours = crystalline.load(tmp_path / "m")
    assert ours.config.rope_scaling is not None
    np.testing.assert_allclose(ours.logits(ids), want, rtol=1e-3, atol=1e-3)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    np.testing.assert_allclose(logits(again, ids), want, rtol=1e-6, atol=1e-6)
    plain = replace(ours.config, rope_scaling=None)
    save_model(tmp_path / "plain", plain, ours.tokenizer, load_model(tmp_path / "m")[2])
    assert np.abs(crystalline.load(tmp_path / "plain").logits(ids) - want).max() > 0.1


def test_typical_llama3_scaling_is_what_transformers_computes(tmp_path: Path) -> None:
    from crystalline.decoder.positions import rope_tables

    rope = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(
        hidden_size=2048, num_attention_heads=32, max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **rope},
    )  # fmt: skip
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    want = LlamaRotaryEmbedding(config).inv_freq.numpy()
    scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    cosine, sine = rope_tables(2, 64, 500000.0, scaling)
    np.testing.assert_allclose(np.arctan2(sine[1], cosine[1]), want, rtol=2e-6)


def test_the_end_the_beginning_and_the_template_are_kept(tmp_path: Path) -> None:
    described = json.loads(TOKENIZER.to_json())
    first = described["added_tokens"][0]
    described["added_tokens"] += [
        first | {"id": 300, "content": "<s>"}, first | {"id": 301, "content": "<end>"},
    ]  # fmt: skip
    for at in ("tokenizer_config.json", "chat_template.jinja"):
        folder, out = tmp_path / f"hf-{at}", tmp_path / f"m-{at}"
        written(folder, config={"eos_token_id": [301, 0], "bos_token_id": 300})
        (folder / "tokenizer.json").write_text(json.dumps(described, indent=1))
        said = "{{ x }}" if at.endswith("jinja") else json.dumps({"chat_template": "{{ x }}"})
        (folder / at).write_text(said)
        import_model(folder, out)
        made = load_model(out)[1]
        assert (made.eot, made.bos, made.chat_template) == (301, 300, "{{ x }}")
        assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
        theirs = AutoTokenizer.from_pretrained(out)
        assert (theirs.eos_token, theirs.bos_token) == ("<end>", "<s>")
        assert theirs.chat_template == "{{ x }}"
        text = prose(40, seed=5) + "é☃ 1984  5"
        assert theirs.encode(text, add_special_tokens=False) == made.encode(text).tolist()


def test_a_hugging_face_export_is_the_model_itself(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    save_model(tmp_path / "m", TINY, TOKENIZER, weights, optimizer={}, state={"step": 1})
    export_model(tmp_path / "m", tmp_path / "out", "hf")
    for name in MODEL_FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    assert not (tmp_path / "out" / "training_state.json").exists()
    ids = np.arange(20) * 13 % 311
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = crystalline.load(tmp_path / "out").logits(ids)
    np.testing.assert_allclose(ours, logits(theirs, ids), rtol=1e-3, atol=1e-3)


# --- refusing -------------------------------------------------------------------------------------


def config_with(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors_with(**changes: Any) -> Any:
    """Other tensors under their names; None takes one out."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path) | {k.replace("__", "."): v for k, v in changes.items()}
        save_file({k: v for k, v in tensors.items() if v is not None}, path)

    return change


def file_with(name: str, content: bytes | None) -> Any:
    def change(folder: Path) -> None:
        path = folder / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return change


def unreadable(folder: Path) -> None:
    (folder / "tokenizer_config.json").mkdir()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def sharded(index: Any) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


NORM = "model.norm.weight"
REFUSED = [
    (config_with(model_type="mistral"), "model_type is 'mistral', but crystalline computes the"),
    (config_with(attention_bias=True), "attention_bias is True, but crystalline's layers have no"),
    (config_with(mlp_bias=True), "mlp_bias is True, but crystalline's layers have no biases"),
    (config_with(hidden_act="gelu"), "hidden_act is 'gelu', but crystalline's feed-forward"),
    (config_with(head_dim=16), "head_dim is 16, but hidden_size / num_attention_heads is 10"),
    (config_with(rope_parameters={"rope_type": "yarn"}), "rope_parameters is 'yarn', but"),
    (config_with(rope_scaling={"rope_type": "llama3", "factor": 8}), "low_freq_factor is missing"),
    (config_with(rope_scaling=LLAMA3 | {"factor": 0.5}), "factor of rope_scaling is 0.5, but"),
    (config_with(rope_scaling=LLAMA3 | {"low_freq_factor": 4}), "must be below high_freq_factor"),
    (config_with(eos_token_id=5), "texts end with token 5, which is none of its"),
    (config_with(vocab_size=299), "tokenizer.json: has 300 tokens, the model in config.json"),
    (file_with("config.json", b"[1]"), "config.json: not a JSON object"),
    (file_with("config.json", None), "holds no config.json; give the folder of"),
    (file_with("tokenizer.json", None), "tokenizer.json: the file is missing; fetch"),
    (without_tokenizer, "its tokenizer is SentencePiece (tokenizer.model)"),
    (file_with("model.safetensors", None), "holds neither model.safetensors nor"),
    (unreadable, "cannot be read (Is a directory); allow it"),
    (cut, "not a whole safetensors file"),
    (file_with("model.safetensors", b"\xff" * 200), "not a whole safetensors file"),
    (file_with("model.safetensors", b""), "not a whole safetensors file"),
    (file_with("model.safetensors", b"\x04" + b"\0" * 7 + b"[[]]"), "not a whole safetensors file"),
    (tensors_with(model__norm__weight=None), f"{NORM} is in no file; fetch the whole folder"),
    (tensors_with(model__norm__weight=torch.zeros(41)), f"{NORM} is (41,), config.json says (40,)"),
    (tensors_with(model__norm__weight=torch.zeros(40, dtype=torch.int8)), f"{NORM} is I8, but"),
    (tensors_with(model__norm__weight=torch.full((40,), torch.inf)), f"{NORM} holds values that"),
    (tensors_with(model__extra__bias=torch.zeros(4)), "holds model.extra.bias, but crystalline's"),
    (sharded({"weight_map": {}}), "its weight_map names no files"),
    (sharded({"weight_map": {NORM: "../x"}}), "its weight_map names no files"),
    (sharded({"weight_map": {NORM: "model-2.safetensors"}}), "model-2.safetensors: the file is"),
    (sharded({"weight_map": {"x": "model-1.safetensors"}}), "model-1.safetensors: x is missing"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_not_read_is_refused_in_a_line(tmp_path: Path, change: Any, message: str) -> None:
    written(tmp_path / "hf")
    change(tmp_path / "hf")
    with pytest.raises(CrystallineError, match=re.escape(message)) as info:
        import_model(tmp_path / "hf", tmp_path / "m")
    assert str(info.value).startswith(f"{tmp_path}/hf") and "; " in str(info.value)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "m").exists()


def test_what_older_versions_saved_beside_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path / "hf")
    old = {"model__layers__0__self_attn__rotary_emb__inv_freq": torch.zeros(5),
           "lm_head__weight": torch.zeros(311, 40)}  # fmt: skip
    # Single underscores belong to the names.
    tensors_with(**old)(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "m")


def test_a_folder_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "m")
    before = (tmp_path / "m" / "checksums.json").read_bytes()
    with pytest.raises(UsageError, match="holds a model already"):
        import_model(tmp_path / "hf", tmp_path / "m")
    with pytest.raises(UsageError, match="holds files that are not a model's"):
        import_model(tmp_path / "hf", tmp_path / "hf")
    assert (tmp_path / "m" / "checksums.json").read_bytes() == before


def test_what_is_no_model_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML" + b"\0" * 50)
    for source, message in (
        (tmp_path / "nothing", "cannot be read (No such file or directory); check the path"),
        (tmp_path / "x.gguf", "is no GGUF file; give one, or the folder"),
        (tmp_path, f"holds no config.json; give one of its files, such as {tmp_path}/x.gguf"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            import_model(source, tmp_path / "m")


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    from crystalline.formats.huggingface import read_huggingface

    written(tmp_path / "hf")
    source = read_huggingface(str(tmp_path / "hf"))
    path = tmp_path / "hf" / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="ends inside model"):
        for weight in source.weights.values():
            np.asarray(weight)
