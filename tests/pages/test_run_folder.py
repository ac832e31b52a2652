"""What a page says of a run is what its folder says."""

import json

import pytest
import yaml

from mpp.base.errors import UserError
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import dump, load
from mpp.pages.page import charts_of, cost, headline, startable
from mpp.pages.run_folder import differing, open_run, shown

ROWS = [
    {"samples": 0, "step": 0, "features/linear": 0.2, "features/rank": 30.0, "features/deviation": 0.2},
    {
        "samples": 1000,
        "step": 10,
        "train/loss": 1.0,
        "speed/samples_per_second": 100.0,
        "speed/energy_joules": 1800.0,
        "norm/gradient/block_00": 0.5,
    },
    {"samples": 1000, "step": 10, "holdout/loss": 0.9, "holdout/skill": -0.1, "holdout/skill_error": 0.01},
    {"samples": 2000, "step": 20, "train/loss": None, "speed/samples_per_second": 50.0, "speed/energy_joules": 1800.0},
    {"samples": 4000, "step": 40, "train/loss": 0.5, "speed/samples_per_second": 200.0, "features/linear": 0.4},
]


@pytest.fixture
def run(tmp_path):
    def made(name="run", rows=ROWS, words=(), **files):
        folder = tmp_path / name
        folder.mkdir()
        config = load(
            PretrainConfig,
            "configs/demo_digits.yaml",
            ["optim.total_samples=8_000", "optim.warmup_samples=100", "data.global_batch=100", *words],
        )
        (folder / "config.yaml").write_text(dump(config))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for file, text in files.items():
            (folder / file.replace("__", ".")).write_text(text)
        return folder

    return made


def test_a_curve_is_of_the_rows_that_have_a_finite_figure(run):
    found = open_run(run())
    assert found.points("train/loss") == [(1000, 1.0), (4000, 0.5)] and found.points("holdout/skill") == [(1000, -0.1)]
    assert found.last("features/linear") == 0.4 and found.last("features/knn") is None
    assert found.names("norm/gradient/") == ["norm/gradient/block_00"]


def test_the_clock_adds_up_what_the_rows_between_took(run):
    found = open_run(run())
    assert found.clock == [(0.0, 0.0), (1000, 10.0), (2000, 30.0), (4000, 40.0)]
    assert found.hours_at(1500) * 3600 == pytest.approx(20) and found.hours_at(0) == 0 and found.hours_at(9000) * 3600 == pytest.approx(40)


def test_a_run_says_how_far_it_is_and_what_it_cost(run):
    found = open_run(run())
    assert (found.samples_seen, found.total_samples, found.finished) == (4000, 8000, False)
    said = headline(found, [])
    assert (
        said.mark == "open"
        and said.words == "This run is at 4,000 of 8,000 samples (50%); hold-out skill -0.100, and has not come to its end."
    )
    assert said.sentences == [
        "A linear probe of its features tells 40.0% of held-out images their class at 4,000 samples; 20.0% before training."
    ]
    told = dict(cost(found))
    assert (
        told["energy"].startswith("0.001 kWh") and told["time in steps"].startswith("0:00:40") and told["speed"] == "100 images/s (median)"
    )


@pytest.mark.parametrize(("learned", "mark"), [("yes", "good"), ("no", "bad"), ("not shown", "open"), (None, "open")])
def test_a_finished_run_begins_with_its_verdict(run, learned, mark):
    verdict = {"learned": learned, "words": "hold-out skill +0.4: this run predicts better than any trivial rule"}
    said = headline(open_run(run(verdict__json=json.dumps(verdict))), [])
    assert (said.mark, said.words) == (mark, "Hold-out skill +0.4: this run predicts better than any trivial rule.")


