"""Checkpoints: what is saved comes back, transformers reads it, and any damage is named."""

import dataclasses
import json
import logging
import os
import tracemalloc
import warnings

import numpy as np
import pytest
from checkpoint_cases import CONFIG, TOKENIZER, Case, weights_of

from crystalline.checkpoints.checkpoint import load_model, load_training, save_model
from crystalline.config import ModelConfig, parameter_shapes
from crystalline.errors import CheckpointError
from crystalline.files import Stamp, manifest_bytes, parse_manifest, stamp_of_file

MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors",
)  # fmt: skip
TRAINING_FILES = ("optimizer.safetensors", "training_state.json")
TEXTS = ["to be or not", "", " ", "  two\n\n\tlines ", "Übergrößé 日本語 \U0001f600", "don't 123"]


def test_everything_comes_back(tmp_path):
    optimizer = {
        "m.embed": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float64),
        "flags": np.array([1, 0, 255], np.uint8),
    }
    state = {"step": 3, "best": 1.0 / 3.0, "worst": float("inf"), "rng": [2**127, "π"]}
    weights = weights_of(CONFIG, 1)
    save_model(tmp_path / "m", CONFIG, TOKENIZER, weights, optimizer=optimizer, state=state)
    assert set(os.listdir(tmp_path / "m")) == {*MODEL_FILES, *TRAINING_FILES, "checksums.json"}

    config, tokenizer, loaded = load_model(str(tmp_path / "m"))
    assert config == CONFIG
    assert tokenizer.to_json() == TOKENIZER.to_json()
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        assert np.array_equal(loaded[name], weight)
        assert loaded[name].dtype == np.float32
    found, found_state = load_training(tmp_path / "m")
    assert found_state == state
    assert found.keys() == optimizer.keys()
    for name, tensor in optimizer.items():
        assert np.array_equal(found[name], tensor)
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)


def test_the_loaded_arrays_are_the_callers_own(tmp_path):
    case = Case(1)
    case.save(tmp_path)
    _, _, weights = load_model(tmp_path)
    for weight in weights.values():
        weight[:] = 1.0
    assert case.is_in(tmp_path)


def test_the_same_checkpoint_is_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        Case(1).save(tmp_path / folder)
    for name in os.listdir(tmp_path / "a"):
        assert stamp_of_file(tmp_path / "a" / name) == stamp_of_file(tmp_path / "b" / name)


def test_the_model_loads_without_its_training_files(tmp_path):
    Case(1).save(tmp_path)
    for name in TRAINING_FILES:
        os.unlink(tmp_path / name)
    load_model(tmp_path)


def test_a_model_without_training_says_so(tmp_path):
    Case(1, training=False).save(tmp_path)
    assert set(os.listdir(tmp_path)) == {*MODEL_FILES, "checksums.json"}
    with pytest.raises(CheckpointError, match=r"holds no training_state\.json"):
        load_training(tmp_path)


