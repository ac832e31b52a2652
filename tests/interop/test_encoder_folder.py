import json
import shutil

import pytest
import timm
import torch

from mpp.base.errors import CheckpointError
from mpp.config.pretrain import PretrainConfig
from mpp.config.sections import ClassifierConfig, ModelConfig
from mpp.disk.files import sha256_of
from mpp.interop.encoder_folder import PREFIX, fault_of, write_classifier, write_encoder
from mpp.interop.read_encoder import read_encoder
from mpp.mains.pretrain import export_encoder
from mpp.model.backbone import Backbone
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.encoder import Encoder, build_encoder, timm_arguments
from mpp.model.tokens import class_tokens_of
from mpp.recipe.model import build_model
from mpp.train.commit import checkpoint_folder, find_commit, read_config, write_commit
from mpp.train.run_folder import check_same_run

TINY = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
ROTARY = {"arch": "vit_small_patch16_rope_224", "position": "rotary", "layer_scale": 0.0}
VARIANTS = [
    {}, {"class_tokens": 0}, {"position": "sincos2d"}, {"drop_path": 0.2}, {"width": None, "heads": None, "depth": 1},
    {"class_tokens": 8}, {"class_tokens": 3, "registers": 2, "position": "sincos2d"}, {"position": "none", "qk_norm": True, "layer_scale": 0.1}, ROTARY,
    ROTARY | {"class_tokens": 8, "drop_path": 0.2, "drop_path_rule": "constant"}, {"arch": "vit_small_patch16_dinov3", "position": "rotary"},
    ROTARY | {"class_tokens": 0, "registers": 16, "rotary_frequencies": (7.0, 7e-4)},
]  # fmt: skip


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def exported(folder, **changes):
    config = ModelConfig(**(TINY | changes))
    encoder = build_encoder(config, seed=5, fused_attention=False).eval()
    write_encoder(folder, encoder.vit.state_dict(), config, MEAN, STD, "a test")
    return config, encoder


@torch.no_grad()
@pytest.mark.parametrize("changes", VARIANTS)
def test_an_exported_encoder_comes_back_as_it_was(tmp_path, changes):
    config, encoder = exported(tmp_path / "encoder", **changes)
    found = read_encoder(tmp_path / "encoder")
    assert (found.model, found.mean, found.std, found.source) == (config, MEAN, STD, "a test")
    assert not found.net.training
    again = Encoder(found.net)
    weights = again.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(again(again.embed(images())), encoder(encoder.embed(images())), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("changes", VARIANTS)
def test_timm_loads_the_folder_by_itself_with_equal_features(tmp_path, changes):
    config, encoder = exported(tmp_path / "encoder", **changes)
    model = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    assert torch.equal(model.forward_features(images()), encoder(encoder.embed(images())))
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], tuple(data["mean"]), tuple(data["std"])) == ((3, 32, 32), MEAN, STD)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 1.0)
    assert model.num_classes == 0
    pooled = model(images())
    tokens = encoder(encoder.embed(images()))
    expected = tokens[:, 0] if config.class_tokens else tokens[:, encoder.prefix :].mean(1)  # timm knows one class token
    about = json.loads((tmp_path / "encoder" / "config.json").read_text())["mpp"]
    assert about["class_tokens"] == config.class_tokens == Backbone(read_encoder(tmp_path / "encoder").net).class_tokens
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-6)


def test_an_export_replaces_the_one_before_and_leaves_no_temporary_file(tmp_path):
    folder = tmp_path / "encoder"
    exported(folder)
    config, _ = exported(folder, depth=1)
    assert read_encoder(folder).model == config
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def without_seal(folder) -> None:
    """As such folders were written before they had one."""
    about = json.loads((folder / "config.json").read_text())
    about["mpp"] = {key: value for key, value in about["mpp"].items() if key not in ("seal", "weights_sha256")}
    (folder / "config.json").write_text(json.dumps(about))


def test_every_changed_byte_of_an_encoder_folder_is_noticed_or_harmless(tmp_path):
    exported(tmp_path, depth=1)
    path = tmp_path / "config.json"
    whole, about = path.read_bytes(), json.loads(path.read_text())
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            continue
        rest = {key: value for key, value in about.items() if key != "mpp"}
        without = {key: value for key, value in found.items() if key in rest} == rest and "mpp" not in found  # a folder of timm's, then
        assert found == about or without or fault_of(tmp_path, found), whole[at - 20 : at + 20]
    path.write_bytes(whole)
    assert read_encoder(tmp_path).source == "a test"
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"is damaged: model.safetensors is not what config.json was written for"):
        read_encoder(tmp_path)


