"""The programs of data_prep are scripts that import their neighbours."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "data_prep"))
