"""The Markdown tables of loader.py, from its JSON.

python benchmarks/loader_report.py benchmarks/results/DEVICE-loader.json
"""

import json
import sys
from pathlib import Path

TITLES = {"photos": "Photographs, 224 px", "photos256": "Photographs with a short side of 256, 224 px", "cifar": "CIFAR-10 (JPEG), 32 px"}
FLAT = 1.05  # the third epoch's peak over the first's, at most


def markdown(result: dict) -> str:
    parts = [rates(title, result["rate"][name]) for name, title in TITLES.items() if name in result.get("rate", {})]
    if any(part in result for part in ("memory", "first", "resume")):
        parts.append(rest(result))
    if result["left_out"]:
        parts.append("Left out: " + "; ".join(f"{name} ({reason})" for name, reason in result["left_out"].items()) + ".")
    return "\n\n".join(parts)


def rates(title: str, found: dict) -> str:
    lines = [
        f"| {title} | images/CPU-s, 1 worker | 2 workers | images/s, 2 workers | over ImageFolder, 1 worker | 2 workers | mpp over it, 1 worker | 2 workers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tool in found.items():
        one, two = tool["1"], tool["2"]
        cells = [number(value, 0) for value in (one["images_per_cpu_second"], two["images_per_cpu_second"], two["images_per_second"])]
        cells += [number(case.get(ratio), 2) for ratio in ("over_imagefolder", "mpp_over_it") for case in (one, two)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Pixels, mean / deviation / step to the next: " + "; ".join(map(looks, found, found.values())) + "."])


def looks(name: str, tool: dict) -> str:
    """The mean over both numbers of workers: what says that the tools deliver the same."""
    values = [(tool["1"]["pixels"][what] + tool["2"]["pixels"][what]) / 2 for what in ("mean", "std", "step")]
    return f"{name} " + " / ".join(number(value, 1) for value in values)


def rest(result: dict) -> str:
    memory, first, resume = (result.get(part, {}) for part in ("memory", "first", "resume"))
    lines = [
        "| 2 workers | peak MB, epoch 1 | 2 | 3 | flat | first batch, s from start | s from asked | resumed at 10 %, s | at 90 %, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys([*memory, *first, *resume]))
    for name in names:
        peaks = memory.get(name, {}).get("peak_mb", [None] * 3)
        cells = [number(peak, 0) for peak in peaks]
        cells.append("-" if name not in memory else "yes" if memory[name]["last_over_first"] <= FLAT else "no")
        cells += [number(first.get(name, {}).get(what), 2) for what in ("from_start", "from_asked")]
        cells += [number(resume.get(name, {}).get(share), 2) for share in ("0.1", "0.9")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
