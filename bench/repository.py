"""The seed model on a whole repository: 4.5 MB of C, headers and documentation, ten passes.

    python bench/repository.py build/repository --precision bf16
    python bench/repository.py build/repository --precision fp32 -- --lr 1e-3

The corpus is made in FOLDER if it is not there (bench/corpus.py); the model has V 10000, D 256,
L 4, H 8, T 256, full loss. What comes after `--` is handed on to `crystalline train`. Prints, and
keeps in FOLDER/runs, how long training took, its validations, samples, and how much of the model's
code parses beside the held-out code of the corpus.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from corpus import gather

from crystalline.data.reading import collect, split
from crystalline.words import clock

EPOCHS = 10
LIMITS = {"bf16": 30, "fp32": 55}  # minutes on two cores
TOLD_EVERY = 30.0  # seconds between two lines of progress
PROMPTS = ("int main", "## ", "struct ")  # of the texts that are shown


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "crystalline", *map(str, words)]


def said_by(*words: Any) -> Any:
    """The JSON that a crystalline command writes."""
    return json.loads(subprocess.run(
        command(*words, "--json"), stdout=subprocess.PIPE, text=True, check=True
    ).stdout)  # fmt: skip


def train(texts: Path, out: Path, words: Iterable[Any]) -> dict[str, Any]:
    """One training: its plan, its validations, its end, its seconds by the wall's clock."""
    kept: dict[str, Any] = {"validations": [], "steps": []}
    told = begun = time.monotonic()
    run = command("train", texts, "--out", out, *words, "--json")
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            kind = event["event"]
            if kind in ("data", "plan", "done"):
                kept[kind] = event
            elif kind == "validation":
                kept["validations"].append(event)
            elif kind == "step":
                kept["steps"].append((event["step"], event["loss"]))
                kept["speed"], kept["peak_mib"] = event["tokens_per_s"], event["peak_mib"]
                if time.monotonic() - told > TOLD_EVERY:
                    told = time.monotonic()
                    at = f"step {event['step']:,} of {event['steps']:,}"
                    left = clock(event["eta"])
                    click.echo(f"{at}, loss {event['loss']:.3f}, {left} left", err=True)
    if process.returncode:
        raise click.ClickException(f"training ended with {process.returncode}")
    return {**kept, "wall": time.monotonic() - begun}


def held_out_code(texts: Path) -> list[str]:
    """The C that crystalline holds out of the corpus: it goes by the files' names."""
    held = [piece.source.path for piece in split(collect(texts)[0])[1]]
    return [path for path in held if path.endswith((".c", ".h"))]


def measured(texts: Path, out: Path, samples: int) -> dict[str, Any]:
    """Parse shares and a few samples of a trained model."""
    code = said_by("eval", out, *held_out_code(texts), "--code", "c", "--samples", samples)
    whole = said_by("eval", out)
    written = {
        prompt: said_by("generate", out, "--prompt", prompt, "--max-tokens", 150)["text"]
        for prompt in PROMPTS
    }
    return {"code": code, "held_out": whole["total"], "samples": written}


def percent(shares: dict[str, Any], side: str) -> str:
    return f"{100 * shares[side]['tree-sitter']:.0f} %"


def report(run: dict[str, Any]) -> list[str]:
    """A run in Markdown."""
    plan, done, limit = run["plan"], run["done"], LIMITS[run["precision"]]
    code = run["code"]
    lines = [
        f"{run['corpus']['bytes']:,} bytes ({run['corpus']['sha256'][:12]}), "
        f"{plan['train_tokens']:,} tokens to learn from, {plan['validation_tokens']:,} held out; "
        f"{plan['parameters']:,} parameters, {run['precision']}, {plan['threads']} threads",
        "",
        f"* {done['step']:,} steps in {run['wall'] / 60:.1f} minutes (limit {limit}), "
        f"{run['tokens'] / done['seconds']:,.0f} tokens/s, peak memory {run['peak_mib']:,.0f} MiB",
        f"* held out: {run['held_out']['loss']:.4f} nats per token, perplexity "
        f"{run['held_out']['perplexity']:.1f}, {run['held_out']['bits_per_byte']:.4f} bits per "
        f"byte; best validation {done['best']:.4f} at step {done['best_step']:,}",
        f"* parses: {percent(code['shares'], 'generated')} of what it writes, "
        f"{percent(code['shares'], 'real')} of real code cut to the same lengths",
    ]
    for prompt, share in code["prompts"].items():
        lines.append(
            f"  * `{prompt}`: {percent(share, 'generated')}, real {percent(share, 'real')} "
            f"of {share['pieces']}"
        )
    for prompt, text in run["samples"].items():
        lines += ["", "```", prompt + text, "```"]
    return lines


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--precision", type=click.Choice(list(LIMITS)), default="bf16", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--steps", type=int, help="Train for so many steps instead of ten passes.")
@click.option("--samples", default=64, show_default=True, help="Pieces of code.")
@click.option("--name", help="Of the run's folder.  [default: the precision]")
@click.option("--debs", type=click.Path(path_type=Path), help="Folder of package files.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def main(
    folder: Path, words: tuple[str, ...], precision: str, threads: int, steps: int | None,
    samples: int, name: str | None, debs: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Trains the seed model on the corpus in FOLDER, and measures it."""
    manifest = gather(folder, debs)
    out = folder / "runs" / (name or precision)
    if out.exists():
        raise click.ClickException(f"{out} exists; remove it, or give --name")
    length = ("--steps", steps) if steps else ("--epochs", EPOCHS)
    options = ("--preset", "seed", "--precision", precision, "--threads", threads, *length, *words)
    run = train(folder / "texts", out, options)
    run["tokens"] = json.loads((out / "training_state.json").read_text())["progress"]["tokens"]
    run |= measured(folder / "texts", out, samples)
    run |= {"precision": precision, "words": list(words)}
    run["corpus"] = {key: manifest[key] for key in ("bytes", "sha256", "parts", "by_suffix")}
    (out / "run.json").write_text(json.dumps(run) + "\n")
    click.echo(json.dumps(run) if as_json else "\n".join(report(run)))


if __name__ == "__main__":
    main()
