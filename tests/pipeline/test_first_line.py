"""Somebody who has just started a run sees at once that it goes."""

from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from tests.pipeline.conftest import finish, metrics, start, succeed


def test_the_first_step_is_shown_at_once_and_the_log_is_as_sparse_as_asked(tmp_path, shards):
    often, rarely = (succeed(tmp_path / name, shards, f"log.every_steps={every}") for name, every in (("often", 1), ("rarely", 1000)))
    shown = [line for line in rarely.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in shown] == ["1/8", "8/8"]
    first = lambda text: next(line for line in text.splitlines() if line.startswith("step 1/8")).partition("img/s")[0].rsplit(" ", 2)[0]
    assert first(rarely.out) == first(often.out)
    losses = metrics(tmp_path / "rarely")
    assert [step for step, values in losses.items() if "train/loss" in values] == [8]
    all_of_them = [values["train/loss"] for values in metrics(tmp_path / "often").values()]
    assert abs(losses[8]["train/loss"] - sum(all_of_them) / 8) < 1e-4  # the line has taken nothing out of the mean


def test_fine_tuning_shows_its_first_step_at_once(tmp_path, shards):
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    write_encoder(tmp_path / "encoder", build_encoder(model, 5).vit.state_dict(), model, (0.5,) * 3, (0.5,) * 3, "tiny")
    words = [f"encoder={tmp_path / 'encoder'}", f"train={shards}", f"run_dir={tmp_path / 'run'}", "optim={steps: 5, warmup_steps: 1}"]
    words += ["data={global_batch: 4, holdout_fraction: 0.2}", "log.every_steps=1000", "system={precision: fp32, workers: 0}"]
    done = finish(start(words, 1, ["mpp/finetune.py"]))
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("step ")] == ["1/5", "5/5"], done.err
