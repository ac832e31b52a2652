"""What one row of the table is measured with: its own preprocessing, its own weights; and what is said of two rows."""

import numpy as np
import pytest
import timm
import torch

from mpp.config.probe import ProbeConfig
from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.labelled import open_labelled
from mpp.data.pixels import StoredPixels
from mpp.interop.encoder_folder import write_encoder
from mpp.interop.read_encoder import read_encoder
from mpp.mains.probe_job import table_rows
from mpp.model.encoder import build_encoder
from mpp.processes.world import World
from mpp.transfer.extraction import extract
from mpp.transfer.extractors import PixelExtractor
from mpp.transfer.table import PIXELS, PRETRAINED, RANDOM
from tests.transfer.conftest import TINY

MEAN, STD = (0.1, 0.4, 0.7), (0.3, 0.2, 0.6)
ALONE = World(0, 1, 1, torch.device("cpu"))


@pytest.fixture(params=["vit_tiny_patch16_224", "vit_betwixt_patch16_reg4_gap_256"])
def rows(tmp_path, splits, request):
    """The three rows of an encoder that was trained with colours of its own, and their features of six images."""
    model = TINY.model_copy(update={"arch": request.param})
    write_encoder(tmp_path / "encoder", build_encoder(model, 5).vit.state_dict(), model, MEAN, STD, "tiny")
    config = ProbeConfig.model_validate({"encoder": str(tmp_path / "encoder"), "train": "x", "features": {"workers": 0, "pixel_side": 8}})
    found = table_rows(config, read_encoder(config.encoder), {}, ALONE)
    images = open_labelled(str(splits["train"]), "train")
    extractors = {name: row.extractor for name, row in found.items()}
    tables = extract(images, np.arange(6), extractors, config.features, tmp_path / "tables", ALONE)
    return found, {name: table.features for name, table in tables.items()}, images


def test_every_row_sees_colours_as_the_encoder_was_trained_with(rows, monkeypatch):
    found, _, _ = rows
    seen = {}
    for name, row in found.items():
        assert (row.extractor.spec.mean, row.extractor.spec.std) == (MEAN, STD), name
    flat = torch.full((1, 3, 16, 16), 51, dtype=torch.uint8)
    wanted = [(0.2 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    for name in (PRETRAINED, RANDOM):
        backbone = found[name].extractor.backbone
        monkeypatch.setattr(
            backbone, "layers", lambda pixels, layers, name=name: seen.setdefault(name, pixels) is None or [pixels[:, :1, 0]] * len(layers)
        )
        found[name].extractor.tokens(flat, [3])
        assert seen[name][0, :, 3, 5].tolist() == pytest.approx(wanted, abs=1e-6), name
    assert found[PIXELS].extractor(flat).view(3, 8, 8)[:, 2, 6].tolist() == pytest.approx(wanted, abs=1e-6)


def test_features_are_those_of_timms_own_model_on_images_normalised_by_the_folders_own_numbers(rows, tmp_path):
    found, tables, images = rows
    net = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    assert (tuple(net.pretrained_cfg["mean"]), tuple(net.pretrained_cfg["std"])) == (MEAN, STD)
    crops = CropDataset(StoredPixels(images, 10**6), Centre(16, 1.0), 0, range(6)).batch([(0, row, row) for row in range(6)])
    crops = crops["image"].float() / 255
    with torch.no_grad():
        tokens = net.forward_features((crops - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
    before = 1 if net.reg_token is None else 5  # the class token and registers are no patches
    own = tables[PRETRAINED].of(found[PRETRAINED].own)
    torch.testing.assert_close(own, tokens[:, before:].mean(dim=1), rtol=1e-4, atol=1e-5)


def test_the_random_row_has_no_tensor_that_was_trained(tmp_path):
    """Not even norms: an encoder whose every tensor was moved away from its first values, and the baseline beside it."""
    weights = {
        name: tensor + 3 if tensor.is_floating_point() else tensor for name, tensor in build_encoder(TINY, 5).vit.state_dict().items()
    }
    write_encoder(tmp_path / "encoder", weights, TINY, MEAN, STD, "tiny")
    config = ProbeConfig.model_validate({"encoder": str(tmp_path / "encoder"), "train": "x"})
    found = table_rows(config, read_encoder(config.encoder), {}, ALONE)
    trained, fresh = (found[name].extractor.backbone.state_dict() for name in (PRETRAINED, RANDOM))
    for name, tensor in fresh.items():
        assert not torch.allclose(tensor, trained[name], atol=1), name
        if "norm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name


def test_pixels_of_grey_images_are_one_channel_and_of_coloured_ones_three():
    pixels = PixelExtractor(8, 1.0, (0.5,) * 3, (0.5,) * 3, 8)
    grey = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1).clone()
    coloured = grey.clone()
    coloured[5, 1, 7, 7] ^= 1  # one value of one image
    own = pixels.told_apart(pixels(grey), chunk=4)
    assert own == pixels.grey and torch.equal(pixels.layout.columns(own), torch.arange(64))
    assert pixels.told_apart(pixels(coloured), chunk=4) == pixels.variant and pixels.layout.width == 192
