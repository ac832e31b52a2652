"""The Markdown tables of stores.py, from its JSON.

python benchmarks/stores_report.py benchmarks/results/DEVICE-stores.json
"""

import json
import sys
from pathlib import Path


def markdown(result: dict) -> str:
    parts = [about(result)]
    if "epoch" in result:
        parts.append(table(result["epoch"], "images/s", fast))
    if "paced" in result:
        parts.append(table(result["paced"], "share of waiting, %", paced))
    if "memory" in result or "resume" in result:
        parts.append(rest(result))
    if result["left_out"]:
        parts.append("Left out: " + "; ".join(f"{name} ({reason})" for name, reason in result["left_out"].items()) + ".")
    return "\n\n".join(parts)


def about(result: dict) -> str:
    known, asked = result["set"], result["settings"]
    low, high = (size / 1e6 for size in known["shard_bytes"])
    return (
        f"{known['entries']:,} images of {known['image_bytes'] / known['entries'] / 1e3:.0f} kB in {known['shards']} shards of {low:.1f} to "
        f"{high:.1f} MB; {asked['workers']} loader process(es), {asked['latency_ms']:g} ms before each answer, medians of {asked['rounds']} "
        f"rounds; a step of the second table takes {asked['step_ms']:g} ms."
    )


def table(rates: dict, what: str, cells) -> str:
    titles = [f"{title} at {rate} MB/s" for rate in rates for title in cells(None)]
    lines = [f"| {what} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name in dict.fromkeys(name for found in rates.values() for name in found):
        row = [cell for found in rates.values() for cell in (cells(found[name]) if name in found else ["-"] * len(cells(None)))]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def fast(case: dict | None) -> list[str]:
    if case is None:
        return ["images/s", "over the local disk", "first batch, s", "images/CPU-s", "bytes / set"]
    ratio, spent = case.get("over_local"), case["images_per_cpu_second"]
    return [
        number(case["images_per_second"], 0),
        number(ratio, 2),
        number(case["first_batch"], 1),
        number(spent, 0),
        number(case["bytes_over_set"], 2),
    ]


def paced(case: dict | None) -> list[str]:
    if case is None:
        return ["waiting, %", "longest, s", "first batch, s"]
    return [number(100 * case["waiting"], 1), number(case["longest_wait"], 1), number(case["first_batch"], 1)]


def rest(result: dict) -> str:
    memory, resumed = result.get("memory", {}), result.get("resume", {})
    lines = [
        f"| | peak MB, epoch 1 | 2 | 3 | resident, epoch 3 | resumed at 90 %, s (at {result.get('resume_rate', 0):g} MB/s) | MB fetched by then |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys([*memory, *resumed]):
        held = memory.get(name, {"proportional_mb": [None] * 3, "resident_mb": [None] * 3})
        cells = [number(peak, 0) for peak in (*held["proportional_mb"], held["resident_mb"][-1])]
        cells += [number(resumed.get(name, {}).get(what), digits) for what, digits in (("seconds", 1), ("mb", 0))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
