"""The Markdown tables of stores.py, from its JSON.

python benchmarks/stores_report.py benchmarks/results/DEVICE-stores.json
"""

import json
import sys
from pathlib import Path


def markdown(result: dict) -> str:
    rates = dict.fromkeys([*result.get("epoch", {}), *result.get("paced", {})])
    parts = [about(result), *(table(result, rate) for rate in rates)]
    if "memory" in result or "resume" in result:
        parts.append(rest(result))
    if result["left_out"]:
        parts.append("Left out: " + "; ".join(f"{name} ({reason})" for name, reason in result["left_out"].items()) + ".")
    return "\n\n".join(parts)


def about(result: dict) -> str:
    known, asked = result["set"], next(iter(result["settings"].values()))
    low, high = (size / 1e6 for size in known["shard_bytes"])
    return (
        f"{known['entries']:,} images of {mean(result) / 1e3:.0f} kB in {known['shards']} shards of {low:.1f} to {high:.1f} MB; "
        f"{asked['workers']} loader process(es), {asked['latency_ms']:g} ms before each answer; medians of "
        + ", ".join(f"{each['rounds']} rounds ({part})" for part, each in result["settings"].items() if part != "memory")
        + "."
    )


def mean(result: dict) -> float:
    return result["set"]["image_bytes"] / result["set"]["entries"]


def table(result: dict, rate: str) -> str:
    fast, paced = (result.get(part, {}).get(rate, {}) for part in ("epoch", "paced"))
    step_ms = result["settings"].get("paced", {}).get("step_ms", 0)
    lines = [
        f"| {rate} MB/s, which allow {float(rate) * 1e6 / mean(result):,.0f} images/s | images/s | behind the first batch | over the local disk | "
        f"first batch, s | images/CPU-s | waiting at steps of {step_ms:g} ms, % | of it behind the first batch | longest wait there, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    digits = {"with_start": 0, "images_per_second": 0, "over_local": 2, "first_batch": 1, "images_per_cpu_second": 0}
    for name in dict.fromkeys([*fast, *paced]):
        cells = [number(fast.get(name, {}).get(what), places) for what, places in digits.items()]
        slow = paced.get(name, {})
        cells += [number(share and 100 * share, 1) for share in (slow.get("waiting"), slow.get("waiting_behind_first"))]
        cells.append(number(slow.get("longest_wait"), 1))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
