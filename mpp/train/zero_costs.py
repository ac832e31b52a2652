"""What ZeRO's stages hold on each process and send between processes, by arithmetic; counted on real processes in tests/pipeline/test_zero_costs.py.

Letters: P trained parameters, W processes, A micro-batches a step.  Bytes; parameters, gradients and moments are float32.
AdamW has two moments; SGD one, its momentum, or none.
"""

from dataclasses import dataclass

from mpp.train.gradient_exchange import BUCKET_BYTES, LEAST_BUCKETS

FLOAT = 4
STAGES = (0, 1, 2, 3)
PERSISTENT = 100_000  # elements up to which ZeRO 3 leaves a parameter on all processes (DeepSpeed's stage3_param_persistence_threshold)
LIVE = 1_000_000_000  # parameters that ZeRO 3 keeps gathered from the forward to the backward pass (stage3_max_live_parameters)


@dataclass(frozen=True)
class Parameters:
    trained: int  # P
    persistent: int = 0  # those of P in parameters of at most PERSISTENT elements
    beside: int = 0  # what every process holds whole whatever the stage: frozen parameters, a teacher, an average
    moments: int = 2  # of the optimiser, for each of P

    @property
    def large(self) -> int:
        return self.trained - self.persistent


@dataclass(frozen=True)
class Sent:
    """One collective of a step, or several of the same kind."""

    kind: str  # all_reduce, reduce_scatter or all_gather
    size: int  # bytes of the whole tensor, all of a step together

    def by_each(self, processes: int) -> float:
        """Bytes that each process sends: of a ring, (W - 1) / W of the tensor once, or, for an all-reduce, twice."""
        return (2 if self.kind == "all_reduce" else 1) * self.size * (processes - 1) / processes


def sent(parameters: Parameters, stage: int, accumulation: int, gradient_bytes: int = FLOAT) -> list[Sent]:
    """The large collectives of an optimiser step; a few numbers (norms, what the ranks agree on) are left out.  gradient_bytes: 2 for bf16."""
    gradients, weights = gradient_bytes * parameters.trained, FLOAT * parameters.trained
    if stage == 0:
        return [Sent("all_reduce", gradients)]
    if stage == 1:  # DeepSpeed reduces to all, and uses a part
        return [Sent("all_reduce", gradients), Sent("all_gather", weights)]
    if stage == 2:
        return [Sent("all_reduce", accumulation * gradients), Sent("all_gather", weights)]
    passes = 1 if parameters.large <= LIVE else 2  # forward, and again backward
    gathered = FLOAT * (passes * accumulation * parameters.large + parameters.persistent)
    return [Sent("reduce_scatter", accumulation * gradients), Sent("all_gather", gathered)]


def held_between_steps(parameters: Parameters, stage: int, processes: int) -> float:
    """Parameters, moments, and ZeRO's copies and buffers."""
    whole, share = FLOAT * parameters.trained, FLOAT * parameters.trained / processes
    beside, moments = FLOAT * parameters.beside, parameters.moments
    if stage == 0 or (processes == 1 and stage < 3):
        return beside + (1 + moments if stage == 0 else 2 + moments) * whole
    if stage < 3:
        return beside + whole + (1 + moments) * share
    return beside + (3 + moments) * share + whole  # share: parameters, their float32 copies, gradients, moments; whole: the bucket


def held_at_most(parameters: Parameters, stage: int, processes: int, step_bytes: int, accumulation: int = 1) -> float:
    """In a step.  step_bytes: of its tensors on one process, gradients included (monitor/memory.py).

    Beside them lie a bucket of gradients (stages 0 and 2) or gathered parameters (3), and what stages 2 and 3 have summed so far.  Stage 1 sums behind the
    backward pass, when activations are gone, and holds gradients twice then.
    """
    whole = FLOAT * parameters.trained
    between = held_between_steps(parameters, stage, processes)
    if stage == 0:
        return between + step_bytes + (min(BUCKET_BYTES, whole / LEAST_BUCKETS) if processes > 1 else 0)
    if stage == 1:
        return between + max(step_bytes, 2 * whole)
    summed = whole / processes if accumulation > 1 else 0
    return between + summed + step_bytes + whole
