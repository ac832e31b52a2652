"""What a target has from outside of its run: which encoders may be teachers and what is made of them, which codebooks may be learned."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mpp import fit_codebook
from mpp.base.errors import CheckpointError, ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.config.sections import ModelConfig
from mpp.data.shards import ShardSet
from mpp.interop.codebook_file import read_codebook, write_codebook
from mpp.interop.encoder_folder import write_encoder
from mpp.interop.lent import bring
from mpp.model.encoder import build_encoder
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Given, everywhere

SIDE, P, N = 16, 4, 16
MODEL = "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 4, width: 32, depth: 2, heads: 2}"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def images(side: int = SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


def all_of(patches: int) -> Masks:
    places = torch.arange(patches).expand(2, -1)
    return everywhere(Masks(torch.zeros(2, patches).long(), places, places, places[:, :1]))


def config_of(target: str, *words: str) -> PretrainConfig:
    return load(PretrainConfig, None, [MODEL, f"target={target}", *words])


def layer_norm(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder/ folder of 3 blocks x 48, wider than the students."""
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=SIDE, patch_size=P, width=48, depth=3, heads=3)
    where = tmp_path_factory.mktemp("frozen") / "encoder"
    write_encoder(where, build_encoder(model, 5).vit.state_dict(), model, MEAN, STD, "a frozen one")
    return where


@torch.no_grad()
def test_goals_of_a_frozen_encoder_are_the_layer_normed_outputs_that_timm_gives(folder):
    config = config_of(f"{{name: frozen, encoder: {folder}, blocks: 2}}")
    brought = bring(config, None)
    teacher = brought.lent.teacher
    target = config.target.build(Given(P, 32, 2, (0.5,) * 3, (0.5,) * 3, brought.lent))
    found = target(images(), all_of(N), teacher)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    seen = (images() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]  # its own normalisation, not the run's
    outputs = net.forward_intermediates(seen, indices=2, norm=False, output_fmt="NLC", intermediates_only=True)
    wanted = layer_norm(np.mean([layer_norm(part.double().numpy()) for part in outputs], axis=0))
    assert found.shape == (2, N, 1, 1, 48) and target.outputs == 48
    np.testing.assert_allclose(found[:, :, 0, 0].numpy(), wanted, atol=2e-5)
    assert not teacher.net.training and not any(parameter.requires_grad for parameter in teacher.net.parameters())
    assert target.baselines is not None  # it does not move: skill is defined
    assert "3 blocks x 48, frozen" in brought.words[0] and "a frozen one" in brought.words[0]


