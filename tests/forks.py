"""Python programs for tests, started in a tenth of a second: forked off a process that has imported torch and the like, but nothing of mpp.

A program so started has what it would have if it were started anew: its own session, environment, words, working folder, `__main__` and output.
Four things are otherwise: other packages are imported already, of the PYTHON* variables only PYTHONPATH and PYTHONDONTWRITEBYTECODE count,
programs share one hash seed, and none may use CUDA.  What depends on those starts a process of its own (tests/pipeline/test_launchers.py).
"""

import atexit
import faulthandler
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

SERVER = "MPP_TEST_FORK_SERVER"  # the address of a server that a program which itself was forked off is to use
TELL = signal.SIGRTMIN + 7  # every program answers it with where its threads are
PRELOADED = (
    "torch", "torch.utils.data", "torch.utils.tensorboard", "torch.utils.cpp_extension", "torchvision.transforms", "torchvision.datasets",
    "timm", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer",  # for which ZeRO 1-3 ask, and it for all of torch.compile
    "numpy", "PIL.Image", "yaml", "pydantic", "safetensors.torch", "transformers.models.vit_mae.modeling_vit_mae",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "PIL.TiffImagePlugin",
    "tensorboard.backend.event_processing.event_accumulator", "pyarrow.parquet", "scipy.io", "webdataset", "fsspec", "requests", "tqdm",
    "pytest", "xdist.plugin", "pytest_timeout", "hypothesis", "_hypothesis_pytestplugin",
)  # fmt: skip


class Forked:
    """A running program, with the part of subprocess.Popen's face that tests use; output is text.

    arguments: what follows `python` on a command line, a script or -c.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]):
        self.returncode: int | None = None
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115, closed with the program
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server())
        socket.send_fds(self._connection, [b"!"], [self._out.fileno(), self._err.fileno()])
        request = {"arguments": [str(word) for word in arguments], "cwd": str(cwd), "env": dict(env)}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._reply = self._connection.makefile()
        self.pid = int(self._reply.readline())

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._reply.readline())
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def run_forked(arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 120) -> subprocess.CompletedProcess:
    """As subprocess.run, with its output as text; a program that takes longer is killed, and the error says where all that were running were."""
    process = Forked(arguments, cwd, env)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired as late:
        late.add_note(whereabouts())
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(list(arguments), process.returncode, out, err)


def whereabouts() -> str:
    """Of each running program that the server forked off, and of the processes those forked off: the Python stacks of its threads."""
    told = []
    for stacks in sorted(Path(server()).parent.glob("*.stacks"), key=lambda path: int(path.stem)):
        process = Path("/proc") / stacks.stem
        with suppress(FileNotFoundError, ProcessLookupError):
            if server().encode() in (process / "cmdline").read_bytes():  # else its number is another's by now
                os.kill(int(stacks.stem), TELL)
                time.sleep(0.2)
                told.append(f"process {stacks.stem} in {(process / 'cwd').readlink()}:\n{stacks.read_text()}")
    return "\n".join(told)


@functools.cache
def server() -> str:
    """The address of the server: that of whoever forked us off, or one for as long as this process lives."""
    if SERVER in os.environ:
        return os.environ[SERVER]
    folder = tempfile.TemporaryDirectory(prefix="mpp-forks-")
    address = f"{folder.name}/socket"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, address], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert "ready\n" in iter(process.stdout.readline, "")  # DeepSpeed has a word to say before

    def stop() -> None:
        process.stdin.close()
        process.wait(timeout=60)
        folder.cleanup()

    atexit.register(stop)
    return address


def serve(address: str) -> dict:
    """Returns in each forked program, with what it shall be."""
    for name in PRELOADED:
        importlib.import_module(name)
    sys.modules["deepspeed"].ops.__compatible_ops__  # noqa: B018, worked out when first asked for
    assert not any(name.split(".")[0] == "mpp" for name in sys.modules)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}  # process -> who waits for it
    gc.freeze()  # a collection in a program would copy what all of them share
    print("ready", flush=True)
    while True:
        ready = select.select([listener, ended, sys.stdin], [], [])[0]
        if sys.stdin in ready:  # whoever started us has ended
            os._exit(0)
        if ended in ready:
            ended.recv(4096)
            with suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    with running.pop(found[0]) as connection, suppress(OSError):  # who no longer waits
                        connection.sendall(f"{os.waitstatus_to_exitcode(found[1])}\n".encode())
        if listener in ready:
            connection, _ = listener.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, 2)
            request = json.loads(connection.makefile().readline())
            if not (process := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for mine in (listener, ended, wake, *running.values()):
                    mine.close()
                return _begin(connection, files, request)
            running[process] = connection
            for file in files:
                os.close(file)


def _begin(connection: socket.socket, files: Sequence[int], request: dict) -> dict:
    """In the program: its session, its output, and its number for whoever asked for it."""
    os.setsid()
    connection.sendall(f"{os.getpid()}\n".encode())
    connection.close()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    return request


def become(arguments: Sequence[str], cwd: str, env: Mapping[str, str]) -> None:
    """What `python ARGUMENTS` does."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    answer_where()
    os.register_at_fork(after_in_child=answer_where)
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    program, *words = arguments
    first = "" if program == "-c" else str(Path(program).resolve().parent)
    sys.path[:0] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    if program == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        code, *words = words
        sys.argv = ["-c", *words]
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [program, *words]
        runpy.run_path(program, run_name="__main__")


def answer_where() -> None:
    """Asked by TELL, this process writes its stacks beside the server's socket."""
    _stacks[:] = [(Path(sys.orig_argv[-1]).parent / f"{os.getpid()}.stacks").open("w")]
    faulthandler.register(TELL, _stacks[0])


_stacks: list[TextIO] = []


def leave(work: Callable[[], None]) -> NoReturn:
    """Do it, then end as the interpreter does, but without taking down module after module: that copies all shared memory, for seconds."""
    status: object = 0
    try:
        work()
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    request = serve(sys.argv[1])
    leave(lambda: become(**request))
