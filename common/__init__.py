"""What every step needs and no step teaches."""

import sys
from pathlib import Path

# Python puts a script's own folder first on sys.path, where step2_bert/evaluate.py would hide the
# library `evaluate`. Steps import each other by full name, so the entry serves nothing.
_root = Path(__file__).resolve().parent.parent
sys.path[:] = [
    p
    for p in sys.path
    if not (p and Path(p).resolve().parent == _root and Path(p).name.startswith("step"))
]
