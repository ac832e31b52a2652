"""The README and the pages of docs/ say what is there: their commands parse, their files, links, keys, targets and messages are real."""

import itertools
import re
import shlex
import shutil
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from pydantic import BaseModel

import mpp
from mpp import doctor, export, finetune, fit_codebook, linear_probe, loader_speed, pretrain, results
from mpp import inside as inside_program
from mpp import replay as replay_program
from mpp.config.codebook import CodebookConfig
from mpp.config.finetune import FinetuneConfig
from mpp.config.inside import InsideConfig
from mpp.config.pretrain import PretrainConfig
from mpp.config.probe import ProbeConfig
from mpp.config.replay import ReplayConfig
from mpp.config.schema import load
from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from mpp.monitor.figures import FIGURES

ROOT = Path(__file__).parents[1]
README, HOUSE, TROUBLE = ROOT / "README.md", ROOT / "docs" / "house.md", ROOT / "docs" / "troubleshooting.md"
PAGES = {path: path.read_text() for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
CONFIGS = (PretrainConfig, FinetuneConfig, ProbeConfig, CodebookConfig, InsideConfig, ReplayConfig)
COMMENTS = [
    line.lstrip("# ").strip()
    for path in [*ROOT.glob("jobs/**/*"), *ROOT.glob("configs/*.yaml")]
    if path.is_file()
    for line in path.read_text().splitlines()
    if line.startswith("#")
]
LAUNCHERS = ("deepspeed", "python", "torchrun", "sbatch")
# What the pages and the heads of jobs and configs tell one to type: the words after a program, whatever launcher stands before it.
NEEDS_WORDS = re.compile("=| --|results.py")  # what else names a program is prose


def without_fences(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)


def prose_lines(page: str) -> list[str]:
    return [line for line in without_fences(page).splitlines() if not line.startswith("    ")]


def spans(page: str) -> list[str]:
    """What stands in `backticks`, each in one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", "\n".join(prose_lines(page)))]


SPANS = [span for page in PAGES.values() for span in spans(page)]
CODE = [line.strip() for page in PAGES.values() for line in page.splitlines() if line.startswith("    ")] + SPANS


def commands(program: str) -> list[str]:
    lines = [re.sub(r"^\w+=\$\((.*)\)$", r"\1", re.split(r"\s{2,}#", line)[0]) for line in CODE + COMMENTS]
    return sorted({line for line in lines if program in line.split() and line.split()[0] in LAUNCHERS and NEEDS_WORDS.search(line)})


def words_of(command: str, program: str) -> list[str]:
    words = shlex.split(command.replace(" ...", "").replace(" [key=value", ""))
    return words[words.index(program) + 1 :]


def test_the_files_that_the_code_speaks_of_are_there():
    sources = {
        path: path.read_text()
        for folder in ("mpp", "data_prep", "benchmarks", "configs", "jobs")
        for path in ROOT.glob(f"{folder}/**/*")
        if path.suffix in (".py", ".yaml", ".sh")
    }
    folders = "|".join(path.name for path in (ROOT / "mpp").iterdir() if path.is_dir())
    named = re.compile(rf"(?<![\w/.-])((?:mpp|docs|tests|benchmarks|data_prep|{folders})/[\w/-]+\.(?:py|md|c))\b")
    gone = {
        (str(path.relative_to(ROOT)), name)
        for path, text in sources.items()
        for name in named.findall(text)
        if not (ROOT / name).exists() and not (ROOT / "mpp" / name).exists()
    }
    assert not gone


@pytest.mark.parametrize("command", commands("mpp/pretrain.py"))
def test_every_pretraining_command_has_a_config_that_loads(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert pretrain.main([*words_of(command, "mpp/pretrain.py"), "--print-config"]) == 0
    assert "global_batch" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("mpp/inside.py"))
def test_every_command_to_look_inside_parses_and_has_all_it_needs(command):
    assert inside_program.parse(words_of(command, "mpp/inside.py")) is not None


@pytest.mark.parametrize("command", commands("mpp/replay.py"))
def test_every_command_to_replay_parses_and_names_a_dump(command):
    asked = replay_program.parse(words_of(command, "mpp/replay.py"))
    assert asked is not None and asked.dump.startswith(("RUN/flight/rank", "RUN/flight/skipped-"))


@pytest.mark.parametrize("command", commands("mpp/finetune.py"))
def test_every_fine_tuning_command_has_a_config_that_loads_and_all_it_needs(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert finetune.main([*words_of(command, "mpp/finetune.py"), "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["encoder"] and shown["train"]


@pytest.mark.parametrize("command", commands("mpp/linear_probe.py"))
def test_every_probe_command_parses_and_has_all_it_needs(command, capsys):
    assert linear_probe.main([*words_of(command, "mpp/linear_probe.py"), "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["encoder"] and shown["train"]


@pytest.mark.parametrize("command", commands("mpp/loader_speed.py"))
def test_every_loader_speed_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = loader_speed.parse(words_of(command, "mpp/loader_speed.py"))
    assert load(PretrainConfig, arguments.config, arguments.words).data.shards == "shards/train"


@pytest.mark.parametrize("command", commands("mpp/doctor.py"))
def test_every_command_of_the_doctor_parses_and_has_a_config_that_loads(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = doctor.parse(words_of(command, "mpp/doctor.py"))
    config = load(doctor.schema_of(arguments), arguments.config, arguments.words)
    assert config.run_dir == ("runs/b16-ft" if isinstance(config, FinetuneConfig) else "runs/b16")


@pytest.mark.parametrize("command", commands("mpp/fit_codebook.py"))
def test_every_fitting_command_has_a_config_that_loads_and_a_place(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = fit_codebook.config_of(fit_codebook.parse(words_of(command, "mpp/fit_codebook.py")))
    assert config.out != "codebook.safetensors" and config.data.shards == "SHARDS/train"


@pytest.mark.parametrize("command", commands("mpp/export.py"))
def test_every_export_command_parses(command):
    arguments = export.parse(words_of(command, "mpp/export.py"))
    assert bool(arguments.check) != bool(arguments.out)


@pytest.mark.parametrize("command", commands("mpp/results.py"))
def test_every_results_command_parses(command):
    assert results.parse(words_of(command, "mpp/results.py")).folders


def test_there_are_commands_to_check():
    least = {"pretrain": 5, "linear_probe": 3, "finetune": 5, "loader_speed": 1, "export": 2, "results": 1, "fit_codebook": 2}
    assert all(len(commands(f"mpp/{program}.py")) >= count for program, count in least.items())
    batches = [
        line for program in ("pretrain", "linear_probe", "finetune") for line in commands(f"mpp/{program}.py") if "run.sbatch" in line
    ]
    assert len(batches) >= 5 and all((ROOT / word).exists() for line in batches for word in line.split() if word.endswith(".sbatch"))


def models_in(annotation: typing.Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold, alone or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inside in typing.get_args(annotation):
        yield from models_in(inside)


def keys() -> tuple[set[str], dict[str, set[str]]]:
    """Of all programs: their keys, and the keys of each section."""
    top: set[str] = set()
    sections: dict[str, set[str]] = {}
    for schema in CONFIGS:
        for name, field in schema.model_fields.items():
            top.add(name)
            for section in models_in(field.annotation):
                sections.setdefault(name, set()).update(section.model_fields)
    return top, sections


def test_every_override_shown_in_the_text_is_a_known_key():
    top, sections = keys()
    dotted = re.compile(rf"(?<![\w./])({'|'.join(sections)})\.([a-z_0-9]+)")
    found = [(span, *pair) for span in SPANS for pair in dotted.findall(span)]
    assert len(found) >= 40
    for span, section, key in found:
        assert key in sections[section], span
    for span in SPANS:
        for key in re.findall(r"^'?([a-z_]+)=", span):
            assert key in top | {"key"}, span  # key=value: any


def test_every_section_shown_as_yaml_is_one_that_loads():
    shown = [span for span in SPANS if re.fullmatch(r"[a-z]+: \{.*\}", span) and "..." not in span]
    assert len(shown) >= 2
    for span in shown:
        section, value = span.split(": ", 1)
        assert load(PretrainConfig, None, [f"{section}={value}"])


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_link_leads_to_a_file_and_to_a_heading_of_it():
    anchors = {path: {slug(line) for line in re.findall(r"^#+ (.*)$", without_fences(page), re.M)} for path, page in PAGES.items()}
    for path, page in PAGES.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", page):
            if link.startswith("https://"):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.name}: {link}"
            assert not anchor or anchor in anchors[target], f"{path.name}: {link}"


def test_every_page_is_reached_from_the_readme_and_begins_with_what_it_answers():
    for path, page in PAGES.items():
        if path != README:
            assert f"](docs/{path.name})" in PAGES[README], path
            assert page.splitlines()[2].startswith("This page answers:"), path


def test_every_file_named_exists():
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("[!.]*/**/*") if path.is_file()]
    files += [path.name for path in ROOT.iterdir()]
    for name in set(re.findall(r"(?<![\w./*-])(?:\w+/)*\w+\.py\b", TEXT)):
        assert any(file == name or file.endswith(f"/{name}") for file in files), name
    for name in set(
        re.findall(r"(?<![\w./-])(?:mpp|data_prep|tests|benchmarks|configs|jobs|docs)/[\w./-]*\.(?:ya?ml|sbatch|json|png|md)\b", TEXT)
    ):
        assert "DEVICE" in name or (ROOT / name).exists(), name  # DEVICE: a file that the command makes


def test_every_module_and_every_config_is_on_the_map():
    file_map = PAGES[HOUSE].split("## File map")[1].split("\n## ")[0]
    for path in [*ROOT.glob("mpp/**/*.py"), *ROOT.glob("data_prep/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        assert path.name == "__init__.py" or re.search(rf"\b{path.stem}\b", file_map), path
    for config in ROOT.glob("configs/*.yaml"):
        assert config.stem in PAGES[README], config


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        word
        for line in CODE
        if line.startswith("make ")
        for word in re.split(r"\s{2,}#", line)[0].split()[1:]
        if "=" not in word and word != "..."
    }
    assert len(named) >= 3 and named <= targets


@pytest.mark.parametrize(
    "target, programs", [("lint", ["ruff", "ruff", "mypy", "lint-imports"]), ("unit", ["python"]), ("format", ["ruff", "ruff"])]
)
def test_the_folder_of_the_repository_may_have_a_blank_in_its_name(target, programs, tmp_path):
    """With an environment that is set up, of programs that note their names."""
    folder = tmp_path / "a folder"
    for file in ("pyproject.toml", "constraints.txt", "mpp/data/_jpeg.c", "Makefile"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    (folder / ".venv/bin").mkdir(parents=True)
    for name in set(programs):
        program = folder / ".venv/bin" / name
        program.write_text(f"#!/bin/sh\necho {name} >> {shlex.quote(str(tmp_path / 'ran'))}\n")
        program.chmod(0o755)
    (folder / ".venv/.ready").touch()
    done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").read_text().split() == programs


def test_every_message_of_the_troubleshooting_page_is_one_that_the_programs_give():
    """In the page "…" stands for what differs; in the source a message may be cut into several literals."""
    source = (ROOT / "Makefile").read_text()
    for path in [*ROOT.glob("mpp/**/*.py"), *ROOT.glob("data_prep/**/*.py")]:
        source += re.sub(r'"\s*\n\s*f?"', "", path.read_text())
    symptoms = re.findall(r"^\* \*\*(.+?)\*\*", re.sub(r"\n  ", " ", PAGES[TROUBLE]), re.M)
    assert len(symptoms) >= 30
    for symptom in symptoms:
        for message in re.findall(r"`([^`]+)`", symptom):
            for part in message.split("…"):
                assert part.strip() in source, message


def test_the_page_of_figures_has_the_rows_of_the_table_in_its_order():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGES[ROOT / "docs" / "metrics.md"].splitlines()
        if re.match(r"\| [a-z]+/[a-z_*/]+ \|", line)
    ]
    by = {("pretraining",): "P", ("fine-tuning",): "F", ("pretraining", "fine-tuning"): "P F"}
    assert rows == [[name, each.title, each.unit, each.better, by[each.by], each.meaning, each.when] for name, each in FIGURES.items()]


def test_the_python_snippet_gives_the_features_of_an_encoder(tmp_path, monkeypatch):
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    encoder = build_encoder(model, 5).vit
    write_encoder(tmp_path / "runs" / "b16" / "encoder", encoder.state_dict(), model, (0.5,) * 3, (0.5,) * 3, "tiny")
    (tmp_path / "photos").mkdir()
    for name, turned in (("one", 0), ("two", 90)):
        Image.linear_gradient("L").rotate(turned).resize((24, 20)).save(tmp_path / "photos" / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", PAGES[README], re.M | re.S)
    exec(snippet, found := {})
    assert found["everything"].values.shape == (2, 32) and found["everything"].names == ["one.jpg", "two.jpg"]
    assert np.allclose(found["everything"].values[0], found["feature"][0], atol=1e-5)
    of_timm = timm.create_model("local-dir:runs/b16/encoder", pretrained=True)
    assert all(weight.equal(encoder.state_dict()[name]) for name, weight in of_timm.state_dict().items() if not name.startswith("head"))
    image = found["encoder"].preprocess("photos/one.jpg")
    assert torch.allclose(of_timm.forward_features(image[None])[:, 1:].mean(dim=1), found["feature"], atol=1e-5)


def test_the_readme_is_short_and_prose_is_wrapped():
    assert len(PAGES[README].splitlines()) <= 150
    for path, page in PAGES.items():
        for line in prose_lines(page):
            assert len(line) <= 120 or line.startswith("|"), f"{path.name}: {line}"


def test_no_command_follows_a_list_where_markdown_would_take_it_for_its_last_item():
    for path, page in PAGES.items():
        blocks = re.split(r"\n\n+", without_fences(page))
        for before, block in itertools.pairwise(blocks):
            assert not (block.startswith("    ") and re.match(r"(\* |- |\d+\. )", before)), f"{path.name}: {block}"


def test_what_the_code_says_of_a_page_is_there():
    parts = ("mpp/**/*.py", "data_prep/**/*.py", "benchmarks/**/*.py", "tests/**/*.py", "configs/*.yaml", "jobs/**/*", "*.txt", "*.toml")
    headings = re.findall(r"^#+ (.*)$", TEXT, re.M)
    for path in (path for part in parts for path in ROOT.glob(part) if path.is_file() and path != Path(__file__)):
        text = path.read_text()
        for page in re.findall(r"docs/[a-z]+\.md", text):
            assert (ROOT / page).exists(), f"{path}: {page}"
        for heading in re.findall(r'(?:README|\.md), "([^"]+)"', text):
            assert heading in headings, f"{path}: {heading}"


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mpp.__version__


def test_what_lies_beside_the_pages_is_small():
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "docs").rglob("*"))


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", TEXT)
