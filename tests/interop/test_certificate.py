"""Encoders that leave mpp: opened by the library they were made for, in a process that has no mpp, and certified."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mpp.base.errors import CheckpointError, ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.disk.files import sha256_of
from mpp.export import main
from mpp.interop import certificate
from mpp.interop.read_encoder import read_encoder
from mpp.interop.weight_files import read_weights
from mpp.mains import export
from mpp.model.encoder import Encoder
from mpp.model.tokens import class_tokens_of
from mpp.recipe.model import PretrainingModel, build_model
from mpp.train.commit import checkpoint_folder, write_commit

pytest.importorskip("transformers")
ALL = ["timm", "transformers", "transformers-mae", "safetensors"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MAE = {
    "model": {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3, "position": "sincos2d"},
    "mask": {"name": "random", "ratio": 0.75},
    "corruption": {"name": "drop"},
    "target": {"name": "pixels", "normalise": True},
    "decoder": {"name": "transformer", "depth": 1, "width": 32, "heads": 4},
    "data": {"mean": MEAN, "std": STD},
}  # fmt: skip

ROTARY = {"arch": "vit_small_patch16_rope_224", "position": "rotary", "layer_scale": 0.0}


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    return model.eval()


def make_run(folder: Path, **changes) -> PretrainingModel:
    """A run folder with one commit."""
    config = PretrainConfig.model_validate(MAE | changes)
    model = scattered(build_model(config))
    commit = checkpoint_folder(folder, 1)
    commit.mkdir(parents=True)
    path = commit / "rank00000.safetensors"
    save_file({f"weight/{name}": value.detach().contiguous() for name, value in model.named_parameters()}, path)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}}
    write_commit(commit, {"step": 1, "samples_seen": 4096, "files": files, "config": config.model_dump(mode="json")})
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, PretrainingModel]:
    """(folder of all four exports, the model); not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    model = make_run(folder / "run")
    assert main([str(folder / "run"), str(folder / "out"), "--to", *ALL]) == 0
    return folder / "out", model


@pytest.fixture
def copy(exported, tmp_path):
    """copy(kind): a folder of one export that may be changed."""
    import shutil

    return lambda kind: Path(shutil.copytree(exported[0] / kind, tmp_path / kind))


def rule(side: int) -> np.ndarray:
    """As the certificate words it."""
    values = [
        [[[(c + 1) * x * x + (i + 1) * y * y + 3 * x * y + 17 * c + 29 * i for x in range(side)] for y in range(side)] for c in range(3)]
        for i in (0, 1)
    ]
    return np.array(values) % 256


ELSEWHERE = """
import json, sys
sys.modules["mpp"] = None
import numpy as np, timm, torch, transformers
from PIL import Image
from safetensors.torch import load_file
out, images = sys.argv[1], torch.from_numpy(np.load("images.npy"))
found = {}
with torch.no_grad():
    net = timm.create_model(f"local-dir:{out}/timm", pretrained=True).eval()
    found["timm"], found["timm pooled"] = net.forward_features(images), net(images)
    cfg = timm.data.resolve_model_data_config(net)
    found["timm preprocessing"] = timm.data.create_transform(**cfg, is_training=False)(Image.open("image.png"))
    model = transformers.AutoModel.from_pretrained(f"{out}/transformers").eval()
    answer = model(images)
    found["transformers"], found["pooler"] = answer.last_hidden_state, answer.pooler_output
    processor = transformers.AutoImageProcessor.from_pretrained(f"{out}/transformers")
    found["transformers preprocessing"] = processor(Image.open("image.png"), return_tensors="pt").pixel_values[0]
    mae = transformers.ViTMAEForPreTraining.from_pretrained(f"{out}/transformers-mae").eval()
    noise = torch.from_numpy(np.load("noise.npy"))
    answer = mae(images, noise=noise)
    found["logits"], found["mask"] = answer.logits, answer.mask
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    plain.load_state_dict(load_file(f"{out}/safetensors/encoder.safetensors"))
    found["safetensors"] = plain.forward_features(images)
np.savez("found.npz", **{name: np.asarray(value) for name, value in found.items()})
"""


