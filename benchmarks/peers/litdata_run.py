"""litData's optimize() over the same files.  Interface as webdataset_loop.py.

Copy: the function returns the file's bytes.  Resize: the same Pillow code as in webdataset_loop.py.
What it does differently: its own chunk format (chunk-0-0.bin, index.json) instead of tars; no checksum; content is not looked at when it
copies; nothing is flushed to the disk.  Chunks hold PER_SHARD samples.  use_checkpoint is on, so that a restart can go on.
`verify` reads every sample back through StreamingDataset: there is nothing to compare it with.
"""

import json
import multiprocessing
import os
import random
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["DO_NOT_TRACK"] = "1"


def copied(path: str) -> dict:
    return {"jpg": Path(path).read_bytes()}


def shrunk(path: str) -> dict:
    from webdataset_loop import shrink

    return {"jpg": shrink(Path(path).read_bytes(), 256)}


def make(root: str, out: str, workers: str, per_shard: str, resize: str) -> None:
    from litdata import optimize

    assert int(resize) in (0, 256)
    paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)  # noqa: PTH118
    random.Random(0).shuffle(paths)
    optimize(
        fn=shrunk if int(resize) else copied,
        inputs=paths,
        output_dir=out,
        num_workers=int(workers),
        chunk_size=int(per_shard),
        reorder_files=False,
        use_checkpoint=True,
        start_method="fork",  # no second import of torch in each process
        verbose=False,
    )


def verify(out: str, workers: str) -> None:
    workers = int(workers)
    processes = [multiprocessing.Process(target=read, args=(out, worker, workers)) for worker in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)


def read(out: str, worker: int, workers: int) -> None:
    from litdata import StreamingDataset

    dataset = StreamingDataset(out)
    for sample in range(len(dataset) * worker // workers, len(dataset) * (worker + 1) // workers):
        len(dataset[sample]["jpg"])


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "versions":
        import litdata  # noqa: F401 (whether it can be imported)

        print(json.dumps({name: version(name) for name in ("litdata", "torch", "pillow")}))
    elif what == "describe":
        from describe import describe
        from litdata import StreamingDataset

        dataset = StreamingDataset(words[0])
        print(json.dumps(describe(dataset[sample]["jpg"] for sample in range(len(dataset)))))
    else:
        {"make": make, "verify": verify}[what](*words)
