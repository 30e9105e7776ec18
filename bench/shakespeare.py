"""Time to quality on Tiny Shakespeare, judged by others:

    python bench/shakespeare.py --minutes 1.5 --minutes 3 --minutes 10

For each, in a fresh process, `crystalline train tinyshakespeare.txt --minutes M` and nothing else
said; the clock is that process's, tokenizer and checkpoints included. The folder it leaves is then
read by transformers and tokenizers, which never saw crystalline: the nats they give the last tenth
of the text, over its bytes. It is cut in windows of the model's own length, side by side, between
two end-of-text tokens, as crystalline's validation does it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from crystalline.demo import bundled_text

BARS = {1.5: 2.15, 3.0: 2.08, 10.0: 2.03}  # bits per byte to reach after so many minutes
ROWS = 64  # windows that transformers takes at once


def held_out(text: bytes) -> bytes:
    """The last tenth, as everyone cuts this text: nine tenths of it are rounded down."""
    return text[len(text) * 9 // 10 :]


def outside(folder: Path, text: str) -> dict[str, float]:
    """What transformers and tokenizers make of a text with the model in a folder."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    end, T = model.config.eos_token_id, model.config.max_position_embeddings
    row = torch.tensor([end, *ids, end])
    inputs, targets = row[:-1], row[1:]
    missing = -len(inputs) % T
    inputs = torch.cat([inputs, torch.full((missing,), end)]).reshape(-1, T)
    targets = torch.cat([targets, torch.full((missing,), -100)]).reshape(-1, T)
    nats = 0.0
    with torch.no_grad():
        for at in range(0, len(inputs), ROWS):
            logits = model(inputs[at : at + ROWS]).logits.double()
            nats += float(torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets[at : at + ROWS].flatten(), reduction="sum"
            ))  # fmt: skip
    size = len(text.encode())
    return {"nats": nats, "tokens": len(row) - 1, "bytes": size,
            "bits_per_byte": nats / math.log(2) / size}  # fmt: skip


def trained(text: Path, out: Path, minutes: float) -> dict[str, Any]:
    """A training as a user starts it: how long it took and what it said."""
    command = [sys.executable, "-m", "crystalline", "train", str(text), "--out", str(out)]
    command += ["--minutes", str(minutes), "--json"]
    begun = time.monotonic()
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - begun
    events = [json.loads(line) for line in run.stdout.splitlines()]
    plan = next(e for e in events if e["event"] == "plan")
    done = next(e for e in reversed(events) if e["event"] == "done")
    return {
        "minutes": minutes, "seconds": seconds, "steps": done["step"],
        "said": done["validation"]["bits_per_byte"], "best": done["best_bits_per_byte"],
        "vocab_size": plan["vocab_size"], "dim": plan["dim"], "layers": plan["layers"],
        "seq_len": plan["seq_len"], "parameters": plan["parameters"],
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """The runs in Markdown."""
    lines = ["| minutes | seconds | bits per byte | bar | crystalline's own figure | model |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for run in runs:
        bar = BARS.get(run["minutes"])
        met = ""
        if bar is not None:
            met = f"{bar:.2f}: {'met' if run['bits_per_byte'] <= bar else 'missed'}"
        lines.append(
            f"| {run['minutes']:g} | {run['seconds']:.1f} | {run['bits_per_byte']:.3f} | {met} | "
            f"{run['said']:.3f} | {run['parameters']:,} parameters: width {run['dim']}, "
            f"{run['layers']} layers, vocabulary {run['vocab_size']}, context {run['seq_len']}; "
            f"{run['steps']} steps |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--minutes", multiple=True, default=list(BARS), type=float, show_default=True)
@click.option("--repeat", default=1, show_default=True, help="Runs of each.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def main(minutes: list[float], repeat: int, as_json: bool) -> None:
    """Trains on Tiny Shakespeare for so long and asks transformers what it is worth."""
    whole, runs = bundled_text(), []
    tail = held_out(whole).decode()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "tinyshakespeare.txt"
        text.write_bytes(whole)
        for m in [m for m in minutes for _ in range(repeat)]:
            out = Path(folder) / f"model-{len(runs)}"
            runs.append({**trained(text, out, m), **outside(out, tail)})
            print(table(runs[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    click.echo(json.dumps({"bars": BARS, "runs": runs}) if as_json else table(runs))


if __name__ == "__main__":
    main()
