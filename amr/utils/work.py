"""Many independent tasks, here, in worker processes or on a cluster; a worker that dies takes one task with it."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from amr.utils.errors import UserError
from amr.utils.streams import status

T = TypeVar("T")
Task = tuple[Any, ...]

_GUARD = "worker processes import the script again: put its commands under if __name__ == '__main__':"
_PATIENCE = 20  # seconds that a cluster's scheduler may take to answer
_AHEAD = 256  # tasks that a cluster is given at a time: bounds what is held here, whatever the number of tasks


def run_tasks(
    function: Callable[..., T],
    tasks: Iterable[Task],
    *,
    workers: int,
    executor: Executor | None = None,
    again: Callable[[Task], bool] = lambda task: False,
) -> Generator[T, None, None]:
    """Yield `function(*task)` for each task as they are done, in no fixed order.

    Only so many tasks are drawn from the iterable as are needed to keep the workers busy.

    Args:
        function: Runs a task; importable, as are its arguments' types.
        tasks: Arguments.
        workers: Processes; 0 runs the tasks in this one.
        executor: Runs them instead of processes of our own, for instance a cluster's.
        again: Whether to give a task, whose worker process died, to another worker.

    Raises:
        UserError: A worker process died and its task is not to be run again, or the cluster went away.
    """
    if executor is None and workers < 1:
        yield from (function(*task) for task in tasks)
        return
    left = iter(tasks)
    pool = executor or Processes(workers)
    ahead = _AHEAD if executor else 2 * workers
    running: dict[Future[T], Task] = {}
    try:
        while True:
            for task in islice(left, ahead - len(running)):
                running[pool.submit(function, *task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    yield future.result()
                except CancelledError as error:
                    raise UserError(
                        "the cluster's scheduler went away; run the same command again: finished parts are kept"
                    ) from error
                except Exception as error:
                    if not _worker_died(error):
                        raise
                    if not again(task):
                        raise UserError(_why_it_died()) from error
                    running[pool.submit(function, *task)] = task
    except (KeyboardInterrupt, GeneratorExit):  # at Ctrl-C nobody waits for a shard to be finished
        if isinstance(pool, Processes):
            pool.kill()
        raise
    finally:
        for future in running:
            future.cancel()
        if executor is None:
            pool.shutdown(cancel_futures=True)


def check_not_in_worker() -> None:
    """Refuse to start workers in a worker that is only importing a script: it would wait for its own parent.

    Raises:
        UserError: The script has no guard.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as the standard library finds out
        raise UserError(_GUARD)


def _why_it_died() -> str:
    """What to say of a worker that died: memory can only be guessed; a script that has no guard is named, too."""
    said = "a worker process was killed (out of memory?); run the same command again: finished parts are kept"
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script and Path(script).is_file() and "__main__" not in Path(script).read_text(errors="ignore"):
        said += f". If {script} was run as a script: {_GUARD}"
    return said


def _worker_died(error: Exception) -> bool:
    """Dask, which need not be installed, has an exception of its own for it."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"


class Processes(Executor):
    """A pool of worker processes in which one that dies fails its own task alone and is replaced.

    (The standard library's pool fails every task when one of its processes dies.)

    Args:
        workers: Their number, at least 1.

    Raises:
        UserError: The calling script has no guard, and a worker is importing it.
    """

    def __init__(self, workers: int) -> None:
        check_not_in_worker()
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Task] | None] = queue.SimpleQueue()
        self._leash, self._hold = multiprocessing.Pipe(duplex=False)  # a process ends when anything comes
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue `fn(*args)`; its future raises BrokenProcessPool if the process died on it."""
        if kwargs:
            raise TypeError("keyword arguments are not passed on")
        future: Future[T] = Future()
        self._tasks.put((future, fn, args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, after all tasks or, with `cancel_futures`, after those that have begun."""
        while cancel_futures:
            try:
                item = self._tasks.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else []:
            thread.join()

    def kill(self) -> None:
        """End the processes at once: their tasks' futures raise BrokenProcessPool."""
        self._hold.send_bytes(b"end")

    def _serve(self) -> None:
        """One worker: a process that is started with its first task, and again after each death."""
        multiprocessing.resource_tracker.ensure_running()  # it would unblock the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of the processes: a terminal's Ctrl-C reaches all
        process: ProcessPoolExecutor | None = None
        while (item := self._tasks.get()) is not None:
            future, function, task = item
            if not future.set_running_or_notify_cancel():
                continue
            # spawn: the calling process may hold CUDA and threads, which do not survive a fork.
            process = process or ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), _exit_with_parent, (self._leash,)
            )
            try:
                future.set_result(process.submit(function, *task).result())
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, BrokenProcessPool):
                    process.shutdown()
                    process = None
        if process is not None:
            process.shutdown()


def _exit_with_parent(leash: Connection) -> None:
    """Without this the workers of a killed process would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel, leash])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def dask_cluster(scheduler: str | None) -> Iterator[Executor | None]:
    """The executor of a running Dask cluster; None for no address.

    Args:
        scheduler: Its scheduler's address, such as tcp://host:8786, or the scheduler's JSON file.

    Raises:
        UserError: Dask is not installed, or no scheduler answers.
    """
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: pip install 'amr-fusion[cluster]'") from error
    where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
    if "scheduler_file" in where and not Path(scheduler).is_file():
        raise UserError(f"--scheduler={scheduler}: no such file")
    try:
        client = Client(**where, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(
            f"--scheduler={scheduler}: no Dask scheduler answers; give tcp://host:port or its JSON file"
        ) from error
    with client:
        threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
        status(f"{scheduler}: {threads or 'no'} worker threads{'' if threads else ' yet, waiting'}")
        # pure: Dask would answer a repeated task with the first one's failure.
        yield client.get_executor(pure=False)  # type: ignore[no-untyped-call]
