"""At ZeRO 0: gradients averaged over all processes while the backward pass is still busy with earlier layers, as torch's DistributedDataParallel does.

Parameters lie in buckets, the last layers first.  Once a bucket has all its gradients its average is under way, and the backward pass goes on; what is
left to wait for is the last bucket.  (DeepSpeed sums behind the backward pass at this stage.  DistributedDataParallel would put "module." before
all names, and it needs to know beforehand whether a step leaves parameters unused.)
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20  # of float32 gradients: large enough for a network's full rate (DistributedDataParallel's default)
LEAST_BUCKETS = 4  # of a model whose gradients are fewer bytes than so many buckets


class GradientExchange:
    """Between `expect` and `finish` each gradient that the backward pass has ready is on its way; behind `finish` it is the average."""

    def __init__(self, parameters: Sequence[nn.Parameter], processes: int, sent_as: torch.dtype):
        """parameters: those that are trained, in the model's order.  sent_as: of the sums, float32 or bfloat16."""
        self._processes, self._sent_as, self._expecting = processes, sent_as, False
        self.buckets = in_buckets(list(reversed(parameters)))
        place = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._ready(number))
            for parameter, number in place.items()
        ]
        self._missing: list[int] = []
        self._under_way: list[tuple[Tensor, dist.Work]] = []

    def expect(self) -> None:
        """The backward pass that follows is the step's last."""
        self._missing = [len(bucket) for bucket in self.buckets]
        self._under_way, self._expecting = [], True

    def _ready(self, number: int) -> None:
        if not self._expecting:
            return
        self._missing[number] -= 1
        while len(self._under_way) < len(self.buckets) and not self._missing[len(self._under_way)]:
            self._send()  # in one order on all processes, whatever order their gradients come in

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self.buckets[len(self._under_way)]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).to(self._sent_as)
        for parameter in bucket:
            parameter.grad = None  # a view of the average, once that is there; until then memory for nothing
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._under_way.append((flat, work))

    @torch.no_grad()
    def finish(self) -> None:
        """Waits (on a GPU: its stream does).  A parameter that the step did not use on any process has a gradient of zero."""
        while len(self._under_way) < len(self.buckets):
            self._send()
        for bucket, (flat, work) in zip(self.buckets, self._under_way, strict=True):
            work.wait()
            pieces = flat.mul_(1 / self._processes).float().split([parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)
        self._under_way, self._expecting = [], False

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def in_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Neighbours together, each bucket but the last with the bytes of a bucket or more."""
    full = min(BUCKET_BYTES, sum(map(bytes_of, parameters)) / LEAST_BUCKETS)
    ends, held = [0], 0
    for number, parameter in enumerate(parameters, 1):
        held += bytes_of(parameter)
        if held >= full or number == len(parameters):
            ends.append(number)
            held = 0
    return [list(parameters[start:end]) for start, end in pairwise(ends)]


def bytes_of(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()
