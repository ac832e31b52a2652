"""Each recipe is measured to be what its paper says; and what is changed in a YAML, or in the code that trains, is seen to differ."""

import json
import re
from pathlib import Path

import pytest
import torch

from mpp import conformance
from mpp.base.errors import ConfigError
from mpp.claims import masks, model, targets, training
from mpp.claims.claim import DECLARED, DIFFERS, LEFT_OUT, OK, Claim, hold, shown
from mpp.claims.papers import CLAIMS, PAPERS
from mpp.claims.subject import Subject
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.mains.conformance import head_of, measured

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "\ndecoder:" in path.read_text())
AT_PAPERS_SCALE = [name for name in RECIPES if re.search(r"_[blh]1[46]$", name)]
SMALL = [name for name in CLAIMS if name.startswith("cifar_")]
SCHEDULES = ["mpp_b16", "ijepa_b16"]  # without a teacher, and with one


def subject_of(name: str, *words: str) -> Subject:
    path = CONFIGS / f"{name}.yaml"
    return Subject(name, load(PretrainConfig, path, words), head_of(path))


def differing(name: str, *words: str, of=None) -> set[str]:
    """What the claims of a recipe find to differ; of: the module of the measures that are taken, all of them by default."""
    subject = subject_of(name, *words)
    claims = [claim for claim in CLAIMS[name] if of is None or of.__name__ in (claim.measure.__module__, claim.measure.__qualname__)]
    assert claims
    return {claim.what for claim in claims if hold(claim, subject).verdict == DIFFERS}


def test_every_recipe_has_claims_and_every_claim_a_recipe():
    assert CLAIMS.keys() == set(RECIPES) - {name for name in RECIPES if name.startswith(("demo_", "small_"))}  # no paper's
    assert sum(len(paper.CLAIMS) for paper in PAPERS) == len(CLAIMS)
    for name, claims in CLAIMS.items():
        whats = [claim.what for claim in claims]
        assert len(set(whats)) == len(whats) >= 9 and all(claim.source for claim in claims), name


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_is_as_its_paper_says(name):
    assert differing(name) == set()


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_training_asks_at_each_step_is_as_the_paper_says(name):
    assert differing(name, of=training) == set()


@pytest.mark.parametrize("name", AT_PAPERS_SCALE)
def test_masks_are_as_the_paper_says(name):
    assert differing(name, of=masks) == set()


@pytest.mark.long
@pytest.mark.parametrize("name", AT_PAPERS_SCALE)
def test_a_recipe_is_as_its_paper_says(name):
    report = measured(name, CONFIGS / f"{name}.yaml")
    assert report.conforms, [finding for finding in report.findings if finding.verdict == DIFFERS]


# ---------------------------------------------------------------------------------------------------- every YAML, on the meta device


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_built_without_memory_and_has_the_parameters_of_its_sizes(name):
    subject = subject_of(name)
    net, config = subject.whole, subject.config.model
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    width, (rows, columns), prefix = net.encoder.width, config.grid, net.encoder.prefix
    block = 12 * width**2 + 13 * width + (2 * width if config.layer_scale else 0)
    if config.position == "rotary":  # nothing is added, and there is no layer scale that is not 1 (`layer_scale: 0`)
        tokens, block = prefix * width, block + 2 * width
    else:
        tokens = (2 * prefix + rows * columns) * width
    assert model.encoder_parameters(subject) == (3 * config.patch_size**2 + 1) * width + net.encoder.depth * block + 2 * width + tokens


@pytest.mark.parametrize("name", ["mpp_b16", "mae_b16", *SMALL])
def test_a_step_costs_six_for_each_multiply_add(name):
    subject = subject_of(name)
    tokens = subject.masks.visible.shape[1] if subject.config.corruption.drops else subject.masking.patches
    net = subject.whole.encoder
    tokens += net.prefix
    least = 6 * net.depth * (12 * net.width**2 * tokens + 2 * tokens**2 * net.width)
    assert least < subject.flop
    if any(claim.measure is model.gigaflop for claim in CLAIMS[name]):
        assert not differing(name, of=model.gigaflop)
    elif subject.config.mask.groups == 1:  # a predictor that is asked for each block by itself costs more than a small encoder
        assert subject.flop < 3 * least


def test_every_number_of_a_recipe_cites_its_source():
    for name in AT_PAPERS_SCALE:
        assert re.search(r"arXiv \d{4}\.\d{5}|ViT paper", head_of(CONFIGS / f"{name}.yaml")), name
        section, cited = "", 0
        for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
            section = line.partition(":")[0] if re.match(r"\w", line) else section
            numbers = re.search(r"[:\[ ][\d.]", line.partition("#")[0])  # std is told with mean
            if section in ("mask", "corruption", "target", "decoder", "optim", "data") and numbers and "std:" not in line:
                assert re.search(r"# *\w", line), f"{name}: {line}"
                cited += 1
        assert cited >= 10, name


