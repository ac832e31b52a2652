"""Pages of whole runs: their figures are those of the run folder, they need no network, and they can be read in a browser of any width, by day and by night."""

import base64
import html
import json
import os
import re
import shutil
import subprocess

import pytest

from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, start, succeed

RUN = ["evaluate={every_steps: 2, images: 64}", "log={every_steps: 2, holdout_every_steps: 4, pictures_every_steps: 4, pictures: 2}"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOK = """<!doctype html><iframe id="page" src="{page}" style="width:{width}px;height:3000px;border:0"></iframe><pre id="found"></pre><script>
document.getElementById("page").onload = () => {{
  const page = document.getElementById("page").contentDocument, found = {{}}, root = page.documentElement;
  found.pictures = [...page.images].map(each => each.complete && each.naturalWidth > 0);
  found.charts = page.querySelectorAll("svg").length;
  found.overflow = root.scrollWidth - root.clientWidth;
  found.small = [...page.querySelectorAll("svg text, p, td, th, figcaption")].map(each => each.getBoundingClientRect().height).filter(each => each && each < 8).length;
  found.paper = getComputedStyle(page.body).backgroundColor;
  found.ink = getComputedStyle(page.body).color;
  found.axis = getComputedStyle(page.querySelector("svg text")).fill;
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


def report(*words, cwd=ROOT):
    return run_forked([str(ROOT / "mpp/report.py"), *map(str, words)], cwd=cwd, env=os.environ)


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Two pretrainings of different rates, both probed."""
    place = tmp_path_factory.mktemp("reported")
    for name, rate in (("one", "1e-3"), ("two", "3e-3")):
        succeed(place / name, shards, *RUN, f"optim.base_lr={rate}")
        words = [f"encoder={place / name}", f"train={shards}", "rank_samples=16", "random_inits=2", "linear.curve=false"]
        (probed,) = start(words, 1, ["mpp/linear_probe.py"])
        assert probed.communicate(timeout=300) and probed.returncode == 0
    return place


def page(file):
    """The words of a page, without its drawings."""
    text = file.read_text()
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(svg|style|script).*?</\\1>".replace("\\\\", "\\"), " ", text, flags=re.S)))


def test_the_figures_of_a_page_are_those_of_the_run_folder(runs, shards):
    told = report(runs / "one")
    assert told.returncode == 0 and told.stdout.startswith(f"report {runs / 'one' / 'report.html'} (")
    words, source = page(runs / "one" / "report.html"), (runs / "one" / "report.html").read_text()
    verdict = json.loads((runs / "one" / "verdict.json").read_text())
    assert verdict["words"][1:] in words
    rows = [json.loads(line) for line in (runs / "one" / "metrics.jsonl").read_text().splitlines()]
    linear = [row["features/linear"] for row in rows if "features/linear" in row]
    assert f"{linear[-1]:.1%} of held-out images their class at 96 samples; {linear[0]:.1%} before training" in " ".join(words.split())
    (results,) = (json.loads(file.read_text()) for file in (runs / "one").rglob("results.json"))
    for name, row in results["rows"].items():
        for probe in ("linear", "knn", "logistic"):
            if figure := row.get(probe):
                assert f"{100 * figure['accuracy']:.2f} ±" in words, (name, probe)
    assert all(each["words"] in words for each in results["verdict"])
    manifest = json.loads((shards / "manifest.json").read_text())
    assert f"{manifest['samples']:,} in {len(manifest['shards'])} shards" in words and "2: dark, light" in words
    assert "optim.base_lr" in words and "0.001" in words and "mpp/pretrain.py" in words
    embedded = {base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]+)"', source)}
    pictures = sorted((runs / "one" / "pictures").glob("*-reconstruction.png"))
    assert {pictures[0].read_bytes(), pictures[-1].read_bytes()} <= embedded


def test_a_page_asks_for_nothing_from_elsewhere(runs):
    report(runs / "one")
    source = (runs / "one" / "report.html").read_text()
    addresses = re.findall(r'(?:src|href|xlink:href)="([^"]+)"', source) + re.findall(r"url\(([^)]+)\)", source)
    assert addresses and all(each.startswith(("data:", "#")) for each in addresses)
    assert "<script" not in source and "@import" not in source


