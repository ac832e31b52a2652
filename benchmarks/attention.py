"""torch's fused attention beside plain matrix products, by sequence length: forward and backward of one ViT block's attention, turn by turn.

    python benchmarks/attention.py [--precision bf16] [--width 384] [--heads 6] [--lengths 17 50 65 197 257 577 1025] [--rounds 5] [--out FILE]

Milliseconds of a batch of about 8,192 tokens; medians over rounds; the rule of system.fused_attention: null (fused_attention_pays in mpp/model/tokens.py) follows from it.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from timm.layers import Attention

from mpp.base.errors import run_program
from mpp.train.run_folder import environment

TOKENS = 8192


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time two ways to compute attention.")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--widths", nargs="+", type=int, default=[192, 384, 768])
    parser.add_argument("--lengths", nargs="+", type=int, default=[17, 50, 65, 128, 197, 257, 401, 577, 1025])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for precision in options.precision:
        for width in options.widths:
            for length in options.lengths:
                rows.append(timed(precision, width, length, options.rounds, device))
                print(
                    "{precision} width {width} length {length:5}  plain {plain:8.2f} ms  fused {fused:8.2f} ms  {ratio:.2f}".format(
                        **rows[-1]
                    ),
                    flush=True,
                )
    if options.out:
        Path(options.out).write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")
    return 0


def timed(precision: str, width: int, length: int, rounds: int, device: torch.device) -> dict:
    batch = max(1, TOKENS // length)
    tokens = torch.randn(batch, length, width, device=device)
    attention = Attention(width, num_heads=width // 64, qkv_bias=True).to(device)
    seconds: dict[bool, list[float]] = {False: [], True: []}

    def take() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            attention(tokens).sum().backward()

    for number in range(rounds + 1):
        for fused, found in seconds.items():
            attention.fused_attn = fused
            began = time.perf_counter()
            for _ in range(3):
                take()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                found.append((time.perf_counter() - began) / 3)
    plain, fused = (1000 * float(np.median(found)) for found in seconds.values())
    return {
        "precision": precision,
        "width": width,
        "length": length,
        "batch": batch,
        "plain": plain,
        "fused": fused,
        "ratio": plain / fused,
    }


if __name__ == "__main__":
    run_program(main)
