"""The keeper of a machine's cache of shards: one process beside those of a job, which takes shards whole from where they lie (origins.py) into a folder
(cache_folder.py), in the order in which they will be needed, and lets go of those that are needed last.

    python -m mpp.data.keeper '{"folder": ..., "gigabytes": ..., "patience": seconds}'

It is begun by shard_cache.py, prints the address of its socket, and ends with its parent; keeping.py is what it does.

What it is asked, a line of JSON each, over a socket in a folder of this user's alone:
    open     a set's manifest and index are fetched, and the sizes of its shards looked up
    want     shards that must be there now; answered when they are, or when they cannot be had
    plan     a sampler (data/order.py), pickled: the micro-batches that the asking process will read, in order
    at       so many micro-batches of a plan are done with
    done     the whole plan is
    suspect  a sample's bytes were not those of the index: is the copy at fault?
    status   what has been fetched, in numbers
"""

import json
import os
import shutil
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpp.base.errors import UserError, disk_fault
from mpp.base.text import say_json
from mpp.data.cache_folder import CacheFolder
from mpp.data.keeping import Keeper
from mpp.disk.patience import disks
from mpp.disk.sockets import folder_of_sockets
from mpp.remote import retries
from mpp.remote.retries import shown

THREADS = 8  # that fetch, a range each
STILL = 20.0  # seconds without a single byte after which an answer is asked for anew
DRIP = 120.0  # seconds for a range, after which it is asked for anew: a connection that drips may be slow alone
PARENT_EVERY = 0.5  # seconds between looks whether the job is still there


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        keeper: Keeper = self.server.keeper  # type: ignore[attr-defined]
        plans: set[int] = set()
        try:
            for line in self.rfile:
                try:
                    told = keeper.answer(json.loads(line), plans)
                except UserError as error:
                    told = {"error": shown(str(error))}
                except Exception as error:
                    failed = f"the keeper of the cache {keeper.folder.path} has failed: {type(error).__name__}: {shown(str(error))}"
                    told = {"error": keeper.fault_of_cache(error) or failed}
                if told is not None:
                    self.wfile.write(json.dumps(told).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            keeper.drop(plans)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


def _end(failed: threading.ExceptHookArgs) -> None:
    sys.excepthook(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(1)


def serve(folder: CacheFolder) -> Iterator[str]:
    """Gives the socket's address, then serves until the parent is gone."""
    parent = os.getppid()
    home = folder_of_sockets("keeper")
    try:
        keeper = Keeper(folder)
        server = _Server(str(home / "socket"), _Connection)
        server.keeper = keeper  # type: ignore[attr-defined]
        threading.excepthook = _end  # a thread that fails must not leave readers waiting
        for work in (server.serve_forever, *[keeper.work] * THREADS):
            threading.Thread(target=work, daemon=True).start()
        yield str(home / "socket")
        while os.getppid() == parent:
            time.sleep(PARENT_EVERY)
    finally:
        folder.close()
        shutil.rmtree(home, ignore_errors=True)


def main(argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a request to stop goes to the whole group; samples are needed for the step in hand
    facts: dict[str, Any] = json.loads(argv[0])
    disks.patience = facts["patience"]
    # What goes on after these waits is tried again here, in the order of need; other shards come meanwhile.
    still = min(STILL, max(1.0, disks.patience / 4))
    retries.PATIENCE = replace(
        retries.PATIENCE, connect_seconds=min(10.0, still), read_seconds=still, whole_seconds=max(DRIP, still), waits=(0.5, 1.0)
    )
    used, remedy = f"system.cache={facts['folder']}", "give another folder"
    try:
        folder = CacheFolder(Path(facts["folder"]), facts["gigabytes"])
        used, remedy = "TMPDIR, where the keeper of the cache has its socket", "set it to another folder"
        serving = serve(folder)
        address = next(serving)
    except (UserError, OSError) as error:
        fault = f"{used}: {disk_fault(error) or f'cannot be used ({error})'}; or {remedy}"
        say_json({"error": str(error) if isinstance(error, UserError) else fault})
        return 2
    say_json({"address": address, "limit": folder.limit})
    sys.stdout.close()
    for _ in serving:
        pass
    os._exit(0)  # threads may be at work


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