def test_a_verdict_that_a_note_speaks_against_is_not_marked_as_good(run):
    spread = [
        {"samples": at, "step": at // 100, "features/deviation": value}
        for at, value in ((0, 0.4), (4000, 0.01), (6000, 0.01), (8000, 0.01))
    ]
    said = headline(open_run(run(rows=spread, verdict__json=json.dumps({"learned": "yes", "words": "it predicts"}))), [])
    assert said.mark == "open"


def test_a_run_that_has_just_begun_has_a_page_too(run):
    assert headline(open_run(run(rows=[])), []).words == "This run has begun, and nothing is measured yet."


def test_notes_are_those_that_the_run_was_given_when_it_ran(run):
    rows = [{"samples": at, "step": at // 100, "holdout/skill": -0.2, "holdout/skill_error": 0.01} for at in (2000, 4000, 6000, 8000)]
    (note,) = open_run(run(rows=rows)).notes
    assert note.startswith("hold-out skill is -0.200 at 4,000 samples")


def test_every_key_has_its_value_its_source_and_whether_it_is_the_usual_one(run):
    keys = {key.name: key for key in open_run(run()).settings()}
    assert keys["optim.base_lr"].value == "0.002" and keys["optim.base_lr"].changed and keys["optim.base_lr"].source == "ViT B.1.2"
    assert keys["seed"].value == "0" and not keys["seed"].changed
    assert keys["optim.betas"].value == "[0.9, 0.95]" and keys["optim.betas"].changed and keys["optim.total_samples"].value == "8_000"
    assert keys["target.normalise"].changed and "(MAE)" in keys["target.normalise"].source
    assert keys.keys() == {key for key in keys if key} and len(keys) > 60


def test_what_differs_between_runs_stands_beside_each_other_but_for_where_they_lie(run):
    runs = [open_run(run("a")), open_run(run("b", words=["optim.base_lr=3e-4", "run_dir=elsewhere", "mask={name: block, ratio: 0.5}"]))]
    found = dict(differing(runs))
    assert found["optim.base_lr"] == ["0.002", "0.0003"] and found["mask.name"] == ["random", "block"]
    assert found["mask.min_patches"][0] == "-" and "run_dir" not in found and "seed" not in found


def test_a_fine_tuning_that_was_repeated_is_all_its_repeats(tmp_path):
    config = load(FinetuneConfig, None, ["encoder=runs/one", "train=shards/train", "repeats=2"])
    (tmp_path / "config.yaml").write_text(dump(config))
    for number, top in enumerate((0.5, 0.7)):
        rows = [
            {"samples": 1000, "step": 10, "train/loss": 1.0, "speed/samples_per_second": 100.0},
            {"samples": 1000, "step": 10, "holdout/accuracy": top},
        ]
        (tmp_path / f"repeat-{number}").mkdir()
        (tmp_path / f"repeat-{number}" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = {"accuracy": 0.6, "ci95": [0.55, 0.65]}
    results = {"rows": {"majority class": {}, "fine-tuned": {"finetune": figure}}, "reported_images": 1234, "reported_on": "test"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = open_run(tmp_path)
    assert (found.kind, found.samples_seen, found.seconds, found.finished) == ("fine-tuning", 2000, 20.0, True)
    assert headline(found, []).words == "Fine-tuned, 2 times: top-1 60.00 ±5.00 % of 1,234 test images."
    drawn = charts_of(found)["Does it learn?"]
    assert [chart.title for chart in drawn] == ["top-1, hold-out", "loss, training"] and "repeat 1" in drawn[0].svg


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "true"), (None, "null"), (1e-8, "1e-08"), (0.1 + 0.2, "0.3"), (192000, "192_000"), ("cls", "cls"), ([0.9, 1], "[0.9, 1]")],
)
def test_a_value_is_shown_as_it_would_be_typed(value, words):
    assert shown(value) == words and (
        not isinstance(value, int | float) or value == pytest.approx(yaml.safe_load(words.replace("1e", "1.0e")))
    )


def test_a_folder_that_is_no_run_is_refused_with_what_lies_below_it(run, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no run: it has no config\.yaml"):
        open_run(tmp_path / "nowhere")
    run("some")
    with pytest.raises(UserError, match=r"below it lie .*some"):
        open_run(tmp_path)
    (tmp_path / "some" / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        open_run(tmp_path / "some")


@pytest.mark.parametrize(
    ("noted", "processes", "startable_line"),
    [
        ("mpp/pretrain.py --local_rank=0 --config c.yaml 'run_dir=a b'", 1, "python mpp/pretrain.py --config c.yaml 'run_dir=a b'"),
        ("mpp/finetune.py --local_rank=3 seed=1", 8, "deepspeed --num_gpus 8 mpp/finetune.py seed=1"),
        ("mpp/pretrain.py 'run_dir=cut", 1, "mpp/pretrain.py 'run_dir=cut"),
        ("", 1, ""),
    ],
)
def test_the_command_of_a_page_can_be_given_to_a_shell(noted, processes, startable_line):
    assert startable(noted, processes) == startable_line
