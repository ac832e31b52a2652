"""The Markdown tables of data_prep.py, from its JSON.

python benchmarks/data_prep_report.py benchmarks/results/DEVICE-data_prep.json
"""

import json
import sys
from pathlib import Path

TITLES = {
    "copy": "Copied: {images:,} photographs",
    "resize": "Shrunk to 256: {images:,} photographs",
    "small": "Copied: {images:,} CIFAR-10 (JPEG) images",
}


def markdown(result: dict) -> str:
    parts = [limits(result["limits"])] if "limits" in result else []
    parts += [
        rates(title.format(**result["tasks"][name]), result[name], result["start_up"]) for name, title in TITLES.items() if name in result
    ]
    parts += [table(result[name]) for name, table in (("verify", verified), ("restart", restarted), ("list", listed)) if name in result]
    return "\n\n".join(parts)


def limits(found: dict) -> str:
    order = ("read", "crc32", "sha256", "write", "read_back", "copy")
    each = ", ".join(f"{name.replace('_', ' ')} {found[name]:,.0f}" for name in order)
    return f"One core of this machine, MB/s: {each}; decoding {found['decode']:,.0f} photographs/s."


def rates(title: str, found: dict, start_up: dict) -> str:
    lines = [
        f"| {title} | images/s, 1 core | 2 cores | MB/s, 1 core | 2 cores | 2 over 1 | make_shards over it, 1 core | 2 cores | start-up, s | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tool in found.items():
        one, two = tool["workers"].get("1"), tool["workers"]["2"]
        cells = [number(case and case["images_per_second"], 0) for case in (one, two)]
        cells += [number(case and case["mb_per_second"], 1) for case in (one, two)]
        cells += [number(tool.get("two_over_one"), 2)] + [number(case and case["ours_over_it"], 2) for case in (one, two)]
        cells += [number(start_up[name]["workers"]["2"]["seconds"], 1), number(max(case["peak_mb"] for case in (one, two) if case), 0)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Written: " + "; ".join(f"{name} {written(tool['written'])}" for name, tool in found.items()) + "."])


def written(found: dict) -> str:
    """What one tool stored, in words; of shrunk images also how."""
    text = f"{found['images']:,} images of {found['bytes'] / 1e6:,.1f} MB, {found['same_sizes_as_ours']:,} of the sizes in ours"
    shrunk = {kind: ", ".join(f"{name} {count:,}" for name, count in sorted(found[kind].items())) for kind in ("sampling", "luma_tables")}
    return text + (f", shrunk ones {shrunk['sampling']}, sum of the luma table {shrunk['luma_tables']}" if found["luma_tables"] else "")


def verified(found: dict) -> str:
    lines = [
        "| read back and checked (start-up included) | images/s, 1 core | 2 cores | MB/s, 1 core | 2 cores | finds a flipped byte | finds a cut shard |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, tool in found.items():
        cells = [number(tool["images_per_second"][workers], 0) for workers in "12"] + [
            number(tool["mb_per_second"][workers], 0) for workers in "12"
        ]
        cells += ["yes" if tool[f"finds_{damage}"] else "no" for damage in ("flipped_byte", "cut_shard")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def restarted(found: dict) -> str:
    lines = [
        "| killed at 90 %, then started again | a whole run, s | the restart, s | images it made | images in the end |",
        "|---|---|---|---|---|",
    ]
    for name, tool in found.items():
        cells = [number(tool["seconds_of_a_whole_run"], 1)]
        if "refused" in tool:
            cells += [f"refused: {tool['refused'][:80]}", "-", "-"]
        else:
            cells += [number(tool["seconds"], 1), f"{tool['images_made_by_the_restart']:,}", f"{tool['images']:,}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def listed(found: list[dict]) -> str:
    lines = ["| images listed and shuffled | seconds | peak MB | order on disk, MB |", "|---|---|---|---|"]
    lines += [f"| {each['items']:,} | {each['seconds']:.1f} | {each['peak_mb']:.0f} | {each['order_mb']:,.0f} |" for each in found]
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