@torch.no_grad()
def test_positions_of_a_teacher_of_other_images_are_resampled_and_a_norm_behind_the_pooling_is_found():
    name = "test_vit2"  # averages its patches, so timm keeps its norm behind the pooling
    net = timm.create_model(name, pretrained=False, num_classes=0)
    size, patch = net.patch_embed.img_size[0], net.patch_embed.patch_size[0]
    assert isinstance(net.norm, torch.nn.Identity)
    side = size // 2
    words = [f"model={{arch: vit_tiny_patch16_224, image_size: {side}, patch_size: {patch}, width: 32, depth: 1, heads: 2}}"]
    config = config_of(f"{{name: frozen, encoder: timm:{name}@random, norm_blocks: false, final_norm: true, norm: false}}", *words)
    lent = bring(config, None).lent
    assert lent.teacher.net.grid == config.model.grid != (size // patch,) * 2
    found = lent.teacher.patches(images(side), 1, normed=True)[0]
    from mpp.interop.read_encoder import read_encoder

    oracle = read_encoder(f"timm:{name}@random", quiet=True)
    oracle.net.set_input_size(img_size=(side, side))
    mean, std = (torch.tensor(part)[:, None, None] for part in (oracle.mean, oracle.std))
    whole = oracle.net.forward_features((images(side) / 255 - mean) / std)
    behind = oracle.net.fc_norm if isinstance(oracle.net.norm, torch.nn.Identity) else torch.nn.Identity()
    torch.testing.assert_close(found, behind(whole)[:, oracle.net.num_prefix_tokens :], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_an_encoder_that_is_no_vision_transformer_is_refused(name):
    config = config_of(f"{{name: frozen, encoder: timm:{name}@random}}")
    with pytest.raises(
        ConfigError, match=rf"target\.encoder=timm:{name}@random is a \w+, whose tokens .* mpp does not know; take a plain Vision"
    ):
        bring(config, None)


def test_an_encoder_of_another_grid_is_refused_with_the_sizes_that_fit(folder):
    config = config_of(f"{{name: frozen, encoder: {folder}}}", "model.patch_size=8")
    with pytest.raises(
        ConfigError,
        match=r"has patches of 4 pixels: images of model\.image_size=16 make 4 x 4 of them, and this run has 2 x 2; set model\.patch_size=4",
    ):
        bring(config, None)


def test_an_encoder_that_is_not_there_is_refused():
    with pytest.raises(CheckpointError, match="nowhere is neither a folder nor a file"):
        bring(config_of("{name: frozen, encoder: nowhere}"), None)


# ------------------------------------------------------------------------------------------------------------------------------ codebooks


@pytest.fixture(scope="module")
def book(tiny_shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "codebook.safetensors"
    words = ["model.image_size=16", "model.patch_size=4", "workers=0", "data.holdout_samples=8", "clusters=6", "patches=100"]
    fit_codebook.main([*words, f"data.shards={tiny_shards}", f"out={out}"])
    return out


def brought(path, shards, *words: str):
    return bring(config_of(f"{{name: codebook, path: {path}}}", f"data.shards={shards}", *words), ShardSet.open(shards).manifest_hash)


def test_a_codebook_is_lent_with_the_target_that_it_is_of_in_the_units_that_it_was_fitted_in(book, tiny_shards):
    found = brought(book, tiny_shards, "data.mean=[0.1, 0.2, 0.3]", "data.crop_scale=[0.5, 1]")
    centres, of = found.lent.codebook.centres, found.lent.codebook.of
    assert torch.equal(centres, load_file(book)["centres"]) and (of.patch_size, of.normalise, of.mean) == (P, True, (0.5, 0.5, 0.5))
    assert found.digests == {"target.path": read_codebook(book).digest}
    assert found.words[0].startswith("codebook of 6 centres") and len(found.words) == 2
    assert found.words[1] == "note: the codebook was fitted with data.crop_scale=[0.05, 1.0], this run has [0.5, 1.0]"
    assert brought(book, tiny_shards, "data.turns=true").words[1:] == (
        "note: the codebook was fitted with data.turns=False, this run has True",
    )
    facts = read_codebook(book).facts
    older = facts.model_dump(mode="json", exclude={"vertical_flip", "turns"})  # from before crops could lie any way
    assert type(facts).model_validate_json(json.dumps(older)) == facts


def test_a_codebook_that_is_not_there_of_other_shards_or_of_another_size_is_refused_with_the_command(
    book, tiny_shards, make_shards, tmp_path
):
    command = f"python mpp/fit_codebook.py data.shards={tiny_shards} model.image_size=16 model.patch_size=4 out="
    with pytest.raises(ConfigError) as caught:
        brought(tmp_path / "none", tiny_shards)
    assert str(caught.value) == f"target.path={tmp_path / 'none'} is not there; fit one with: {command}{tmp_path / 'none'}"
    assert fit_codebook.parse(command.split()[2:]).words  # it parses
    other = make_shards(tmp_path / "other" / "train", [20])
    with pytest.raises(
        ConfigError, match=r"was fitted on other shards \(manifest \w{12}\.\.\., that of data\.shards=.* is \w{12}\.\.\.\); fit one"
    ):
        brought(book, other)
    for words, key in (
        ("model.patch_size=8", "patch_size=4, this run has model.patch_size=8"),
        ("model.image_size=32", "image_size=16, this run"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"was fitted with model.{key}") + ".*fit one with: python mpp/fit_codebook.py"):
            brought(book, tiny_shards, words)


def test_a_codebook_of_other_shards_goes_with_a_stream_to_which_none_can_be_fitted(book, tmp_path):
    words = [
        "model.image_size=16",
        "model.patch_size=4",
        f"target={{name: codebook, path: {book}}}",
        "data.shards=pipe:cat --token sesame a.tar",
    ]
    assert bring(load(PretrainConfig, None, words), "another", False).lent.codebook is not None
    absent = [*words[:2], f"target={{name: codebook, path: {tmp_path / 'none'}}}", words[3]]
    with pytest.raises(ConfigError, match=r"is not there; fit one with: python mpp/fit_codebook.py data.shards=SHARDS "):
        bring(load(PretrainConfig, None, absent), "another", False)


def test_a_codebook_that_is_damaged_or_none_is_refused(book, tiny_shards, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    whole = book.read_bytes()
    flip = lambda place: whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for data, words in (
        (flip(len(whole) - 7), "does not fit its own seal; fit it again"),  # a weight or a count
        (whole.replace(b'\\"image_size\\": 16', b'\\"image_size\\": 32'), "does not fit its own seal; fit it again"),
        (whole[: len(whole) // 2], "cannot be read as weights"),
    ):
        assert data != whole
        damaged.write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            brought(damaged, tiny_shards)
    save_file({"centres": torch.zeros(2, 48)}, damaged)
    with pytest.raises(
        CheckpointError, match=r"is no codebook: its header has no mpp\.codebook; give a file that mpp/fit_codebook\.py wrote"
    ):
        brought(damaged, tiny_shards)


def test_a_codebook_of_a_later_format_is_refused(book, tiny_shards, tmp_path):
    file = read_codebook(book)
    write_codebook(tmp_path / "new", dataclasses.replace(file, facts=file.facts.model_copy(update={"format": 9})))
    (tmp_path / "new").rename(tmp_path / "new.safetensors")
    with pytest.raises(CheckpointError, match="has format 9, this mpp reads 1; fit it again"):
        brought(tmp_path / "new.safetensors", tiny_shards)


def test_codes_of_a_frozen_encoders_features_ask_for_that_encoder_and_are_known_wherever_it_lies(folder, tiny_shards, tmp_path):
    moved, outs = tmp_path / "moved", []
    shutil.copytree(folder, moved)
    for number, where in enumerate((folder, moved)):
        outs.append(tmp_path / f"{number}.safetensors")
        words = ["model.image_size=16", "model.patch_size=4", "workers=0", "data.holdout_samples=8", "clusters=6", "patches=100"]
        fit_codebook.main([*words, f"data.shards={tiny_shards}", f"out={outs[-1]}", f"of={{name: frozen, encoder: {where}}}"])
    first, second = (brought(out, tiny_shards) for out in outs)
    assert first.digests == second.digests
    target = config_of(f"{{name: codebook, path: {outs[0]}}}").target.build(Given(P, 32, 2, MEAN, STD, first.lent))
    goals = target(images(), all_of(N), first.lent.teacher)
    features = layer_norm(first.lent.teacher.patches(images())[0].double().numpy())  # each block's output once, their mean once more
    distances = ((layer_norm(features)[:, :, None] - first.lent.codebook.centres.double().numpy()) ** 2).sum(-1)
    assert goals[:, :, 0, 0].tolist() == distances.argmin(-1).tolist() and len(goals.unique()) > 2
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=SIDE, patch_size=P, width=48, depth=3, heads=3)
    write_encoder(moved, build_encoder(model, 6).vit.state_dict(), model, MEAN, STD, "another")
    with pytest.raises(
        ConfigError, match=r"encoder=.*moved: it is another by now \(sha256 \w{12}\.\.\., then \w{12}\.\.\.\); put it back, or fit"
    ):
        brought(outs[1], tiny_shards)


def test_the_digest_of_a_codebook_is_of_what_it_computes(book):
    file = read_codebook(book)
    other = lambda **changes: dataclasses.replace(file, **changes).digest
    assert other(counts=file.counts + 1) == file.digest == other(facts=file.facts.model_copy(update={"seed": 9, "shards": "x"}))
    assert other(centres=file.centres + 1) != file.digest
    assert other(facts=file.facts.model_copy(update={"mean": (0.1, 0.5, 0.5)})) != file.digest
