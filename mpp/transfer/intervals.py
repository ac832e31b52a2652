"""95 % confidence intervals of probe figures."""

import math
from collections.abc import Sequence

NORMAL = 1.959963984540054  # the normal distribution's 97.5 % point
STUDENT = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)  # fmt: skip  # Student's 97.5 % points for 1..30 degrees of freedom (tables); beyond: NORMAL


def wilson(right: int, total: int) -> tuple[float, float]:
    """The score interval of `right` out of `total` > 0 (Wilson 1927), as shares of 1: the uncertainty from the images alone."""
    share, z2 = right / total, NORMAL**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return 0.0 if right == 0 else middle - half, 1.0 if right == total else middle + half  # exact at the ends, whatever rounding does


def student(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of Student's t interval of the mean; no half-width from a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    factor = STUDENT[count - 2] if count - 2 < len(STUDENT) else NORMAL
    return mean, factor * deviation / math.sqrt(count)
