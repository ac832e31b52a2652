"""What all tests of data_prep share: its modules on the path, pictures and tars."""

import contextlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "data_prep"))


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """(number, format, size) -> a small image's bytes, a pure function of them."""

    def draw(number: int, form: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(buffer, form)
        return buffer.getvalue()

    return draw


@pytest.fixture(scope="session")
def no_bar():
    """A progress bar that shows nothing."""
    return lambda what, total: contextlib.nullcontext(SimpleNamespace(update=lambda done: None))


@pytest.fixture(scope="session")
def write_tar():
    """write_tar(path or None, {name: bytes, tarfile.TarInfo or None for a folder}, mode="w") -> the tar's bytes."""

    def write(path: Path | None, members: dict, mode: str = "w") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, data in members.items():
                info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
                if data is None:
                    info.type = tarfile.DIRTYPE
                info.size = len(data) if isinstance(data, bytes) else 0
                tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
        if path:
            path.write_bytes(buffer.getvalue())
        return buffer.getvalue()

    return write
