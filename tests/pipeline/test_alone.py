"""A process alone: its collectives give what it has, and nobody can reach it."""

import json
import socket

import psutil
import pytest
import torch
import torch.distributed as dist

from mpp.processes.world import copies_alone
from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, TINY, environment, free_port

# A run, and in each of its steps the ports on which it or a process of its own listens.
PROGRAM = """
import json, sys
import psutil
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
import mpp.train.run
from mpp.pretrain import main
real, seen = mpp.train.run.Step.update, []
def update(self):
    real(self)
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    seen.append([len(processes), [each.laddr.port for one in processes for each in one.net_connections() if each.status == psutil.CONN_LISTEN]])
mpp.train.run.Step.update = update
assert main(sys.argv[2:]) == 0
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_a_training_of_one_process_listens_on_no_port(shards, tmp_path):
    words = [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "system.workers=1", "optim.total_samples=36"]
    done = run_forked(["-c", PROGRAM, str(ROOT), *words], cwd=ROOT, env=environment(0, 1, free_port()), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[2, []]] * 3  # it and its loader process
    with socket.create_server(("127.0.0.1", 0)) as server:  # what listens would have been seen
        here = [each.laddr.port for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN]
        assert server.getsockname()[1] in here


@pytest.fixture
def alone():
    dist.init_process_group(copies_alone(), store=dist.HashStore(), rank=0, world_size=1)
    yield torch.arange(6.0)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch calls some of them otherwise since 2.14
def test_collectives_of_one_process_give_what_it_has(alone):
    """Each that torch has, as a sum, a maximum or a copy over one process is that process's own."""
    mine, blank = alone.clone(), lambda: torch.full((6,), -1.0)
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.AVG):
        dist.all_reduce(mine, operation)
        dist.reduce(mine, 0, operation)
        assert torch.equal(mine, alone), operation
    dist.broadcast(mine, 0)
    dist.all_reduce(mine, group=dist.new_group([0]))
    work = dist.all_reduce(mine, async_op=True)
    work.wait()
    assert torch.equal(mine, alone)
    for gather in (
        lambda to: dist.all_gather([to], alone),
        lambda to: dist.all_gather_into_tensor(to, alone),
        lambda to: dist.all_gather_into_tensor(to, alone, async_op=True).wait(),
        lambda to: dist.reduce_scatter(to, [alone.clone()]),
        lambda to: dist.reduce_scatter_tensor(to, alone.clone()),
        lambda to: dist.all_to_all_single(to, alone),
        lambda to: dist.gather(alone, [to]),
        lambda to: dist.scatter(to, [alone]),
    ):
        to = blank()
        gather(to)
        assert torch.equal(to, alone), gather
    several = [blank(), blank()]
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as together:
        for to in several:
            dist.all_gather_into_tensor(to, alone)
    together.wait()
    assert all(torch.equal(to, alone) for to in several)
    told, heard = [{"a": 1}], [None]
    dist.broadcast_object_list(told, src=0)
    dist.all_gather_object(heard, {"b": 2})
    assert (told, heard) == ([{"a": 1}], [{"b": 2}])
    dist.barrier()
