"""Train in the background: watch, pause, change the learning rate, go on, stop.

python examples/background_training.py [OUT_FOLDER]     # about ten seconds, on the bundled text
"""

import sys
import tempfile
import time
from pathlib import Path

import crystalline
from crystalline import api
from crystalline.demo import bundled_text

SIZES = {"dim": 64, "layers": 2, "seq_len": 64, "batch_size": 24, "vocab_size": 400}


def main(out: Path, text: Path) -> None:
    text.write_bytes(bundled_text()[:200_000])
    with api.training(text, out, steps=100_000, **SIZES) as trainer:
        training = trainer.start()
        for _ in range(3):
            time.sleep(1)
            spheres = training.stats()["spheres"]
            busy = ", ".join(f"{sphere['busy'] / 1e9:.1f}" for sphere in spheres)
            print(f"step {trainer.step_number}: the spheres worked for {busy} s")
        print("paused after step", training.pause())
        print("learning rate halved at step", training.set(learning_rate=trainer.recipe.lr / 2))
        print("resumed at step", training.resume())
        time.sleep(1)
        print("stopped after step", training.stop())
        training.wait()
    print(crystalline.load(out).generate("ROMEO:", max_tokens=60))


with tempfile.TemporaryDirectory() as beside:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(beside) / "model"
    main(folder, Path(beside) / "plays.txt")
