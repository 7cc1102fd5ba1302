"""Imported by a benchmark that was started by its path: lets it import the checkout's packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
