"""What a run on several nodes says of those it may lose."""

from types import SimpleNamespace

from mpp.data.batch_plan import plan_batch
from mpp.processes.launch import Launch
from mpp.processes.peers import Peers
from mpp.train.run import Run


def said(hosts: list[str]) -> str:
    peers = Peers(Launch(0, len(hosts)), hosts, list(range(len(hosts))))
    return Run.plan_words(SimpleNamespace(plan=plan_batch(96, 96, len(hosts), 8), _peers=peers))


def test_a_run_on_several_nodes_says_with_how_many_of_them_it_goes_on():
    assert said(["a", "a", "b", "b", "c", "c", "d", "d"]).endswith("| of 4 nodes x 2: with 1 lost all 3 go on, with 2 lost all 2 go on")


def test_of_one_node_and_of_nodes_that_are_not_alike_nothing_is_said():
    for hosts in (["a", "a"], ["a"], ["a", "a", "a", "b"]):
        assert "lost" not in said(hosts)
