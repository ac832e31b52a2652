"""The processes of one job from the moment they have met, before they have a process group: who is here, and what they tell each other first.

    peers = meet(1800)                      the others, or ALONE
    peers.agree({"code": ...})              all run the same, or all stop and say who differs in what
    peers.from_first(make)                  what rank 0 makes, for all
    peers.together(work)                    each its part; where one fails all do

All goes through the store at which processes meet (torch's TCPStore), in JSON: nothing that comes in is unpickled, and neither a GPU nor a
collective is touched.  So what can be refused is refused, and what need be looked up once is looked up once, while a mistake still costs nothing.
Every method is collective: all processes call it, in the same order.  One that leaves tells the others, who then wait no longer.
"""

import contextlib
import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mpp.base import errors
from mpp.base.errors import ConfigError, GoneError, NotMetError, UserError, error_told, of_this_rank
from mpp.processes.launch import Launch, find_launch
from mpp.processes.watch import meeting

if TYPE_CHECKING:  # torch takes seconds, and a process alone needs none of it
    import torch.distributed as dist

LOOKUP_SECONDS = 60.0  # for the name of rank 0's host to become known: a pod's may take a moment
ATTENTIVE = timedelta(seconds=1)  # between two looks whether somebody has left
FAREWELL_SECONDS = 5.0  # in which the others may hear what rank 0 has told last, with whom the store ends
NAMED = 8  # ranks, or differences, that a message names
Made = TypeVar("Made")