def test_saving_streams_the_tensors(tmp_path):
    config = ModelConfig(70000, 64, 1, 2, 1, 12, 16)
    weights = weights_of(config, 0)
    weights["model.embed_tokens.weight"] = np.zeros((70000, 64), np.float32)
    size = sum(weight.nbytes for weight in weights.values())
    tracemalloc.start()
    save_model(tmp_path, config, TOKENIZER, weights, optimizer=weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10


# --- What cannot be saved -------------------------------------------------------------------------


def without(weights, name):
    return {n: w for n, w in weights.items() if n != name}


NORM = "model.norm.weight"
UNFIT = [
    (lambda w: without(w, NORM), f"tensor {NORM} is missing"),
    (lambda w: {**w, "extra": w[NORM]}, "tensor extra is in no model of this config"),
    (lambda w: {**w, NORM: w[NORM][:4]}, f"{NORM} is float32 \\(4,\\), .* float32 \\(8,\\)"),
    (lambda w: {**w, NORM: w[NORM].astype("f8")}, f"{NORM} is float64"),
    (lambda w: {**w, NORM: w[NORM].astype(">f4")}, f"{NORM} is >f4"),
]


@pytest.mark.parametrize(("change", "complaint"), UNFIT)
def test_weights_that_do_not_fit_the_config_are_not_saved(tmp_path, change, complaint):
    case = Case(1)
    case.save(tmp_path)
    with pytest.raises(CheckpointError, match=complaint):
        save_model(tmp_path, CONFIG, TOKENIZER, change(weights_of(CONFIG, 1)))
    assert case.is_in(tmp_path)


def test_a_tokenizer_larger_than_the_model_is_not_saved(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size - 1)
    with pytest.raises(CheckpointError, match="tokens, the model in config"):
        save_model(tmp_path, config, TOKENIZER, weights_of(config, 1))


@pytest.mark.parametrize(
    "extra", [{"optimizer": {"m": np.zeros(3, np.complex64)}}, {"state": {"step": object()}}]
)
def test_training_that_has_no_place_in_the_files_is_the_callers_mistake(tmp_path, extra):
    with pytest.raises(TypeError):
        save_model(tmp_path / "m", CONFIG, TOKENIZER, weights_of(CONFIG, 1), **extra)
    assert not (tmp_path / "m").exists()


# --- Hugging Face ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_folder_as_it_stands(tmp_path, caplog, kv_heads, tied):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.utils.logging.enable_propagation()
    config = ModelConfig(280, 16, 2, 4, kv_heads, 24, 32, rope_theta=5e5, tied=tied)
    weights = weights_of(config, 3)
    save_model(tmp_path, config, TOKENIZER, weights, optimizer=weights, state={})
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, output_loading_info=True
        )
        ids = torch.tensor([[5, 6, 7]])
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert not [record.getMessage() for record in caplog.records]
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert not any(report.values()), report
    assert model.config.rope_parameters["rope_theta"] == 5e5
    theirs = dict(model.named_parameters())
    assert theirs.keys() == parameter_shapes(config).keys()
    for name, weight in weights.items():
        assert theirs[name].dtype == torch.float32
        assert np.array_equal(theirs[name].detach().numpy(), weight)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_transformers_makes_the_same_ids(tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.enable_propagation()
    save_model(tmp_path, CONFIG, TOKENIZER, weights_of(CONFIG, 1))
    with caplog.at_level(logging.WARNING):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not caplog.records
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == TOKENIZER.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (TOKENIZER.eot, TOKENIZER.eot)
    assert len(theirs) == TOKENIZER.vocab_size
    assert theirs.model_max_length == CONFIG.seq_len


def test_safetensors_reads_what_we_stream(tmp_path):
    from safetensors import safe_open  # only here

    weights = weights_of(CONFIG, 1)
    save_model(tmp_path, CONFIG, TOKENIZER, weights)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.offset_keys() == list(weights)
    header = (tmp_path / "model.safetensors").read_bytes()[:8]
    assert int.from_bytes(header, "little") % 8 == 0


# --- Damage ---------------------------------------------------------------------------------------


def flip(data, share, bit):
    at = min(int(share * len(data)), len(data) - 1)
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


DAMAGE = {
    **{
        f"bit {bit} flipped at {share}": lambda data, s=share, b=bit: flip(data, s, b)
        for share, bit in ((0.0, 0), (0.3, 7), (0.5, 5), (0.9, 1), (1.0, 4))
    },
    "truncated to half": lambda data: data[: len(data) // 2],
    "truncated by one": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "one too long": lambda data: data + b"\n",
    "missing": lambda data: None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*MODEL_FILES, *TRAINING_FILES, "checksums.json"])
def test_damage_to_any_file_is_named_in_one_line(tmp_path, name, damage):
    case = Case(1)
    case.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    data = DAMAGE[damage](whole)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_training(tmp_path) if name in TRAINING_FILES else load_model(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "restore it from a copy, or train again" in message
    if name == "checksums.json":
        assert ("missing" if data is None else "damaged") in message
    elif data is None:
        assert "the file is missing" in message
    elif len(data) == len(whole):
        assert "checksum differs" in message
    else:
        assert ("truncated" if len(data) < len(whole) else "too long") in message
    if name in TRAINING_FILES:
        load_model(tmp_path)
    case.save(tmp_path)  # saving anew mends all
    assert case.is_in(tmp_path)


def test_every_bit_of_a_manifest_counts():
    manifest = {"config.json": Stamp(12, "ab" * 32), "model.safetensors": Stamp(0, "cd" * 32)}
    data = manifest_bytes(manifest)
    assert parse_manifest(data) == manifest
    for at in range(len(data)):
        for bit in range(8):
            changed = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            assert parse_manifest(changed) is None
        assert parse_manifest(data[:at]) is None
    for other in (b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}}', b"[" * 100000):
        assert parse_manifest(other) is None


def replace(folder, name, data):
    """Replace a file and its checksum, as a forger or a broken exporter would."""
    (folder / name).write_bytes(data)
    manifest = parse_manifest((folder / "checksums.json").read_bytes())
    manifest[name] = stamp_of_file(folder / name)
    (folder / "checksums.json").write_bytes(manifest_bytes(manifest))


def test_files_with_good_checksums_that_do_not_fit_each_other(tmp_path):
    case = Case(1)
    hf = case.config.to_hf(0)
    for name, data, complaint in (
        ("config.json", b"{", "not JSON"),
        ("config.json", b"\xff", "not JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", json.dumps({**hf, "num_attention_heads": 3}), "num_attention_heads is 3"),
        ("config.json", json.dumps({**hf, "mlp_bias": True}), "mlp_bias is True"),
        ("config.json", json.dumps({**hf, "num_hidden_layers": 2}), r"model\.layers\.1.* missing"),
        ("config.json", json.dumps({**hf, "num_hidden_layers": 1, "vocab_size": 9}), "tokens"),
        ("config.json", json.dumps({**hf, "intermediate_size": 16}), r"\(16, 8\)"),
        ("tokenizer.json", b"{}", r"tokenizer\.json"),
        ("model.safetensors", b"", "not a whole safetensors file"),
        ("model.safetensors", b"\xff" * 40, "not a whole safetensors file"),
    ):
        case.save(tmp_path)
        replace(tmp_path, name, data if isinstance(data, bytes) else data.encode())
        with pytest.raises(CheckpointError, match=complaint) as caught:
            load_model(tmp_path)
        assert str(caught.value).startswith(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_a_manifest_of_files_we_do_not_know_is_refused(tmp_path):
    Case(1).save(tmp_path)
    replace(tmp_path, "../stolen", b"x")
    with pytest.raises(CheckpointError, match=r"checksums\.json: damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_training])
def test_folders_that_hold_no_checkpoint(tmp_path, load):
    with pytest.raises(CheckpointError, match="holds no checkpoint; give the folder"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder; give the folder"):
        load(tmp_path / "none")


def test_a_file_that_cannot_be_read(tmp_path):
    Case(1).save(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be read .*config\.json") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
