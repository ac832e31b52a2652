"""`import mpp`: an encoder as a torch module, with the probes' own preprocessing, pooling and extraction."""

import copy
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import mpp
from mpp import api
from mpp.base.errors import CheckpointError, ConfigError, DataError, UserError
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from tests.forks import run_forked
from tests.transfer.conftest import TINY, make_split

ROOT = Path(__file__).parents[1]
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("runs") / "tiny" / "encoder"
    write_encoder(made, build_encoder(TINY, 5).vit.state_dict(), TINY, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), "tiny, seed 5")
    return made


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    return make_split(tmp_path_factory.mktemp("splits") / "train", count=90, seed=1)


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A slope with noise."""
    rng = np.random.default_rng(height * width)
    slope = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 40, width)[:, None] * np.ones(channels)
    return np.clip(slope + rng.normal(0, 8, (height, width, channels)), 0, 255).astype(np.uint8)


def turned_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(30, 22)).save(path, exif=exif, quality=90)


STORED: dict[str, Callable[[Path], None]] = {
    "large.jpg": lambda path: Image.fromarray(pixels(150, 190)).save(path, quality=90),  # decoded at a quarter of its size
    "turned.jpg": turned_jpeg,
    "grey.png": lambda path: Image.fromarray(pixels(24, 31, 1)[..., 0]).save(path),
    "16 bits.png": lambda path: Image.fromarray(pixels(24, 31, 1)[..., 0].astype(np.uint16) * 257).save(path),
    "transparent.png": lambda path: Image.fromarray(pixels(24, 31, 4)).save(path),
    "palette.gif": lambda path: Image.fromarray(pixels(24, 31)).convert("P").save(path),
    "cmyk.jpg": lambda path: Image.fromarray(pixels(24, 31)).convert("CMYK").save(path, quality=90),
    "picture.tif": lambda path: Image.fromarray(pixels(24, 31)).save(path),
    "picture.webp": lambda path: Image.fromarray(pixels(24, 31)).save(path),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    for name, save in STORED.items():
        save(made / name)
    return made


# ------------------------------------------------------------------------------------------------------------- one image


def test_features_of_no_file_are_refused_in_words(folder):
    with pytest.raises(DataError, match=r"^features of no file: the list is empty"):
        mpp.load_encoder(folder).features([])


def test_an_image_is_preprocessed_to_the_bit_as_the_files_of_a_set_whatever_it_is_given_as(folder, pictures):
    encoder = mpp.load_encoder(folder)
    files = sorted(pictures.iterdir())
    images = torch.stack([encoder.preprocess(file) for file in files])
    assert images.dtype == torch.float32
    for file, image in zip(files, images, strict=True):
        assert encoder.preprocess(str(file)).equal(image)
        assert encoder.preprocess(file.read_bytes()).equal(image)
        with Image.open(file) as opened:
            place = opened.fp and opened.fp.tell()
            assert encoder.preprocess(opened).equal(image), f"{file.name}, before it is loaded"
            assert opened.fp is None or opened.fp.tell() == place
            assert opened.load() is not None, "and it can still be loaded"
    found = encoder.features(files, batch=len(files), workers=0)
    assert torch.from_numpy(found.values).equal(encoder(images))
    assert [Path(name).name for name in found.names] == [file.name for file in files]
    assert encoder.features(pictures, workers=0).names == [file.name for file in files]


def test_what_was_loaded_or_changed_is_taken_as_its_pixels_are(folder, pictures):
    encoder = mpp.load_encoder(folder)
    for name in STORED:
        image = Image.open(pictures / name)
        image.load()
        if name == "large.jpg":  # of a file of this size decoding is reduced: half a level in the mean
            off = (encoder.preprocess(image) - encoder.preprocess(pictures / name)).abs().mean()
            assert 0 < off * 0.25 * 255 < 2
        else:
            assert encoder.preprocess(image).equal(encoder.preprocess(pictures / name)), name
    upright = ImageOps.exif_transpose(Image.open(pictures / "turned.jpg"))
    assert (
        encoder.preprocess(upright) - encoder.preprocess(pictures / "turned.jpg")
    ).abs().max() < 0.05  # its resizer rounds in another order
    inverted = ImageOps.invert(Image.open(pictures / "picture.tif"))
    assert not encoder.preprocess(inverted).equal(encoder.preprocess(pictures / "picture.tif"))
    frames = [Image.fromarray(pixels(24, 31) // (1 + i)).convert("P") for i in range(2)]
    frames[0].save(pictures.parent / "two.gif", save_all=True, append_images=frames[1:])
    second = Image.open(pictures.parent / "two.gif")
    second.seek(1)
    assert not encoder.preprocess(second).equal(encoder.preprocess(pictures.parent / "two.gif")), "the frame that is shown counts"


def test_the_square_of_the_encoder_s_own_size_is_normalised_and_nothing_else(folder):
    encoder, square = mpp.load_encoder(folder), pixels(SIDE, SIDE)
    colours = torch.from_numpy(square).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(part)[:, None, None] for part in (encoder.mean, encoder.std))
    torch.testing.assert_close(encoder.preprocess(Image.fromarray(square)), (colours - mean) / std)
    wide = np.concatenate([square, np.zeros_like(square)], axis=1)
    middle = Image.fromarray(wide[:, SIDE // 2 : SIDE // 2 + SIDE])
    assert encoder.preprocess(Image.fromarray(wide)).equal(encoder.preprocess(middle)), "the centre square"
    half = mpp.load_encoder(folder, crop=0.5)
    inner = Image.fromarray(square[4:12, 4:12])
    assert half.preprocess(Image.fromarray(square)).equal(encoder.preprocess(inner))


def test_an_image_that_cannot_be_read_is_named(folder, tmp_path):
    encoder = mpp.load_encoder(folder)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    with pytest.raises(DataError, match=r"cut\.png: .*; give another image"):
        encoder.preprocess(tmp_path / "cut.png")
    with pytest.raises(DataError, match="floating-point levels, whose range is not known"):
        encoder.preprocess(Image.fromarray(np.zeros((8, 8), np.float32)))
    Image.fromarray(pixels(20, 20)).save(tmp_path / "good.png")
    with pytest.raises(DataError, match=r"cut\.png: .*a measurement leaves no image out"):
        encoder.features(tmp_path, workers=0)


# ------------------------------------------------------------------------------------------------------------- what it computes


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_features_are_pooled_as_asked_and_tokens_lie_where_their_patches_do(folder, images):
    net = build_encoder(TINY, 5).vit.eval()
    with torch.no_grad():
        tokens = net.forward_features(images)  # [B, 1 + N, D], under the final norm
        middle = net.norm(net.blocks[0](net.norm_pre(net._pos_embed(net.patch_embed(images)))))
    expected = {"mean": tokens[:, 1:].mean(1), "cls": tokens[:, 0], "both": torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)}
    for pooling, features in expected.items():
        encoder = mpp.load_encoder(folder, pooling=pooling)
        torch.testing.assert_close(encoder(images), features)
        assert encoder.width == features.shape[1]
        assert encoder.pooling == pooling
    encoder = mpp.load_encoder(folder, layers=[1, -1])
    torch.testing.assert_close(encoder(images), torch.cat([middle[:, 1:].mean(1), expected["mean"]], dim=1))
    assert (encoder.layers, encoder.width, encoder.grid) == ((1, 3), 24, (4, 4))
    swapped = mpp.load_encoder(folder, layers=[-1, 1])
    torch.testing.assert_close(swapped(images), torch.cat([expected["mean"], middle[:, 1:].mean(1)], dim=1))
    torch.testing.assert_close(encoder.tokens(images), tokens[:, 1:].reshape(5, 4, 4, 12))
    torch.testing.assert_close(mpp.load_encoder(folder, layers=1).tokens(images), middle[:, 1:].reshape(5, 4, 4, 12))


def test_another_resolution_has_another_grid_and_what_does_not_fit_is_refused(folder, images):
    encoder = mpp.load_encoder(folder, resolution=24)
    assert (encoder.image_size, encoder.grid) == (24, (6, 6))
    assert encoder.tokens(torch.zeros(1, 3, 24, 24)).shape == (1, 6, 6, 12)
    with pytest.raises(ValueError, match=r"images of shape \[5, 3, 16, 16\] must be \[B, 3, 24, 24\]; stack what preprocess gives"):
        encoder(images)
    with pytest.raises(ValueError, match=r"\[3, 24, 24\] must be"):
        encoder(torch.zeros(3, 24, 24))
    with pytest.raises(ConfigError, match=r"features\.resolution=25 must be a multiple of the patch size 4"):
        mpp.load_encoder(folder, resolution=25)
    with pytest.raises(ConfigError, match=r"the encoder has layers 0\.\.3"):
        mpp.load_encoder(folder, layers=7)


def test_it_says_what_it_is_and_stays_itself_when_it_is_copied(folder, images):
    encoder = mpp.load_encoder(folder)
    assert repr(encoder) == "ImageEncoder(tiny, seed 5: mean of layer 3 of 16 px, 4 x 4 patches -> 12; cpu)"
    assert (encoder.source, encoder.mean) == ("tiny, seed 5", (0.5, 0.4, 0.3))
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        next(twin.backbone.parameters()).add_(1.0)
    assert not twin(images).equal(encoder(images)), "a copy computes with its own weights"
    assert encoder(images).equal(mpp.load_encoder(folder)(images))


def test_a_name_of_timm_s_counts_where_no_such_path_exists(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    name = "vit_tiny_patch16_224@random"
    assert mpp.load_encoder(name).digest == mpp.load_encoder(f"timm:{name}").digest
    with pytest.raises(CheckpointError, match="no_such_run is neither a folder nor a file"):
        mpp.load_encoder("no_such_run")
    Path("vit_tiny_patch16_224").symlink_to(folder)
    assert mpp.load_encoder("vit_tiny_patch16_224").source == "tiny, seed 5", "what lies here comes first"


def test_the_teacher_is_asked_for_by_name(folder, monkeypatch):
    asked = []
    real = api.read_encoder
    monkeypatch.setattr(api, "read_encoder", lambda source, *, network: asked.append(network) or real(source))
    mpp.load_encoder(folder)
    mpp.load_encoder(folder, network="teacher")
    assert asked == ["encoder", "teacher"]


# ------------------------------------------------------------------------------------------------------------- a whole set


def test_features_of_a_set_are_to_the_bit_those_that_the_probes_keep(folder, split, tmp_path):
    words = ["rank_only=true", "baselines=false", "features.workers=0", "features.pooling=cls", "features.layers=[2]"]
    done = run_forked(["mpp/linear_probe.py", f"encoder={folder}", f"train={split}", f"out={tmp_path}", *words], cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    (table,) = (path.parent for path in (tmp_path / "features").glob("*/features.json"))
    about, values = json.loads((table / "features.json").read_text()), np.load(table / "features.npy")
    column = next(part for part in about["columns"] if (part["pooling"], part["layer"]) == ("cls", 2))
    encoder = mpp.load_encoder(folder, pooling="cls", layers=2)
    found = encoder.features(split, workers=0)
    assert found.values.dtype == np.float32
    assert np.array_equal(found.values, values[:, column["start"] : column["stop"]])
    assert np.array_equal(found.labels, np.load(table / "labels.npy"))
    assert found.classes == ["red", "green", "blue"]
    assert (len(found), found.names[0], found.names[-1]) == (90, "000000.tar/000000000000", "000000.tar/000000000089")


def test_a_cache_is_used_again_but_never_for_weights_that_have_changed(folder, split, tmp_path, monkeypatch):
    encoder = mpp.load_encoder(folder)
    first = encoder.features(split, workers=0, cache=tmp_path)
    passes = []
    real = api.EncoderExtractor.of_normalised
    monkeypatch.setattr(api.EncoderExtractor, "of_normalised", lambda *words: passes.append(len(words[1])) or real(*words))
    assert np.array_equal(encoder.features(split, workers=0, cache=tmp_path).values, first.values)
    assert sum(passes) < 90, "a few to compare with, and not all"
    with torch.no_grad():
        next(encoder.backbone.parameters()).data.mul_(0.5)
    changed = encoder.features(split, workers=0, cache=tmp_path)
    assert not np.allclose(changed.values, first.values)
    assert np.array_equal(changed.values, encoder.features(split, workers=0).values)
    assert np.array_equal(mpp.load_encoder(folder).features(split, workers=0, cache=tmp_path).values, first.values)


def test_folders_of_classes_and_of_images_are_taken_in_their_order(folder, tmp_path):
    encoder = mpp.load_encoder(folder)
    for name in ("b/2.png", "a/1.png", "b/1.png"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(20, 18 + len(list(tmp_path.rglob("*.png"))))).save(tmp_path / "classes" / name)
    found = encoder.features(tmp_path / "classes", workers=0)
    assert (found.names, found.labels.tolist(), found.classes) == (["a/1.png", "b/1.png", "b/2.png"], [0, 1, 1], ["a", "b"])
    flat = encoder.features(str(tmp_path / "classes" / "b"), workers=0)
    assert (flat.names, flat.labels.tolist(), flat.classes) == (["1.png", "2.png"], [-1, -1], [])
    assert np.allclose(flat.values, found.values[1:], atol=1e-5)
    with pytest.raises(DataError, match=r"gone\.png: No such file or directory; give files that are there"):
        encoder.features([tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither manifest\.json nor folders of classes with images"):
        encoder.features(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------------------- fine-tuning


def test_it_is_frozen_until_it_is_thawed_and_then_learns(folder, images, split):
    encoder = mpp.load_encoder(folder)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(images).requires_grad
    encoder.requires_grad_(True).train()
    before = encoder(images).detach()
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    target = torch.ones_like(before)
    losses = []
    for _ in range(5):
        loss = (encoder(images) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert encoder.backbone.net.patch_embed.proj.weight.grad.abs().sum() > 0, "down to the first layer"
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    encoder.backbone.net.norm.eval()
    modes = [module.training for module in encoder.modules()]
    found = encoder.features(split, workers=0)
    assert [module.training for module in encoder.modules()] == modes
    assert len(found) == 90
    fresh = mpp.load_encoder(folder)
    fresh.load_state_dict(encoder.state_dict())
    assert np.array_equal(fresh.features(split, workers=0).values, found.values)


# ------------------------------------------------------------------------------------------------------------- the name, the commands, the page


def test_import_mpp_is_free_of_torch_and_says_what_it_has():
    program = "import mpp, sys; assert 'load_encoder' in dir(mpp); print([name for name in ('torch', 'numpy', 'timm', 'mpp.api') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert shown.stdout == "[]\n", shown.stderr
    with pytest.raises(AttributeError, match="module 'mpp' has no attribute 'load_model'"):
        mpp.load_model  # noqa: B018


def test_what_type_checkers_are_told_is_what_there_is():
    told = re.findall(r"^from mpp\.api import (\w+) as \1$", (ROOT / "mpp" / "__init__.pyi").read_text(), re.M)
    assert sorted(told) == sorted(mpp._API)
    assert all(getattr(mpp, name) is getattr(api, name) for name in told)
    assert (ROOT / "mpp" / "py.typed").exists()
    assert "network" in inspect.signature(mpp.load_encoder).parameters


def test_mpp_calls_the_programs_by_name():
    from mpp.__main__ import PROGRAMS, run

    files = {path.stem for path in (ROOT / "mpp").glob("*.py") if "run_program(main)" in path.read_text() and path.stem != "errors"}
    assert set(PROGRAMS) == files
    listed = run_forked(["-c", "from mpp.__main__ import main; main()", "--help"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert listed.returncode == 0
    for name in PROGRAMS:
        assert f"  {name.replace('_', '-')} " in listed.stdout
    for word in ("results", "fit-codebook"):
        program = f"mpp/{word.replace('-', '_')}.py"
        by_name = run_forked(
            ["-c", "from mpp.__main__ import main; main()", word, "--help"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        by_file = run_forked([program, "--help"], cwd=ROOT, env=os.environ)
        assert by_name.returncode == by_file.returncode == 0
        usage = lambda text: text.partition("\n\n")[2]
        assert usage(by_name.stdout) == usage(by_file.stdout) != ""
    failed = run_forked(
        ["-c", "from mpp.__main__ import main; main()", "results", "nowhere"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    version = run_forked(["-c", "from mpp.__main__ import main; main()", "--version"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (version.returncode, version.stdout) == (0, f"mpp {mpp.__version__}\n")
    with pytest.raises(UserError, match="tabulate is none of mpp's programs"):
        run(["tabulate"])
    with pytest.raises(UserError, match="the nearest known one is probe"):
        run(["prob"])


def test_the_page_runs_as_it_is_printed(folder, tmp_path, monkeypatch, capsys):
    names = [str(digit) for digit in range(10)]
    for part, seed in (("train", 1), ("val", 2)):
        make_split(tmp_path / "shards" / part, count=60, seed=seed, classes=names)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(folder)
    Image.fromarray(pixels(28, 28, 1)[..., 0]).save(tmp_path / "seven.png")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text()
    found: dict = {}
    for snippet in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        exec(snippet, found)
    shown = capsys.readouterr().out
    printed = "".join(
        f"{line[4:]}\n" for line in re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S).splitlines() if line.startswith("    ")
    )
    shapes = lambda text: re.sub(r"digits at \d+ samples|tiny, seed 5|[\d.]+", "N", text)
    assert shapes(shown) == shapes(printed)
    assert found["loss"].requires_grad


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_told_before_anything_is_read(tmp_path, device):
    with pytest.raises(ConfigError, match=rf"^device='{device}': torch cannot compute there \(.*\); take device='cpu', or leave it out$"):
        mpp.load_encoder(tmp_path / "nothing", device=device)


@pytest.mark.parametrize(
    ("words", "message"),
    [({"pooling": "max"}, r"pooling.*'mean', 'cls', 'both'"), ({"crop": 2.0}, "crop"), ({"precision": "fp16"}, "precision")],
)
def test_an_argument_that_cannot_be_is_refused_in_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as refused:
        mpp.load_encoder("timm:vit_tiny_patch16_224@random", **words)
    assert len(str(refused.value).splitlines()) == 1
