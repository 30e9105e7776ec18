"""The same work in crystalline, NumPy and PyTorch, in alternation: ``python -m bench.compare``."""

import sys
from pathlib import Path

# The benches are programs in a plain folder: they find each other by lying side by side.
if (_folder := str(Path(__file__).parent.parent)) not in sys.path:
    sys.path.insert(0, _folder)
