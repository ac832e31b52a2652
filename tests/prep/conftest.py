"""What all tests of data_prep share: pictures and tars."""

import contextlib
import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mpp.remote import retries, s3
from tests import official_imagenet
from tests.object_store import ObjectStore


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
    return official_imagenet.write_tar


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ObjectStore]:
    """A store for all tests of a module, so that what talks to it is made once."""
    with pytest.MonkeyPatch.context() as patch, ObjectStore(tmp_path_factory.mktemp("store")) as store:
        patch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=2, read_seconds=1, waits=(0, 0, 0.01)))
        patch.setattr(s3, "_clients", {})
        for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush-hush", "AWS_ENDPOINT_URL": store.endpoint}.items():
            patch.setenv(name, value)
        yield store
