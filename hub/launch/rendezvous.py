"""The rendezvous of several machines, at a store on machine 0. A machine that waits can be stopped, and says whom it waits for.

Torch's static rendezvous waits in C++, where Python handles no signal. Here torch's blocking calls are made by a thread.
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from hub.config.schema import LaunchConfig
from hub.errors import HubError, LaunchError, first_line
from hub.system.saying import say_error

T = TypeVar("T")

SAID_AFTER_SECONDS = 3.0
"""Time after which a machine says that it waits."""

BEAT_SECONDS, SILENT_SECONDS = 0.2, 3.0
"""How often a waiting machine shows that it is alive, and the silence after which it is taken for gone."""


def interruptible(call: Callable[[], T], meanwhile: Callable[[], object] = lambda: None) -> T:
    """Make a call that may block in C++, so that signals are handled nevertheless.

    Args:
        call: what to call, in a thread. If a signal handler or `meanwhile` raises, the thread is left behind.
        meanwhile: called every tenth of a second until then.

    Returns:
        What the call returned.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="rendezvous", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        meanwhile()
    return outcome.result()


class Rendezvous(RendezvousHandler):  # type: ignore[misc]  # torch gives it no types
    """Brings the agents of all machines together: each gets a store that all of them use."""

    def __init__(self, cfg: LaunchConfig) -> None:
        """Args:
        cfg: number of machines, rank of this one, `rdzv_endpoint` and `rdzv_timeout_seconds`.
        """
        host, _, port = str(cfg.rdzv_endpoint).rpartition(":")
        self.endpoint, self.host, self.port = cfg.rdzv_endpoint, host, int(port)
        self.rank, self.num_machines, self.timeout = cfg.node_rank, cfg.nnodes, cfg.rdzv_timeout_seconds
        self.missing = list(range(cfg.nnodes)) if cfg.node_rank == 0 else [0]
        """Ranks of the machines that are not here, as far as this one knows."""
        self.complete = self._gave_up = False
        self._said: list[int] = []
        self._started = time.monotonic()

    @property
    def waits_for(self) -> str:
        """Whom this machine waits for, in words."""
        return self._in_words(self.missing)

    def _in_words(self, ranks: list[int]) -> str:
        those = ", ".join(map(str, ranks))
        return f"{len(ranks)} of {self.num_machines} machines at {self.endpoint} (launch.node_rank={those})"

    def watch(self) -> None:
        """Say whom this machine waits for, after a while and when that changes.

        Raises:
            LaunchError: it has waited for too long.
        """
        waited = time.monotonic() - self._started
        missing = self.missing  # read once: the thread that waits changes it
        if self.complete or not missing:
            return
        if waited > self.timeout:
            self._gave_up = True
            raise LaunchError(
                f"{self._in_words(missing)} did not come within launch.rdzv_timeout_seconds={self.timeout:g}. Start the same "
                "command there with that launch.node_rank, and check that all machines reach this address and port"
            )
        if waited > SAID_AFTER_SECONDS and missing != self._said:
            self._said = missing
            say_error(f"hub: waiting for {self._in_words(missing)}, for up to {self.timeout - waited:.0f} s")

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all machines. To be called in a thread: see `interruptible`.

        Raises:
            LaunchError: the machines do not fit together.
        """
        try:
            # `watch` ends the wait: the timeout here must not come first.
            wait = timedelta(seconds=self.timeout + 60)
            store = TCPStore(
                self.host, self.port, is_master=self.rank == 0, timeout=wait, wait_for_workers=False, multi_tenant=True
            )
            self._meet(store)
        except RuntimeError as error:
            raise LaunchError(f"launch.rdzv_endpoint={self.endpoint}: {first_line(error)}") from error
        address = RendezvousStoreInfo(self.host, self.port)
        return RendezvousInfo(PrefixStore(self.get_run_id(), store), self.rank, self.num_machines, address)

    def _meet(self, store: TCPStore) -> None:
        """Show that this machine is here until machine 0 has seen all of them at the same time, and has said so."""
        number = store.compare_set("hub/nnodes", "", str(self.num_machines)).decode()
        if number != str(self.num_machines):
            raise self._mismatch(f"launch.nnodes={self.num_machines} here, but {number} on another machine")
        me, own, beat = uuid4().hex, f"hub/machine-{self.rank}", 0
        seen: dict[int, tuple[str, float]] = {}
        while not store.check(["hub/all"]):
            if self._gave_up:
                raise self._mismatch("not all machines came")
            if beat and store.get(own).decode().split()[0] != me:
                raise self._mismatch(f"launch.node_rank={self.rank} is that of another machine too")
            store.set(own, f"{me} {beat}")
            beat += 1
            for rank in range(self.num_machines):
                text = store.get(f"hub/machine-{rank}").decode() if store.check([f"hub/machine-{rank}"]) else ""
                if text and text != seen.get(rank, ("", 0.0))[0]:
                    seen[rank] = text, time.monotonic()
            alive = {rank for rank, (_, when) in seen.items() if time.monotonic() - when < SILENT_SECONDS}
            self.missing = [rank for rank in range(self.num_machines) if rank not in alive]
            if self.rank == 0 and not self.missing:
                store.set("hub/all", json.dumps([text.split()[0] for text, _ in seen.values()]))
            time.sleep(BEAT_SECONDS)
        if me not in json.loads(store.get("hub/all")):
            raise self._mismatch("a run of other machines is in progress there")
        self.complete = True

    def _mismatch(self, what: str) -> HubError:
        return LaunchError(
            f"launch.rdzv_endpoint={self.endpoint}: {what}. Type the same launch.nnodes and another launch.node_rank on each "
            "machine, and for a second run another port"
        )

    def get_backend(self) -> str:
        """The name in torch's events."""
        return "static"

    @property
    def use_agent_store(self) -> bool:
        """Workers use the store of machine 0 too."""
        return True

    def get_run_id(self) -> str:
        """The id of the run, equal on all machines."""
        return f"hub-{self.endpoint}"

    def is_closed(self) -> bool:
        """Whether machines can't come any more. Not used: the number of machines is fixed."""
        return False

    def set_closed(self) -> None:
        """Do nothing."""

    def num_nodes_waiting(self) -> int:
        """Machines that came late: none are let in."""
        return 0

    def shutdown(self) -> bool:
        """Do nothing: the store ends with this process."""
        return True