# ---------------------------------------------------------------------------------------------------- what is changed is seen

CHANGES = [
    ("cifar_mpp", "mask.ratio=0.25", {"patches hidden", "of them masked, swapped, kept", "the loss covers"}),
    ("cifar_mpp", "corruption={mask: 1, swap: 0, keep: 0}", {"of them masked, swapped, kept", "the loss covers", "a swapped patch shows"}),
    ("cifar_mpp", "corruption.at=pixels", {"the mask token enters"}),
    ("cifar_mpp", "mask.predicted=0.25", {"the loss covers"}),
    ("cifar_mpp", "target.bits=2", {"numbers predicted for a patch", "class of the colour 200, 30, 100", "class of half black, half white", "loss of the first step"}),
    ("cifar_mpp", "decoder.head_std=0.02", {"deviation of the head's first weights", "loss of the first step"}),
    ("cifar_mpp", "model.class_tokens=0", {"class tokens, registers"}),
    ("cifar_mpp", "decoder={name: transformer, depth: 1, width: 16, heads: 2}", {"a prediction is made from", "deviation of the head's first weights", "loss of the first step"}),
    ("cifar_mae", "target.normalise=false", {"goal: mean, variance (unbiased) of a patch"}),
    ("cifar_mae", "target.loss=l1", {"loss where every value is off by 3", "loss of the first step"}),
    ("cifar_mae", "mask={name: random, ratio: 0.75, unit: 2}", set()),
    ("cifar_crossmae", "decoder.memory=last", {"its blocks read"}),
    ("cifar_pixio", "model.class_tokens=1", {"class tokens, registers", "tokens of the decoder"}),
    ("cifar_maskfeat", "target.cell=2", {"numbers predicted for a patch"}),
    ("cifar_beit", "mask={name: random, ratio: 0.3827}", {"hidden among a hidden one's neighbours"}),
    ("cifar_data2vec", "target.blocks=2", {"goal"}),
    ("cifar_ijepa", "decoder.tokens=hidden", {"tokens of the predictor"}),
    ("cifar_salt", "target.beta=2.0", {"loss where every value is off by 3", "loss where every value is off by .5", "loss of the first step"}),
    ("cifar_capi", "mask.roll=false", {"the visible block lies", "least hidden place, in the mean"}),
    ("cifar_capi_clusters", "target.clusters=256", {"numbers predicted for a patch", "loss of the first step"}),
    ("cifar_ab", "target.loss=l1", {"loss where every value is off by 3"}),
    ("cifar_simmim", "mask.unit=1", {"patches hidden", "of them masked, swapped, kept", "the loss covers", "patches a side that are hidden together"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "expected"), CHANGES, ids=lambda value: "; ".join(sorted(value))[:40] if isinstance(value, set) else str(value)[:40]
)
def test_a_changed_recipe_differs_where_it_was_changed(name, words, expected):
    found = differing(name, words)
    assert found >= expected and len(found) <= len(expected) + 1, found


TRAINED = [
    ("mpp_b16", "optim.base_lr=3e-4", {"peak learning rate", "rate half-way through warm-up", "rate at the end of warm-up", "rate half-way from there to the end"}),
    ("mpp_b16", "optim.warmup_samples=0", {"rate of the first step", "rate half-way through warm-up"}),
    ("mpp_b16", "optim.norm_decay_scale=1", {"weight decay of matrices, biases, norms, tokens"}),
    ("mpp_b16", "optim.final_weight_decay=0.1 data.flip=false", {"share of views flipped, otherwise turned"}),
    ("mpp_b16", "data.vertical_flip=true", {"share of views flipped, otherwise turned"}),
    ("pixio_b16", "data.turns=true", {"share of views flipped, otherwise turned"}),
    ("mpp_b16", "optim.betas=[0.9,0.95] optim.clip_norm=3", {"betas", "gradient clipped to (0: not)"}),
    ("mpp_b16", "data.crop_scale=[0.2,1] data.global_batch=2048", {"crops, share of the area", "batch"}),
    ("ijepa_b16", "target.ema_start=0.99", {"teacher keeps, step 1"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "expected"), TRAINED, ids=lambda value: "; ".join(sorted(value))[:40] if isinstance(value, set) else str(value)[:40]
)
def test_a_changed_schedule_differs_where_it_was_changed(name, words, expected):
    subject = subject_of(name, *words.split())
    claims = [claim for claim in CLAIMS[name] if claim.what in {*expected, "epochs of ImageNet", "rate at the end"}]
    assert {claim.what for claim in claims if hold(claim, subject).verdict == DIFFERS} == expected


def test_the_program_says_what_differs_and_ends_with_1(capsys):
    assert conformance.main(["cifar_mpp"]) == 0
    said = capsys.readouterr().out
    assert f"{len(CLAIMS['cifar_mpp'])} ok" in said and "1 of 1 recipes as their papers say" in said and DIFFERS not in said
    assert conformance.main(["cifar_mpp", "mask.ratio=0.25"]) == 1
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "patches hidden" in line]
    assert re.fullmatch(r"  patches hidden +32 +16 +ViT B.1.2.* +differs", row)
    assert "0 of 1 recipes as their papers say; not cifar_mpp" in said


def test_a_yaml_of_ones_own_is_held_beside_the_claims_of_a_recipe(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "cifar_mpp.yaml").read_text().replace("bits: 3", "bits: 4"))
    assert conformance.main(["cifar_mpp", "--config", str(mine), "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)["cifar_mpp"]
    assert found["config"] == str(mine) and not found["conforms"]
    (outputs,) = [each for each in found["claims"] if each["what"] == "numbers predicted for a patch"]
    assert (outputs["says"], outputs["measured"], outputs["verdict"]) == ("512", "4,096", DIFFERS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mae_b61"], ["'mae_b61'", "the nearest known one is 'mae_b16'", "known are mpp_b16"]),
        (["nonsense"], ["no claims of a recipe 'nonsense'; known are mpp_b16"]),
        (["--config", "configs/mine.yaml"], ["no claims of a recipe 'mine'"]),
        (["mae_b16", "mpp_b16", "--config", "mine.yaml"], ["claims of one recipe, not of 2", "name one"]),
        (["mae_b16", "--config", "missing.yaml"], ["cannot read the config missing.yaml"]),
        (["mae_b16", "mask.ration=0.5"], ["unknown key 'mask.ration'"]),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(words, expected):
    with pytest.raises(ConfigError) as refused:
        conformance.main(words)
    assert "\n" not in str(refused.value) and all(part in str(refused.value) for part in expected), refused.value


# ---------------------------------------------------------------------------------------------------- claims


def held(says, found, header="", **knobs):
    return hold(Claim("what", says, lambda _: found, "source", **knobs), Subject("any", PretrainConfig(), header))


def test_a_claim_agrees_with_what_is_as_near_as_it_says():
    for says, found, verdict in [
        (1, 1, OK), (1, 1.1, DIFFERS), ("a", "a", OK), ("a", "b", DIFFERS), ("a", 1, DIFFERS), ((1, 2), [1, 2], OK), ((1, 2), [2, 1], DIFFERS),
        ((1, 2), [1], DIFFERS), ((1, 2), [1, 3], DIFFERS), ((1,), 1, DIFFERS), (98, "97 to 98", DIFFERS), (0.0, 1e-9, DIFFERS),
    ]:  # fmt: skip
        assert held(says, found).verdict == verdict, (says, found)
    assert held(100, 101, near=0.02).verdict == OK and held(100, 103, near=0.02).verdict == DIFFERS
    assert held(0.5, 0.52, within=0.03).verdict == OK and held(0.5, 0.54, within=0.03).verdict == DIFFERS


def test_a_deviation_is_declared_with_its_value_and_its_reason_or_stands_in_the_head_of_the_yaml():
    assert held(1, 2, ours=2, because="why").verdict == DECLARED and held(1, 2, ours=2, because="why").note == "why"
    assert held(1, 3, ours=2, because="why").verdict == DIFFERS
    assert held(1, 1, ours=2, because="why").verdict == OK
    assert held(1, 2, "Left out: this.", ours=2, left_out="this").verdict == LEFT_OUT
    assert held(1, 2, "Nothing.", ours=2, left_out="this").verdict == DIFFERS
    for knobs in ({"ours": 2}, {"because": "why"}, {"left_out": "this"}):
        with pytest.raises(ValueError, match="a deviation needs"):
            held(1, 2, **knobs)
    assert [shown(value) for value in (0.0, 0.25, 1e-5, 4096, 86e6, (1, 0.5), "words")] == [
        "0", "0.25", "1e-05", "4,096", "86,000,000", "1, 0.5", "words",
    ]  # fmt: skip


def test_measures_leave_the_model_as_it_was():
    subject = subject_of("cifar_mpp")
    before = {name: tensor.clone() for name, tensor in subject.small.state_dict().items()}
    decoder = subject.small.decoder
    for claim in CLAIMS["cifar_mpp"]:
        claim.measure(subject)
    assert subject.small.decoder is decoder
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.small.state_dict().items())
    assert targets.outputs(subject) == 512
