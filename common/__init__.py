"""What every step needs and no step teaches."""

import os
import sys
from pathlib import Path

# Python puts a script's own folder first on sys.path, where step2_bert/evaluate.py would hide the
# library `evaluate`. Steps import each other by full name, so the entry serves nothing.
_steps = [str(step) for step in Path(__file__).resolve().parent.parent.glob("step*")]
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) not in _steps]