def test_several_runs_stand_beside_each_other(runs, tmp_path):
    told = report(runs / "one", runs / "two", cwd=tmp_path)
    assert told.returncode == 0 and (tmp_path / "comparison.html").exists(), told.stderr
    words = " ".join(page(tmp_path / "comparison.html").split())
    assert "optim.base_lr 0.001 0.003" in words and "run_dir" not in words
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        skill = [row["holdout/skill"] for row in rows if "holdout/skill" in row][-1]
        assert f"{skill:.4g}" in words
    assert f"{runs / 'one'} less ..." in words and "95 % interval" in words  # paired on the same images
    one, two = ((tmp_path / "comparison.html").read_text().count(f">{name}<") for name in ("one", "two"))
    assert one >= 6 <= two  # in each legend


def test_a_run_that_was_stopped_and_one_that_has_only_begun_have_a_page(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "part")
    for left in ("verdict.json", "transfer", "encoder", "pictures", "baseline.json", "environment.json"):
        shutil.rmtree(tmp_path / "part" / left, ignore_errors=True)
        (tmp_path / "part" / left).unlink(missing_ok=True)
    lines = (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "part" / "metrics.jsonl").write_text("\n".join(lines[:5]) + '\n{"samples": 9')
    told = report(tmp_path / "part")
    assert told.returncode == 0, told.stderr
    words = page(tmp_path / "part" / "report.html")
    assert "of 96 samples" in words and "has not come to its end" in words and "Not measured yet" in words
    (tmp_path / "part" / "metrics.jsonl").unlink()
    assert report(tmp_path / "part").returncode == 0
    assert "nothing is measured yet" in page(tmp_path / "part" / "report.html")


def test_damaged_results_are_named_and_not_left_out(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "part")
    (file,) = (tmp_path / "part").rglob("results.json")
    file.write_text(file.read_text()[:500])
    told = report(tmp_path / "part")
    assert told.returncode == 2 and f"{file} cannot be read" in told.stderr and len(told.stderr.strip().splitlines()) == 1


def test_names_from_outside_are_shown_and_never_obeyed(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "<b>bold<script>alert(1)<&script>")
    (folder,) = tmp_path.iterdir()
    assert report(folder).returncode == 0
    source = (folder / "report.html").read_text()
    assert "<script" not in source and "&lt;b&gt;bold&lt;script&gt;" in source


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is no run: it has no config.yaml"),
        (["{one}", "{one}"], "names a run twice"),
        (["{one}", "--out", "no/such/folder/page.html"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(runs, words, message):
    told = report(*[word.replace("{one}", str(runs / "one")) for word in words])
    assert told.returncode == 2 and message in told.stderr and len(told.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_it_is_readable_in_a_browser(runs, tmp_path, kind, width, dark):
    chosen = [runs / "one"] if kind == "report" else [runs / "one", runs / "two"]
    assert report(*chosen, "--out", tmp_path / "page.html").returncode == 0
    (tmp_path / "look.html").write_text(LOOK.format(page=tmp_path / "page.html", width=width))
    words = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-web-security",
        "--enable-logging=stderr",
        "--window-size=1400,900",
    ]
    words += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=10000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", f"file://{tmp_path / 'look.html'}"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr, [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.+?)</pre>', shown.stdout)[1]))
    assert found["pictures"] and all(found["pictures"]) and found["charts"] >= 8
    assert found["overflow"] <= 0  # nothing but tables and pictures, in boxes of their own, is wider than the page
    assert found["small"] == 0  # letters lower than eight pixels
    brightness = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3])) / 765
    paper, ink, axis = (brightness(found[name]) for name in ("paper", "ink", "axis"))
    assert (paper < 0.2 < 0.7 < ink) if dark else (ink < 0.2 < 0.9 < paper)
    assert abs(axis - paper) > 0.6