@dataclass
class Peers:
    launch: Launch = field(default_factory=Launch)
    hosts: Sequence[str] = ("",)  # of each rank
    local_ranks: Sequence[int] = (0,)  # likewise
    store: "dist.Store | None" = None  # none for a process alone
    seconds: float = 1800.0  # how long one may let the others wait
    joined: bool = False  # there are collectives, and a watch
    _told: int = field(default=0, init=False)  # how often they told each other anything

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.size

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Processes of this machine."""
        return self.launch.local_size or self.hosts.count(self.hosts[self.rank])

    @property
    def nodes(self) -> int:
        return len(set(self.hosts))

    @property
    def first_of_host(self) -> bool:
        return self.hosts.index(self.hosts[self.rank]) == self.rank

    def called(self, rank: int) -> str:
        return f"rank {rank} (host {self.hosts[rank]})"

    def refuse_shared_gpus(self) -> None:
        """Raises ConfigError where two ranks would use one GPU: LOCAL_RANK is missing."""
        here = list(zip(self.hosts, self.local_ranks, strict=True))
        for rank, place in enumerate(here):
            if place in here[:rank]:
                host, local_rank = place
                raise ConfigError(
                    f"ranks {here.index(place)} and {rank} are both LOCAL_RANK={local_rank} on {host} and would share a GPU; give each process of a "
                    "machine its own LOCAL_RANK, from 0 on"
                )

    def collect(self, mine: Any) -> list[Any]:
        """For rank 0: what each rank has, as JSON gives it back, by rank; nothing elsewhere."""
        if self.store is None:
            return [_as_json(mine)]
        name = self._next()
        with self._reaching():
            self.store.set(f"{name}/{self.rank}", json.dumps(mine))
        if not self.first:
            return []
        with meeting():
            self._wait([f"{name}/{rank}" for rank in range(self.size)])
        return [json.loads(self.store.get(f"{name}/{rank}")) for rank in range(self.size)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, as JSON gives it back.  A UserError there is raised by all."""
        if self.store is None:
            return _as_json(make())
        name = self._next()
        if not self.first:
            with meeting():
                self._wait([name])
            with self._reaching():
                told = _unpacked(self.store.get(name))
            if "error" in told:
                raise error_told(*told["error"])  # which rank 0 prints
            return told["made"]
        try:
            made = _as_json(make())
        except UserError as error:
            self.store.set(name, _packed({"error": [str(error), error.status]}))  # type: ignore[arg-type]
            raise
        self.store.set(name, _packed({"made": made}))  # type: ignore[arg-type]  # of bytes, too
        return made

    def gather(self, mine: Any) -> list[Any]:
        """What each rank has, as JSON gives it back, by rank, for all."""
        found = self.collect(mine)
        return self.from_first(lambda: found)

    def together(self, work: Callable[[], Made]) -> Made:
        """Do this process's part, and give what it made; if a UserError stops any of them, all raise the first one."""
        if self.store is None:
            return work()
        made, failure = None, None
        try:
            made = work()
        except UserError as error:
            failure = str(error), error.status
        failures = self.collect(failure)
        self.from_first(lambda: _raise_first(failures))
        return made  # type: ignore[return-value]

    def agree(self, facts: Mapping[str, str], remedies: Mapping[str, str]) -> None:
        """facts: name -> what must be the same in all processes; remedies: name, or its part before a dot -> what to do.  Raises ConfigError, in all,
        that says which ranks differ from rank 0, and in what."""
        found = self.collect(dict(facts))
        self.from_first(lambda: refuse_unlike(found, self.called, remedies))

    def tell(self, name: str, text: str) -> None:
        """For one that hears it, under a name that is used once; a name of a rank's own ends in /RANK."""
        assert self.store is not None
        with self._reaching():
            self.store.set(name, text)

    def heard(self, name: str) -> str:
        """What another has told, as soon as it has."""
        assert self.store is not None
        with meeting():
            self._wait([name])
        with self._reaching():
            return self.store.get(name).decode()

    def _next(self) -> str:
        self._told += 1
        return f"told/{self._told}"

    def _wait(self, names: Sequence[str]) -> None:
        """Until others have written these: KIND/NUMBER/RANK each rank, or rank 0 one of any other form.  Raises UserError where one has left, or does
        not come."""
        import torch.distributed as dist

        store = self.store
        assert store is not None
        end = time.monotonic() + self.seconds
        with self._reaching():
            while True:
                with contextlib.suppress(dist.DistStoreError):
                    store.wait(list(names), ATTENTIVE)
                    return
                if store.check(["left"]):
                    rank, words, status = json.loads(store.get("left"))
                    kind = UserError if status == UserError.status else GoneError  # what a person must mend, this process would meet, too
                    raise kind(f"{self.called(rank)} has left: {words}")  # which it has printed itself, or rank 0 prints
                if time.monotonic() > end:
                    absent = [name.rpartition("/")[2] for name in names if not store.check([name])]
                    who = some_ranks(absent) if names[0].count("/") == 2 else "rank 0"
                    raise of_this_rank(
                        NotMetError(
                            f"{who} of {self.size} has told nothing for {self.seconds:.0f} s; see what it does on its host, and begin again"
                        )
                    )

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Around calls to the store.  Raises UserError where rank 0, with whom it ends, is gone; one process of a host prints it."""
        import torch.distributed as dist

        try:
            yield
        except dist.DistNetworkError as error:
            gone = GoneError(f"{self.called(0)} has ended, or cannot be reached any more; its own message, if it left one, says why")
            speaks = self.rank == next((rank for rank, host in enumerate(self.hosts) if rank and host == self.hosts[self.rank]), 0)
            raise (of_this_rank(gone) if speaks else gone) from error

    def leaves(self, status: int, words: str, said: bool) -> None:
        """Tell the others, who may wait for this process, unless they have a watch by now (mpp/processes/watch.py).  Rank 0 lets them leave first, also
        where all is well: who is slow may not have read yet what it has told last."""
        if self.store is None or self.joined:
            return
        with contextlib.suppress(Exception):  # the store may be gone, and this process ends anyhow
            if status:
                self.store.compare_set("left", "", json.dumps([self.rank, words or f"exit status {status}", status]))
            self.store.add("gone", 1)
            end = time.monotonic() + FAREWELL_SECONDS
            while self.first and self.store.add("gone", 0) < self.size and time.monotonic() < end:  # with whom the store ends
                time.sleep(0.01)


ALONE = Peers()
_met: Peers | None = None  # once in the life of a process


def meet(seconds: float) -> Peers:
    """Collective: wait until all processes of this job are here; alone without a launcher.  Who has met before need not meet again.

    seconds: how long any may let the others wait.  Raises ConfigError where the environment cannot be right, and NotMetError, which names who has not come.
    """
    global _met
    if _met is not None:
        return _met
    launch = find_launch()
    if launch.size == 1:
        return Peers(launch, (socket.gethostname(),), (launch.local_rank,))
    import torch.distributed as dist

    _wait_for_name(launch)
    limit = timedelta(seconds=max(seconds, 1.0))
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun serves it
    try:
        store: dist.Store = dist.TCPStore(
            launch.address, launch.port, None, launch.rank == 0 and not agents, limit, False, multi_tenant=True
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"mpp/{attempt}", store)
        mine = json.dumps([launch.size, socket.gethostname(), launch.local_rank, os.getpid()])
        if store.compare_set(f"here/{launch.rank}", "", mine).decode() != mine:
            raise of_this_rank(
                ConfigError(
                    f"two processes are rank {launch.rank} at {launch.address}:{launch.port}; give each process of a job its own RANK, and each job its own port"
                )
            )
        if launch.rank == 0:
            names = [f"here/{rank}" for rank in range(launch.size)]
            try:
                store.wait(names, limit)
            except dist.DistStoreError:
                absent = some_ranks([str(rank) for rank, name in enumerate(names) if not store.check([name])])
                store.set("all", json.dumps(absent))
            else:
                store.set("all", json.dumps([json.loads(store.get(name)) for name in names]))
        store.wait(["all"], limit + ATTENTIVE)
        here = json.loads(store.get("all"))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise cannot_meet(launch, error) from error
    if isinstance(here, str):
        raise of_this_rank(
            NotMetError(
                f"{here} of {launch.size} has not come to {launch.address}:{launch.port} within {seconds:.0f} s; "
                "start as many processes as WORLD_SIZE says, on hosts that reach that address"
            )
        )
    for rank, (size, _, _, _) in enumerate(here):
        if size != launch.size:
            raise ConfigError(
                f"rank {rank} has WORLD_SIZE={size} and rank {launch.rank} WORLD_SIZE={launch.size}; give all processes the same"
            )
    peers = Peers(launch, [host for _, host, _, _ in here], [local_rank for _, _, local_rank, _ in here], store, seconds)
    errors.at_leaving.append(peers.leaves)
    _met = peers
    return peers


def refuse_unlike(found: Sequence[Mapping[str, str]], called: Callable[[int], str], remedies: Mapping[str, str]) -> None:
    """Raises ConfigError where a rank's facts are not rank 0's; as in `Peers.agree`."""
    said, told = [], dict[str, None]()
    for name in dict.fromkeys(name for facts in found for name in facts):
        theirs = [facts.get(name, "nothing") for facts in found]
        others = [rank for rank, fact in enumerate(theirs) if fact != theirs[0]]
        if others:
            more = f" and {len(others) - 1} more" if others[1:] else ""
            said.append(f"{called(others[0])}{more} has {name}={theirs[others[0]]}, rank 0 {theirs[0]}")
            told[remedies.get(name, remedies.get(name.partition(".")[0], "make it the same on all"))] = None
    if said:
        further = f"; and {len(said) - NAMED} further differences" if said[NAMED:] else ""
        raise ConfigError(f"the processes of this job are not alike: {'; '.join(said[:NAMED])}{further}; {', and '.join(told)}")


def some_ranks(ranks: Sequence[str]) -> str:
    return f"rank {', '.join(ranks[:NAMED])}{' ...' if ranks[NAMED:] else ''}"


def cannot_meet(launch: Launch, error: Exception) -> NotMetError:
    where = f"{launch.address}:{launch.port}"
    return of_this_rank(  # type: ignore[return-value]
        NotMetError(
            f"the processes cannot meet at {where} ({str(error).splitlines()[0]}); every node must reach that address, and on one host "
            f"each job needs a port of its own: deepspeed --master_port 29501 ..."
        )
    )


def _wait_for_name(launch: Launch) -> None:
    ends = time.monotonic() + LOOKUP_SECONDS
    while True:
        try:
            socket.getaddrinfo(launch.address, launch.port)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > ends or isinstance(error, UnicodeError) or launch.rank == 0:
                kind = NotMetError if launch.rank and not isinstance(error, UnicodeError) else ConfigError
                raise of_this_rank(
                    kind(f"MASTER_ADDR={launch.address} is not the name of a host ({error}); give the name or address of rank 0's")
                ) from None
            time.sleep(1)


def _raise_first(failures: Sequence[tuple[str, int] | None]) -> None:
    if failed := next(filter(None, failures), None):
        raise error_told(*failed)


def _packed(value: Any) -> bytes:
    """Lists of files may be long, and go to every process."""
    return zlib.compress(json.dumps(value).encode(), 1)


def _unpacked(data: bytes) -> Any:
    return json.loads(zlib.decompress(data))


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