@torch.no_grad()
def test_a_process_without_mpp_opens_all_of_them_to_equal_tokens(exported, tmp_path):
    out, model = exported
    images = torch.from_numpy(rule(32)).float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(
        (96, 64), Image.Resampling.BICUBIC
    )
    picture.save(tmp_path / "image.png")
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "noise.npy", noise.numpy())
    done = subprocess.run([sys.executable, "-I", "-c", ELSEWHERE, str(out)], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = {name: torch.from_numpy(value) for name, value in np.load(tmp_path / "found.npz").items()}

    tokens = model.encoder(model.encoder.embed(images))
    for name in ("timm", "transformers", "safetensors"):
        torch.testing.assert_close(found[name], tokens, atol=1e-5, rtol=1e-5)
    for name in ("timm pooled", "pooler"):
        torch.testing.assert_close(found[name], tokens[:, 0], atol=1e-5, rtol=1e-5)
    visible = noise.argsort(1)[:, :4]
    predictions = model.decoder(model.encoder(model.encoder.embed(images), visible), visible, torch.arange(16).expand(2, -1))
    torch.testing.assert_close(found["logits"], predictions, atol=1e-5, rtol=1e-5)
    assert found["mask"].sum() == 24
    centre = picture.resize((32, 32), Image.Resampling.BICUBIC, box=(16, 0, 80, 64))  # the square that mpp's probes see
    ours = torch.from_numpy(np.array(centre)).permute(2, 0, 1) / 255
    for name in ("timm preprocessing", "transformers preprocessing"):
        levels = (found[name] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1) - ours) * 255
        assert levels.abs().max() < 3, name


def test_each_certificate_says_what_it_is_of(exported):
    out, _ = exported
    digests = set()
    for kind in ALL:
        made = json.loads((out / kind / "CERTIFICATE.json").read_text())
        assert set(made["files"]) == {path.name for path in (out / kind).iterdir()} - {"CERTIFICATE.json"}
        assert made["preprocessing"] | {"resolution": 32, "mean": MEAN, "std": STD} == made["preprocessing"]
        assert set(made["max_delta"]) == {"tokens", "mean", "cls"} | ({"predictions"} if kind == "transformers-mae" else set())
        assert max(made["max_delta"].values()) < 1e-4 < made["largest_value"] and "timm" in made["versions"]
        digests.add(made["encoder"]["digest"])
        (weights,) = (out / kind).glob("*.safetensors")
        inside = json.loads(read_weights(weights)[1]["mpp.certificate"])
        assert inside == {key: value for key, value in made.items() if key != "files"}
        assert read_encoder(out / kind, quiet=True).digest == made["encoder"]["digest"]
    assert len(digests) == 1
    assert np.array_equal(certificate.fixed_images(20).numpy(), rule(20))


