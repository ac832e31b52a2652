import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mpp.base.errors import ConfigError
from mpp.config.finetune import FinetuneConfig
from mpp.config.names import OTHERS, nearest
from mpp.config.pretrain import PretrainConfig
from mpp.config.probe import ProbeConfig
from mpp.config.schema import Count, Section, dump, known_keys, load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PROGRAMS = {"finetune": FinetuneConfig}  # first word of a config's name -> what reads it; all others are pretraining's


def schema_of(path):
    return PROGRAMS.get(path.stem.partition("_")[0], PretrainConfig)


class Scalar(Section):
    value: object = None


def scalar(text: str):
    return load(Scalar, None, [f"value={text}"]).value


def refused(*words: str, schema=PretrainConfig, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(schema, path, words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e6", 1e6), ("1E6", 1e6), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0), ("4_096_000.5", 4096000.5),
        ("7", 7), ("-7", -7), ("+7", 7), ("010", 10), ("4_096_000", 4096000), ("0", 0),
        ("true", True), ("True", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("n", "n"), ("y", "y"), ("NO", "NO"),
        ("1:30", "1:30"), ("12:30:45", "12:30:45"), ("2024-01-02", "2024-01-02"), ("0x1f", "0x1f"), ("1e", "1e"), ("e5", "e5"),
        ("1_", "1_"), ("1__0", "1__0"), ("_1", "_1"), ("'1e6'", "1e6"), ('"7"', "7"), ("[1, 2e-1, no]", [1, 0.2, "no"]),
        ("{a: 1e2, b: off}", {"a": 100.0, "b": "off"}), ("runs/b16", "runs/b16"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_files_and_words_read_scalars_alike(tmp_path):
    path = tmp_path / "a.yaml"
    for text in ("3e-4", "1e6", "no", "1:30", "null", "4_096", "true"):
        path.write_text(f"value: {text}\n")
        assert load(Scalar, path).value == scalar(text)


def test_whole_floats_may_stand_for_counts():
    config = load(PretrainConfig, None, ["optim.total_samples=1e6", "optim.warmup_samples=1e4", "resume=2e2"])
    assert (config.optim.total_samples, config.optim.warmup_samples, config.resume) == (1_000_000, 10_000, 200)
    assert type(config.optim.total_samples) is int


def test_words_override_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optim: {base_lr: 1e-3, weight_decay: 0.1}\ndata:\n  global_batch: 512\n")
    config = load(PretrainConfig, path, ["optim.base_lr=2e-3", "seed=5"])
    assert (config.optim.base_lr, config.optim.weight_decay, config.data.global_batch, config.seed) == (2e-3, 0.1, 512, 5)
    assert config.optim.eps == PretrainConfig().optim.eps


def test_the_defaults_are_the_papers_choice():
    config = PretrainConfig()
    assert (config.mask.ratio, config.corruption.mask, config.corruption.swap, config.corruption.keep) == (0.5, 0.8, 0.1, 0.1)
    assert (config.target.name, config.target.bits, config.decoder.name) == ("mean_color", 3, "linear")
    assert (config.optim.base_lr, config.optim.betas) == (2e-4, (0.9, 0.999))
    assert (config.optim.warmup_samples, config.optim.total_samples) == (10_000 * 4096, 1_000_000 * 4096)
    assert config.data.global_batch == 4096


def test_a_section_written_as_nothing_means_its_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model:\ntarget:\nmask: {}\n")
    assert load(PretrainConfig, path) == PretrainConfig()
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(PretrainConfig, tmp_path / "empty.yaml") == PretrainConfig()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optim.base_rl", "optim.base_lr"), ("optm.base_lr", "optim.base_lr"), ("sed", "seed"), ("target.bit", "target.bits"),
        ("mask.ration", "mask.ratio"), ("log.every", "log.every_steps"), ("maks.ratio", "mask.ratio"), ("basel_r", "optim.base_lr"),
        # the field's names
        ("optim.lr", "optim.base_lr"), ("lr", "optim.base_lr"), ("learning-rate", "optim.base_lr"), ("optimizer.lr", "optim.base_lr"),
        ("blr", "optim.base_lr"), ("epochs", "optim.epochs"), ("max_epochs", "optim.epochs"), ("minutes", "budget"), ("steps", "optim.total_samples"),
        ("warmup_epochs", "optim.warmup_samples"), ("batch_size", "data.global_batch"), ("data.batch", "data.global_batch"),
        ("accum_iter", "system.micro_batch_max"), ("weight_decay", "optim.weight_decay"), ("wd", "optim.weight_decay"),
        ("mask_ratio", "mask.ratio"), ("patch_size", "model.patch_size"), ("img_size", "model.image_size"), ("clip_grad", "optim.clip_norm"),
        ("norm_pix_loss", "target.normalise"), ("decoder_embed_dim", "decoder.width"), ("decoder.embed_dim", "decoder.width"),
        ("encoder.depth", "model.depth"), ("embed_dim", "model.width"), ("depth", "model.depth"), ("num_workers", "system.workers"),
        ("data_path", "data.shards"), ("output_dir", "run_dir"), ("min_lr", "optim.final_lr"), ("precision", "system.precision"),
        ("image_size", "model.image_size"), ("keep", "checkpoint.keep"), ("optim_base_lr", "optim.base_lr"),
        ("warmup_lr", "optim.start_lr"), ("cooldown_steps", "optim.cooldown_samples"), ("sched", "optim.schedule"), ("final_wd", "optim.final_weight_decay"),
        ("layernorm_wd_mult", "optim.norm_decay_scale"), ("momentum_teacher", "target.ema_start"), ("branch", "branch_from"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(key, meant):
    if "-" not in key:  # of which a word cannot have one
        assert f"unknown key '{key}'; the nearest known one is '{meant}'" in refused(f"{key}=1")
    assert nearest(key, known_keys(PretrainConfig)).startswith(f"; the nearest known one is '{meant}'")


@pytest.mark.parametrize(
    ("schema", "key", "meant"),
    [
        (FinetuneConfig, "lr", "optim.base_lr"), (FinetuneConfig, "epochs", "optim.epochs"), (FinetuneConfig, "max_steps", "optim.steps"),
        (FinetuneConfig, "mixup", "augment.mixup"), (FinetuneConfig, "reprob", "augment.erasing"), (FinetuneConfig, "img_size", "model.resolution"),
        (FinetuneConfig, "data_path", "train"), (FinetuneConfig, "layer_decay", "optim.layer_decay"), (FinetuneConfig, "val", "test"),
        (FinetuneConfig, "init_from", "encoder"), (FinetuneConfig, "warmup_epochs", "optim.warmup_epochs"),
        (ProbeConfig, "lr", "linear.learning_rates"), (ProbeConfig, "epochs", "linear.epochs"), (ProbeConfig, "nb_knn", "knn.k"),
        (ProbeConfig, "batch_size", "linear.batch"), (ProbeConfig, "num_workers", "features.workers"), (ProbeConfig, "data.shards", "train"),
        (ProbeConfig, "run_dir", "out"), (ProbeConfig, "C", "logistic.strengths"), (ProbeConfig, "img_size", "features.resolution"),
    ],
)  # fmt: skip
def test_each_program_leads_from_the_fields_names_to_its_own(schema, key, meant):
    assert f"; the nearest known one is '{meant}'" in refused(f"{key}=1", schema=schema)


def test_what_our_key_counts_is_said_where_the_fields_counts_something_else():
    assert refused("steps=10").endswith("the nearest known one is 'optim.total_samples' (counted in samples: steps x data.global_batch)")


def test_a_key_that_resembles_none_is_not_led_astray():
    assert refused("zzzzqqq=1") == "unknown key 'zzzzqqq'; --print-config shows all that there are"


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig, ProbeConfig])
def test_a_known_key_of_one_program_is_never_unknown_by_its_own_name(schema):
    """Every name leads to a key that some program has, and no name of ours leads elsewhere."""
    known = known_keys(schema)
    for key in known:
        assert nearest(key, known).startswith("; the nearest known one is ")
    everywhere = {*known_keys(PretrainConfig), *known_keys(FinetuneConfig), *known_keys(ProbeConfig)}
    assert not [key for ours in OTHERS for key in ours if key not in everywhere]


def test_a_key_of_another_row_is_named_as_such():
    assert "'target.bits' does not belong to target.name=pixels" in refused("target.name=pixels", "target.bits=3")
    assert "'decoder.depth' does not belong to decoder.name=linear" in refused("decoder.depth=3")


@pytest.mark.parametrize(
    "word",
    [
        "optim.base_lr=fast", "optim.base_lr='1e-3'", "optim.base_lr=true", "data.global_batch=4.5", "data.global_batch='8'", "data.flip=no",
        "data.flip=1", "data.flip=yes", "data.vertical_flip=1", "data.turns=90", "model.class_tokens=true", "seed=-1",
        "seed=9223372036854775808", "seed=true", "mask.ratio=0", "mask.ratio=1", "mask.name=blocks", "target.name=colour", "target.bits=9", "target.bits=0", "data.crop_scale=[0.1]",
        "data.crop_scale=0.1", "system.precision=fp16", "system.zero_stage=4", "checkpoint.keep=1", "resume=maybe", "resume=-1",
        "optim.weight_decay=-0.1", "model.drop_path=1.5", "model=3", "log.pictures=65", "model.depth=0",
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_right_is_refused_by_name(word):
    key, _, value = word.partition("=")
    message = refused(word)
    # A row that does not exist is named by its section and name: there is no such section to name the key of.
    assert key in message or (key.endswith(".name") and key.partition(".")[0] in message and value in message), message


ROTATION = ["mask.name=turn", "corruption.name=rotate", "target.name=rotation", "decoder.name=pooled"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["model.image_size=225"], ["225", "16", "224", "240"]),
        (["model.image_size=8"], ["8", "16"]),
        (["model.width=100", "model.heads=3"], ["100", "3"]),
        (["corruption.mask=0.9"], ["0.9", "0.1", "sum to 1"]),
        (["corruption.name=drop"], ["decoder.name=transformer"]),
        (["decoder.name=transformer", "decoder.width=100", "decoder.heads=16"], ["100", "16"]),
        (["decoder.name=transformer", "decoder.width=18", "decoder.heads=3"], ["18", "multiple of 4"]),
        (["target.name=color_grid", "target.grid=17"], ["17", "16"]),
        (["target.name=hog", "target.cell=3"], ["target.cell=3", "16", "4, 8"]),
        (["optim.total_samples=4095", "optim.warmup_samples=0"], ["4095", "4096"]),
        (["optim.total_samples=5000", "optim.warmup_samples=5001"], ["5001", "5000"]),
        (["data.crop_scale=[0.5, 0.2]"], ["0.5", "0.2", "low <= high"]),
        (["data.crop_scale=[0, 1]"], ["0 < low"]),
        (["data.crop_ratio=[2, 1]"], ["crop_ratio"]),
        (["data.std=[0.5, 0, 0.5]"], ["positive"]),
        (["model.image_size=32", "model.patch_size=16", "mask.ratio=0.1"], ["0.1", "4 patches"]),
        ([*ROTATION, "data.turns=true"], ["data.turns=true", "mask.name=turn", "data.turns=false"]),
        ([*ROTATION, "data.vertical_flip=true"], ["data.vertical_flip=true", "mask.name=turn", "data.vertical_flip=false"]),
    ],
)
def test_values_that_contradict_each_other_are_named_together(words, parts):
    message = refused(*words)
    assert all(part in message for part in parts), message


def test_a_repeated_key_is_an_error_that_names_its_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optim:\n  base_lr: 1\n  eps: 1e-8\n  base_lr: 2\n")
    message = refused(path=path)
    assert "'base_lr' stands twice" in message
    assert "line 4" in message
    assert "stands twice" in refused("data={flip: true, flip: false}")


@pytest.mark.parametrize("word", ["seed", "=3", "a b=3", "--seed=3", "1a=2"])
def test_a_word_that_is_not_key_equals_value_is_refused(word):
    assert "not of the form key=value" in refused(word)


def test_a_file_among_the_words_is_told_from_a_key():
    assert "; a file of keys is given as --config configs/mae_b16.yaml" in refused("configs/mae_b16.yaml")


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: b: c", "- 1\n- 2\n", "just words", "seed: {1: 2}", "7: 8", "\tseed: 1", "{[1, 2]: 3}"],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused(path=path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "none.yaml" in refused(path=tmp_path / "none.yaml")


def test_configs_are_frozen():
    config = PretrainConfig()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.optim.base_lr = 1.0


finite = st.floats(1e-12, 1e6)


@given(
    st.builds(
        lambda *values: values,
        st.integers(0, 2**63 - 1), finite, finite, st.booleans(), st.one_of(st.none(), st.integers(1, 10**9)),
        st.sampled_from(["no", "on", "1:30", "null", "~", "", "ümlaut: #x", "true", "7", "a\nb", "2024-01-02", "0x1f"]),
    )
)  # fmt: skip
def test_what_is_dumped_loads_back_equal(tmp_path_factory, values):
    seed, rate, eps, flip, lr_batch, name = values
    tree = {
        "seed": seed,
        "run_dir": name,
        "optim": {"base_lr": rate, "eps": eps, "lr_batch": lr_batch},
        "data": {"flip": flip},
        "corruption": {"name": "drop"},
        "decoder": {"name": "transformer", "width": 64, "heads": 4},
        "target": {"name": "pixels", "loss": "l1"},
        "system": {"deepspeed": {"comms_logger": {"enabled": flip, "debug": name}}},
    }
    path = tmp_path_factory.mktemp("config") / "a.yaml"
    config = PretrainConfig.model_validate(tree)
    path.write_text(dump(config))
    assert load(PretrainConfig, path) == config


@pytest.mark.parametrize("name", ["1e6", "12e4567", "3e-4"])
def test_a_name_that_looks_like_a_number_is_dumped_with_quotes(tmp_path, name):
    path = tmp_path / "a.yaml"
    config = PretrainConfig(run_dir=name)
    path.write_text(dump(config))
    assert load(PretrainConfig, path) == config


def test_a_probe_config_loads_back_too(tmp_path):
    config = load(ProbeConfig, None, ["features.layers=[-1, 3]", "knn.k=[1, 5]", "linear.learning_rates=[1e-3]", "encoder=runs/a"])
    assert config.features.layers == (-1, 3)
    (tmp_path / "a.yaml").write_text(dump(config))
    assert load(ProbeConfig, tmp_path / "a.yaml") == config


def test_what_changes_results_is_apart_from_what_changes_speed():
    assert set(PretrainConfig().that_changes_results()) == {"seed", "model", "mask", "corruption", "target", "decoder", "optim", "data"}


def test_a_count_is_never_negative():
    class Box(Section):
        count: Count = 0

    assert "count" in refused("count=-1", schema=Box)
    assert load(Box, None, ["count=3e0"]).count == 3


def test_there_are_configs_to_check():
    assert {"mpp_b16", "mpp_grid_b16", "mpp_l2_b16", "mae_b16"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_says_how_it_is_run(path):
    schema = schema_of(path)
    load(schema, path)
    lines = path.read_text().splitlines()
    assert 15 <= len(lines) <= 60
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    commands = [
        line
        for line in header
        if re.search(
            rf"deepspeed mpp/{'pretrain' if schema is PretrainConfig else 'finetune'}\.py --config configs/{path.name}(\s|$)", line
        )
    ]
    assert len(commands) == 1
    words = commands[0].partition(path.name)[2].split()
    load(schema, path, words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_shipped_config_means_another_thing_under_yaml_1_1(path):
    """An editor or a script may read it with a plain YAML loader: words must not turn into booleans."""

    def words(tree):
        return {key: words(value) for key, value in tree.items()} if isinstance(tree, dict) else isinstance(tree, bool)

    ours = load(schema_of(path), path).model_dump(mode="json")
    for section, keys in words(yaml.safe_load(path.read_text())).items():
        for key, is_bool in keys.items() if isinstance(keys, dict) else []:
            assert is_bool == isinstance(ours[section][key], bool), f"{section}.{key}"


def test_the_papers_recipes_differ_in_their_target_alone():
    color, grid, pixels = (load(PretrainConfig, ROOT / "configs" / f"{name}.yaml") for name in ("mpp_b16", "mpp_grid_b16", "mpp_l2_b16"))
    trees = [config.that_changes_results() for config in (color, grid, pixels)]
    targets = [tree.pop("target") for tree in trees]
    assert trees[0] == trees[1] == trees[2]
    assert [target["name"] for target in targets] == ["mean_color", "color_grid", "pixels"]


def test_maes_numbers_are_the_papers():
    config = load(PretrainConfig, ROOT / "configs" / "mae_b16.yaml")
    assert (config.mask.ratio, config.corruption.name, config.target.loss, config.target.normalise) == (0.75, "drop", "l2", True)
    assert (config.decoder.depth, config.decoder.width, config.decoder.heads) == (8, 512, 16)
    assert (config.optim.base_lr, config.optim.lr_batch, config.optim.betas, config.optim.weight_decay) == (1.5e-4, 256, (0.9, 0.95), 0.05)
    assert (config.data.global_batch, config.data.crop_scale, config.model.position) == (4096, (0.2, 1.0), "sincos2d")
    assert config.optim.warmup_samples * 20 == config.optim.total_samples  # 40 of 800 epochs


def test_what_a_choice_refuses_is_told_by_its_section():
    assert refused("decoder.name=transformer", "decoder.width=90", "decoder.heads=6").startswith(
        "decoder: width=90 must be a multiple of 4"
    )


def test_an_unknown_choice_is_told_with_those_there_are():
    known = "'random', 'block', 'multi_block', 'inverse_block', 'all', 'turn'"  # the first of them: a further one is no fault
    with pytest.raises(ConfigError, match=rf"^mask\.name=blok is not known; take one of {known}(, '\w+')*$"):
        load(PretrainConfig, None, ["mask.name=blok"])
