"""Train on a folder for a minute, then write something.

python examples/train_and_generate.py PATH_TO_TEXT_OR_CODE [OUT_FOLDER]
"""

import sys

import crystalline

if len(sys.argv) < 2:
    sys.exit(__doc__)
out = sys.argv[2] if len(sys.argv) > 2 else "models/example"


def show(event: dict) -> None:
    """The library prints nothing; it tells."""
    if event["event"] == "validation":
        print(f"step {event['step']:6}  {event['bits_per_byte']:.3f} bits per byte")


model = crystalline.train(sys.argv[1], out, minutes=1, on_event=show)
for piece in model.stream("The", max_tokens=120, temperature=0.8, top_p=0.95):
    print(piece, end="", flush=True)
print()
