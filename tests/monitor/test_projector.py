"""What TensorBoard's projector reads."""

import numpy as np
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from mpp.monitor.projector import write_projector


def test_features_words_and_small_pictures_stand_in_one_order(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 20, 20) * 50
    write_projector(tmp_path, "features", values, ["cat", "dog", "a\ttab", "line\nbreak", "cat"], images.contiguous())
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (shown,) = config.embeddings
    assert np.allclose(np.loadtxt(tmp_path / shown.tensor_path, delimiter="\t"), values, atol=1e-4)
    assert (tmp_path / shown.metadata_path).read_text().splitlines() == ["cat", "dog", "a tab", "line\\nbreak", "cat"]
    side = shown.sprite.single_image_dim[0]
    sheet = np.asarray(Image.open(tmp_path / shown.sprite.image_path))
    assert list(shown.sprite.single_image_dim) == [20, 20] and sheet.shape == (60, 60, 3)  # as near to a square as can be
    for number in range(5):
        row, column = divmod(number, 3)
        assert (sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] == 50 * number).all()
