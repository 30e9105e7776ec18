"""What a model's folder holds, with every file of it checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, STATE, load_model, load_training
from crystalline.checkpoints.kept import LAST, LAYERS, MILESTONE, listed
from crystalline.checkpoints.state_format import migrated
from crystalline.config import parameter_count
from crystalline.data.shards import TokenStore
from crystalline.files import parse_manifest
from crystalline.spheres.messages import Setting
from crystalline.words import clock, plural, score


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Sizes, training and files of the model in a folder, as JSON-able values.

    ``training`` and ``data`` are None in a folder that holds the model alone.  Raises
    CheckpointError if a file is missing or damaged.
    """
    root = Path(folder)
    config, tokenizer, weights = load_model(root)
    files = _files(root)
    state = load_training(root)[1] if STATE in files else None
    state = migrated(state, f"{root}/{STATE}") if state else None
    return {
        "folder": str(root),
        "config": asdict(config),
        "parameters": parameter_count(config),
        "bytes_of_weights": sum(w.nbytes for w in weights.values()),
        "vocabulary": tokenizer.vocab_size,
        "training": _training(state) if state else None,
        "kept": [{"step": k.step, "why": k.why, "path": str(k.path)} for k in listed(root)],
        "data": _data(root),
        "files": files,
        "verified": True,
    }


def _files(root: Path) -> dict[str, int]:
    """The files of the checkpoint and their sizes; ``load_model`` has found the list whole."""
    # A commit that is pending in a read-only folder is what counts there.
    name = COMMIT if (root / COMMIT).exists() else CHECKSUMS
    manifest = parse_manifest((root / name).read_bytes()) or {}
    return {name: stamp.size for name, stamp in manifest.items()}


def _training(state: Mapping[str, Any]) -> dict[str, Any]:
    progress = dict(state["progress"])
    best = {
        "loss": progress.pop("best"),
        "bits_per_byte": progress.pop("best_bits_per_byte", None),
        "step": progress.pop("best_step"),
    }
    return {
        **progress,
        "steps": state["course"]["steps"],
        "best": best if best["loss"] is not None else None,
        "recipe": state["recipe"],
        "model_step": state["model_step"],
        "commands": [c for c in state["commands"] if c["command"] == "SET"],
    }


def _data(root: Path) -> dict[str, Any] | None:
    if not (root / "data").exists() and not (root / "data.new").exists():
        return None
    store = TokenStore.open(root)
    return {
        name: {"documents": split.documents, "tokens": split.tokens, "bytes": split.bytes}
        for name, split in (("train", store.train), ("validation", store.val))
    }


def table(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What ``describe`` gave, as rows for a reader."""
    c = said["config"]
    kv = f" ({c['kv_heads']} key/value)" if c["kv_heads"] != c["heads"] else ""
    rope = ", lattice rope" if c["rope"] == "lattice" else ""
    size = sum(said["files"].values())
    return [
        ("folder", said["folder"]),
        (
            "model",
            f"{said['parameters']:,} parameters: {plural(c['layers'], 'layer')}, width {c['dim']}, "
            f"{plural(c['heads'], 'head')}{kv}, feed-forward {c['hidden']}{rope}",
        ),
        ("context", plural(c["seq_len"], "token")),
        ("vocabulary", f"{said['vocabulary']:,}"),
        *_training_rows(said["training"]),
        *_kept_rows(said["kept"]),
        *_data_rows(said["data"]),
        ("files", f"{len(said['files'])} files, {size / 2**20:,.1f} MiB: all checksums agree"),
    ]


def _training_rows(training: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if training is None:
        return [("training", "none stored: the model can be used, and trained from here")]
    t, r = training, training["recipe"]
    samples = r.get("samples", 0)  # older trainings do not say
    sampled = f", loss over {samples:,} sampled tokens" if samples else ""
    sampled += ", in bf16" if r.get("precision") == "bf16" else ""
    sampled += ", lattice init" if r["init"] == "lattice" else ""
    sampled += f", lambda {r['lambda_correction']:.3g}" if r["lambda_correction"] else ""
    rows = [
        (
            "training",
            f"step {t['step']:,} of {t['steps']:,}, {t['tokens']:,} tokens in "
            f"{clock(t['seconds'])}",
        ),
        (
            "",
            f"batch {r['batch_size']} x {r['accumulate']}, learning rate {r['lr']:.2g}, "
            f"seed {r['seed']}{sampled}",
        ),
    ]
    if t.get("ended"):
        rows.append(("", t["ended"]))
    if t["model_step"] != t["step"]:
        rows.append(("", f"the model is that of step {t['model_step']:,}, the best"))
    rows += [_set_row(command) for command in t["commands"]]
    for name, result in (("validation", t["validation"]), ("best", t["best"])):
        if result is not None:
            text = score(result["loss"], result["bits_per_byte"])
            rows.append((name, f"{text}, at step {result['step']:,}"))
    return rows


def _kept_rows(kept: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The checkpoints to which one can go back, kind by kind."""
    names = {LAST: "kept", MILESTONE: "milestones", LAYERS: "before"}
    rows = []
    for why, name in names.items():
        steps = ", ".join(f"{one['step']:,}" for one in kept if one["why"] == why)
        if steps:
            rows.append((name, ("layers were added: " if why == LAYERS else "") + f"step {steps}"))
    return rows


def _set_row(command: Mapping[str, Any]) -> tuple[str, str]:
    setting, value = Setting(int(command["values"][0])), command["values"][1]
    return ("", f"{setting.name.lower()} {value:g} from step {command['step'] + 1:,} on")


def _data_rows(data: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if data is None:
        return []
    return [
        (
            name,
            f"{plural(part['documents'], 'document')}, {part['tokens']:,} tokens, "
            f"{part['bytes']:,} bytes",
        )
        for name, part in (("learnt from", data["train"]), ("held out", data["validation"]))
    ]