def test_an_encoder_that_is_not_finite_is_refused_whoever_wrote_it(tmp_path):
    config, encoder = exported(tmp_path / "ours")
    weights = encoder.vit.state_dict() | {"norm.bias": torch.full((48,), torch.inf)}
    write_encoder(tmp_path / "ours", weights, config, MEAN, STD, "a test")
    for source in (tmp_path / "ours", f"timm:{config.arch}@{tmp_path / 'tiny.pth'}"):
        if str(source).startswith("timm:"):
            net = timm.create_model(config.arch, num_classes=0)
            torch.save(net.state_dict() | {"norm.bias": torch.full((192,), torch.nan)}, tmp_path / "tiny.pth")
        with pytest.raises(CheckpointError, match=r"not finite, in 1 tensor \(norm.bias\)"):
            read_encoder(source)


def commit_of(run, step: int, seed: int, **other) -> PretrainConfig:
    from safetensors.torch import save_file

    config = PretrainConfig.model_validate({"seed": seed, "model": TINY, "data": {"mean": MEAN, "std": STD}, **other})
    model = build_model(config)
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    path = folder / "rank00000.safetensors"
    save_file({f"weight/{name}": value.detach().contiguous() for name, value in model.named_parameters()}, str(path))
    facts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}}
    record = {
        "step": step,
        "samples_seen": step * 4096,
        "files": facts,
        "config": config.model_dump(mode="json"),
        "manifests": {"data": "1"},
    }
    write_commit(folder, record)
    return config


def test_a_runs_encoder_is_that_of_its_newest_commit(tmp_path):
    commit_of(tmp_path / "run", 1, seed=1)
    config = commit_of(tmp_path / "run", 2, seed=2)
    found = read_encoder(tmp_path / "run")
    assert (found.model, found.mean, found.std, found.source) == (config.model, MEAN, STD, "run at 8192 samples")
    expected = build_model(config).state_dict()
    for name, value in found.net.state_dict().items():
        assert torch.equal(value, expected[PREFIX + name])


@pytest.mark.parametrize("has", [True, False])
def test_folders_and_commits_from_when_there_was_one_class_token_or_none_are_read_as_they_were(tmp_path, has):
    newer = ("class_tokens", "registers", "rotary_frequencies", "layer_scale", "qk_norm", "drop_path_rule")
    older = lambda tree: {key: value for key, value in tree.items() if key not in newer} | {"class_token": has}
    config, encoder = exported(tmp_path / "encoder", class_tokens=int(has))
    path = tmp_path / "encoder" / "config.json"
    about = json.loads(path.read_text())
    about["mpp"]["model"] = older(about["mpp"]["model"])
    del about["mpp"]["class_tokens"]
    path.write_text(json.dumps(about))
    without_seal(tmp_path / "encoder")
    found = read_encoder(tmp_path / "encoder")
    assert found.model == config and Backbone(found.net).class_tokens == has
    assert all(torch.equal(value, encoder.vit.state_dict()[name]) for name, value in found.net.state_dict().items())

    now = commit_of(tmp_path / "run", 1, seed=1, model=TINY | {"class_tokens": int(has)})
    record = find_commit(tmp_path / "run", "auto").record
    write_commit(
        checkpoint_folder(tmp_path / "run", 1), record | {"config": record["config"] | {"model": older(record["config"]["model"])}}
    )
    commit = find_commit(tmp_path / "run", "auto")
    assert read_config(commit) == now and read_encoder(tmp_path / "run").model == now.model
    assert check_same_run(commit, now, record["manifests"]) == {}  # and goes on
    other = now.model_copy(update={"model": now.model.model_copy(update={"class_tokens": 8})})
    with pytest.raises(CheckpointError, match=f"model.class_tokens={int(has)}, this run asks for 8"):
        check_same_run(commit, other, record["manifests"])


def test_a_run_with_choices_that_are_not_known_here_says_what_is_read_without_them(tmp_path):
    """Of a branch with a mask of its own, or of another version: the encoder folder knows of no recipe."""
    commit_of(tmp_path / "run", 1, seed=1, model=TINY)
    record = find_commit(tmp_path / "run", "auto").record
    config = record["config"] | {"mask": {"name": "stripes", "ratio": 0.5}}
    write_commit(checkpoint_folder(tmp_path / "run", 1), record | {"config": config})
    with pytest.raises(
        CheckpointError, match=r"000000001 is not one of this mpp \(mask\.name=stripes is not known; .*\); use the mpp that wrote it$"
    ):
        read_encoder(tmp_path / "run")
    exported(tmp_path / "run" / "encoder")
    with pytest.raises(CheckpointError, match=r"give the mpp that wrote it, or the encoder alone, \S+/run/encoder$"):
        read_encoder(tmp_path / "run")
    read_encoder(tmp_path / "run" / "encoder")


