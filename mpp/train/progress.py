"""What every training loop says to people."""

from collections.abc import Mapping
from typing import Any


def clock(seconds: float) -> str:
    """1:02:03 for 3,723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def signed(figure: float | None) -> str:
    """ "+0.1234"; "none" where the figure is not defined."""
    return "none" if figure is None else f"{figure:+.4f}"


def progress_line(step: int, steps: int, words: str, values: Mapping[str, Any], seconds_left: float) -> str:
    """words: what the program measured."""
    norm = "none" if values["optim/gradient_norm"] is None else f"{values['optim/gradient_norm']:.3f}"  # of a step that was passed over
    skipped = f"  skipped {values['train/skipped_steps']:.0f}" if values.get("train/skipped_steps") else ""
    mfu = f"  mfu {values['speed/mfu']:.0%}" if "speed/mfu" in values else ""
    return (
        f"step {step}/{steps}  {words}  lr {values['optim/learning_rate']:.2e}  norm {norm}{skipped}  "
        f"{values['speed/samples_per_second']:.0f} img/s{mfu}  wait {values['speed/wait_share']:.0%}  "
        f"peak {values['speed/peak_gb']:.2g} GB  eta {clock(seconds_left)}"
    )
