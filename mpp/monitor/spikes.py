"""Loss spikes: steps whose loss stands far above its running mean."""

from dataclasses import dataclass

WINDOW = 50  # steps over which mean and variance run (exponentially), and before which nothing is concluded
DEVIATIONS = 6.0  # standard ones above the mean: no noise of a batch
LEAST = 0.05  # of the mean: a loss that hardly varies any more has no spikes either


@dataclass
class Spikes:
    """Seen so far; a resumed run goes on with what stood in its commit."""

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    inside: bool = False  # the last step was part of one

    def see(self, loss: float) -> float | None:
        """The loss of the next step, a finite one -> by how many deviations it stands above the mean, where a spike begins; else None."""
        deviation, above = self.variance**0.5, loss - self.mean
        high = self.steps >= WINDOW and above > max(DEVIATIONS * deviation, LEAST * abs(self.mean))
        begins, self.inside = high and not self.inside, high
        self.count += begins
        weight = max(1 / (self.steps + 1), 1 / WINDOW)  # the plain mean at first
        taken = (
            min(above, DEVIATIONS * deviation) if high else above
        )  # so that a spike hides none behind it, and a level that stays is learned
        self.mean += weight * taken
        self.variance = (1 - weight) * (self.variance + weight * taken * taken)
        self.steps += 1
        return above / max(deviation, 1e-12) if begins else None