def test_a_fine_tuned_encoder_keeps_its_class_tokens(tmp_path):
    config, encoder = exported(tmp_path / "encoder", class_tokens=8)
    wanted = ClassifierConfig(pooling="cls")
    arguments = classifier_arguments(encoder.vit, timm_arguments(config), wanted, (32, 32))
    classifier = build_classifier(encoder.vit, config.arch, arguments, 3, wanted, (32, 32), seed=0)
    about = {"source": "a test", "class_tokens": 8, "norm_eps": None}
    write_classifier(tmp_path / "tuned", classifier.state_dict(), config.arch, arguments, "abc", (32, 32), MEAN, STD, 1.0, about)
    found = read_encoder(tmp_path / "tuned", quiet=True)
    assert class_tokens_of(found.net) == class_tokens_of(found.fresh(0)) == 8
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["model_args"]["global_pool"] == ""


def test_class_tokens_are_told_from_registers_of_the_same_weights(tmp_path):
    several, encoder = exported(tmp_path / "several", class_tokens=8)
    one = several.model_copy(update={"class_tokens": 1, "registers": 7})
    write_encoder(tmp_path / "one", encoder.vit.state_dict(), one, MEAN, STD, "a test")
    found = [read_encoder(tmp_path / name) for name in ("several", "one")]
    assert found[0].digest != found[1].digest
    assert [(Backbone(each.net).class_tokens, Backbone(each.net).prefix) for each in found] == [(8, 8), (1, 8)]


def test_a_flipped_bit_in_the_newest_commit_is_found(tmp_path):
    commit_of(tmp_path / "run", 1, seed=1)
    (path,) = (tmp_path / "run").glob("checkpoints/*/rank00000.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not what was committed"):
        read_encoder(tmp_path / "run")
    commit_of(tmp_path / "run", 0, seed=2)
    assert read_encoder(tmp_path / "run").source == "run at 0 samples"


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither checkpoints/.*nor model.safetensors"):
        read_encoder(tmp_path)
    exported(tmp_path / "encoder")
    without_seal(tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_encoder(tmp_path / "encoder")
    exported(tmp_path / "encoder")
    (tmp_path / "encoder" / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "mpp": {"model": {}}}')
    with pytest.raises(CheckpointError, match="is not an encoder folder"):
        read_encoder(tmp_path / "encoder")
    (tmp_path / "encoder" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a model of no named kind"):
        read_encoder(tmp_path / "encoder")


def test_weights_of_another_size_are_refused(tmp_path):
    exported(tmp_path / "encoder")
    path = tmp_path / "encoder" / "config.json"
    about = json.loads(path.read_text())
    about["mpp"]["model"]["depth"] = 3
    path.write_text(json.dumps(about))
    without_seal(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="do not fit"):
        read_encoder(tmp_path / "encoder")


def test_seeds_of_one_pretraining_recipe_are_told_from_other_recipes_wherever_the_encoder_lies(tmp_path):
    said = {}
    others = {"longer": {"optim": {"total_samples": 8 * 4096, "warmup_samples": 0}}, "bigger": {"mask": {"name": "random", "ratio": 0.6}}}
    places = {"run_dir": "elsewhere", "system": {"workers": 3}, "log": {"every_steps": 7}, "checkpoint": {"keep": 5}}
    for name, seed, more in [("a", 1, {}), ("b", 2, {}), ("moved", 1, places), *((name, 1, more) for name, more in others.items())]:
        commit_of(tmp_path / name, 1, seed=seed, **more)
        said[name] = read_encoder(tmp_path / name).pretraining
    recipes = {name: each["recipe"] for name, each in said.items()}
    assert recipes["a"] == recipes["b"] == recipes["moved"] and len(set(recipes.values())) == 1 + len(others)
    assert [(said[name]["seed"], said[name]["samples_seen"]) for name in "ab"] == [(1, 4096), (2, 4096)]

    commit = find_commit(tmp_path / "a", "auto")
    export_encoder(tmp_path / "a", commit, read_config(commit))
    assert read_encoder(tmp_path / "a/encoder").pretraining == said["a"]
    shutil.copytree(tmp_path / "a/encoder", tmp_path / "alone")
    assert read_encoder(tmp_path / "alone").pretraining == said["a"]
    config, encoder = read_config(commit), build_encoder(read_config(commit).model, seed=5)
    write_encoder(
        tmp_path / "b/encoder", encoder.vit.state_dict(), config.model, MEAN, STD, "older", find_commit(tmp_path / "b", "auto").seal
    )
    assert read_encoder(tmp_path / "b/encoder").pretraining == said["b"]  # of the run it lies in, by its commit
    assert exported(tmp_path / "c/encoder") and read_encoder(tmp_path / "c/encoder").pretraining is None
    assert read_encoder("timm:vit_tiny_patch16_224@random", quiet=True).pretraining is None