def test_check_measures_all_below_a_folder(exported, capsys):
    assert main(["--check", str(exported[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ALL


@pytest.mark.parametrize("kind", ALL)
def test_one_flipped_bit_in_any_file_is_found(copy, kind):
    folder = copy(kind)
    for name in certificate.FILES[kind]:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
        with pytest.raises(CheckpointError, match=f"{name} is not the file"):
            certificate.check(folder)
        (folder / name).write_bytes(data)
    (folder / certificate.FILES[kind][0]).unlink()
    with pytest.raises(CheckpointError, match="or it is gone"):
        certificate.check(folder)


def resealed(folder: Path) -> None:
    """The certificate with the sha256 of whatever lies beside it now."""
    made = json.loads((folder / "CERTIFICATE.json").read_text())
    certificate.write_certificate({key: value for key, value in made.items() if key != "files"}, folder)


@pytest.mark.parametrize("kind", ALL)
def test_another_encoder_under_matching_hashes_is_found(copy, tmp_path, kind):
    folder, run = copy(kind), tmp_path / "other"
    make_run(run, seed=9)
    main([str(run), str(tmp_path / "others"), "--to", kind])
    (name,) = [name for name in certificate.FILES[kind] if name.endswith(".safetensors")]
    (folder / name).write_bytes((tmp_path / "others" / kind / name).read_bytes())
    resealed(folder)
    with pytest.raises(CheckpointError, match="the certificate is of"):
        certificate.check(folder)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_library_that_computes_something_else_is_found(copy, kind, monkeypatch):
    folder = copy(kind)
    if kind == "timm":
        real = timm.create_model

        def create(*words, **more):
            net = real(*words, **more)
            net.blocks[1].norm2.eps = 0.1
            return net

        monkeypatch.setattr(
            certificate.timm, "create_model", lambda *a, **k: create(*a, **k) if str(a[0]).startswith("local-dir") else real(*a, **k)
        )
    else:
        import transformers

        from_pretrained = transformers.AutoModel.from_pretrained

        def altered(*words, **more):
            model, info = from_pretrained(*words, **more)
            model.layernorm.bias.data[3] += 0.01
            return model, info

        monkeypatch.setattr(transformers.AutoModel, "from_pretrained", altered)
    with pytest.raises(CheckpointError, match="its tokens differ from mpp's by"):
        certificate.check(folder)


def test_predictions_of_another_decoder_are_found(copy, monkeypatch):
    import transformers

    from_pretrained = transformers.ViTMAEForPreTraining.from_pretrained

    def altered(*words, **more):
        model, info = from_pretrained(*words, **more)
        model.decoder.mask_token.data[..., 0] += 0.5
        return model, info

    monkeypatch.setattr(transformers.ViTMAEForPreTraining, "from_pretrained", altered)
    with pytest.raises(CheckpointError, match="its predictions differ"):
        certificate.check(copy("transformers-mae"))


def test_a_folder_without_or_with_a_damaged_certificate_is_refused(copy):
    folder = copy("timm")
    made = json.loads((folder / "CERTIFICATE.json").read_text())
    for change in ({"format": 9}, {"files": {}}, {"encoder": {}}, {"target": "onnx"}):
        (folder / "CERTIFICATE.json").write_text(json.dumps(made | change))
        with pytest.raises(CheckpointError, match="export it again"):
            certificate.check(folder)
    (folder / "CERTIFICATE.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no CERTIFICATE\.json"):
        certificate.check(folder)


@pytest.mark.parametrize(
    ("changes", "target", "words"),
    [
        ({"model": MAE["model"] | {"class_tokens": 0}}, "transformers", "no class token"),
        (None, "transformers", "registers, layer scale"),
        ({"model": MAE["model"] | {"class_tokens": 8}}, "transformers", "has 8 class tokens, which"),
        ({"model": MAE["model"] | {"class_tokens": 2, "registers": 1}}, "transformers-mae", "has 2 class tokens, registers, which"),
        ({"model": MAE["model"] | {"position": "none"}}, "transformers", "has no positions, which"),
        ({"model": MAE["model"] | {"qk_norm": True}}, "transformers", "has norms of queries and keys, which"),
        ({"model": MAE["model"] | ROTARY}, "transformers", "has the architecture of timm's Eva, layer scale, rotary positions, which"),
        ({"corruption": {"name": "replace"}}, "transformers-mae", r"corruption\.name=replace"),
        ({"target": {"name": "mean_color"}}, "transformers-mae", r"target\.name=mean_color"),
        ({"decoder": MAE["decoder"] | {"position": "learned"}}, "transformers-mae", r"decoder\.position=learned"),
        ({"decoder": MAE["decoder"] | {"tokens": "predicted"}}, "transformers-mae", r"decoder\.tokens=predicted"),
    ],
)  # fmt: skip
def test_what_a_target_cannot_express_is_refused_before_anything_is_written(tmp_path, changes, target, words):
    if changes is None:
        net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, reg_tokens=2, init_values=0.1, num_classes=0)
        save_file(net.state_dict(), tmp_path / "reg.safetensors")
        source = str(tmp_path / "reg.safetensors")
    else:
        make_run(tmp_path / "run", **changes)
        source = str(tmp_path / "run")
    with pytest.raises(ConfigError, match=words):
        main([source, str(tmp_path / "out"), "--to", "timm", target])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [("timm:resnet10t@random", "timm's ResNet"), ("timm:beit_base_patch16_224@random", "timm's Beit, relative positions")],
)
def test_another_kind_of_network_is_no_vit_of_transformers(tmp_path, source, words):
    with pytest.raises(ConfigError, match=words):
        main([source, str(tmp_path), "--to", "transformers"])


@pytest.mark.parametrize("changes", [{"class_tokens": 8}, ROTARY | {"class_tokens": 3, "rotary_frequencies": (7.0, 7e-4)}])
def test_several_class_tokens_and_rotary_positions_go_out_with_what_pools_them(tmp_path, changes, capsys):
    make_run(tmp_path / "run", model=MAE["model"] | changes)
    assert main([str(tmp_path / "run"), str(tmp_path / "out"), "--to", "timm", "safetensors"]) == 0
    source, count = read_encoder(tmp_path / "run"), changes["class_tokens"]
    for kind in ("timm", "safetensors"):
        found = read_encoder(tmp_path / "out" / kind)
        assert (found.digest, found.model, class_tokens_of(found.net)) == (source.digest, source.model, count)
        assert certificate.check(tmp_path / "out" / kind)["pooling"]["cls"] == f"mean of the first {count} tokens"
        assert class_tokens_of(found.fresh(0)) == count


def test_a_fine_tuned_run_is_read_by_its_encoder_folder(exported, tmp_path):
    import shutil

    make_run(tmp_path / "run")
    (commit,) = (tmp_path / "run").glob("checkpoints/*/COMMIT.json")
    record = json.loads(commit.read_text())
    write_commit(commit.parent, record | {"program": "finetune", "config": {"encoder": "some/run"}})
    shutil.copytree(exported[0] / "timm", tmp_path / "run" / "encoder")
    assert export.open_source(str(tmp_path / "run")).run is None
    assert read_encoder(tmp_path / "run").digest == read_encoder(exported[0] / "timm").digest


def test_an_encoder_without_its_run_has_no_decoder_to_export(exported, tmp_path):
    with pytest.raises(ConfigError, match="without a decoder"):
        main([str(exported[0] / "timm"), str(tmp_path), "--to", "transformers-mae"])


def test_without_transformers_the_remedy_is_named(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install"):
        main([str(exported[0] / "timm"), str(tmp_path / "out"), "--to", "transformers"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["timm:resnet10t@random", "timm:vit_tiny_patch16_224@random"])
def test_encoders_of_timm_go_out_too(tmp_path, source, capsys):
    assert main([source, str(tmp_path), "--to", "timm", "safetensors"]) == 0
    assert read_encoder(tmp_path / "timm").digest == read_encoder(tmp_path / "safetensors").digest == read_encoder(source).digest


@torch.no_grad()
def test_an_encoder_goes_from_transformers_to_timm_and_back(tmp_path, capsys):
    """transformers' norms have another constant, which timm's format cannot say; the certificate measures what that does."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=32, patch_size=8
    )
    model = scattered(transformers.ViTModel(config))
    model.save_pretrained(tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path), "--to", "timm", "transformers"])
    assert (
        read_encoder(tmp_path / "timm").digest == read_encoder(tmp_path / "theirs").digest == read_encoder(tmp_path / "transformers").digest
    )
    again = Encoder(read_encoder(tmp_path / "timm").net)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(again.embed(images)), model(images).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_kill_between_two_files_leaves_no_certificate(exported, tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert (tmp_path / "out" / "timm" / "CERTIFICATE.json").exists()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "certify", killed)
    with pytest.raises(KeyboardInterrupt):
        main([str(tmp_path / "run"), str(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="holds no CERTIFICATE"):
        certificate.check(tmp_path / "out" / "timm")
