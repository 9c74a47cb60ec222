"""Collecting the next rollouts while a policy learns from those before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.collectors import BaseCollector


class CollectorAhead:
    """Lets a collector work on the next batch while the caller learns from this one.

    So a batch comes from the policy before the last update: one behind, never more, and as the
    collector is told of new weights between two batches only, a batch comes from one policy and a
    run can be repeated. (:class:`torchrl.collectors.MultiAsyncCollector` changes weights in the
    middle of a step, and throws away what it is collecting when its state is asked for.)

    Args:
        collector: one whose work is done by other processes, with a policy of its own: TorchRL's
            multiprocessed collectors put the parameters that they are given into shared memory,
            where the workers would see them change.
        policy: the one that learns.
        batches: that are wanted of it in all.

    Attributes:
        updates_behind: updates that the caller was ahead of the policy that has collected the
            latest batch: 0 for the first one, then 1.
    """

    def __init__(self, collector: BaseCollector, policy: nn.Module, batches: int) -> None:
        self.collector, self.updates_behind = collector, 0
        self._policy = policy
        self._wanted, self._given = batches, 0
        self._thread = ThreadPoolExecutor(1)
        self._batches = iter(collector)
        self._next: Future[TensorDictBase] | None = None

    def __iter__(self) -> Iterator[TensorDictBase]:
        while self._given < self._wanted:
            self.updates_behind = int(self._next is not None)
            batch = (self._next or self._begin()).result()
            self._given += 1
            self._next = self._begin() if self._given < self._wanted else None
            yield batch

    def _begin(self) -> Future[TensorDictBase]:
        self.collector.update_policy_weights_(TensorDict.from_module(self._policy).data)
        # Processes write into the same memory again, so the batch is copied.
        return self._thread.submit(lambda: next(self._batches).clone())

    def update_policy_weights_(self) -> None:
        """Nothing yet: the collector is told between two batches."""

    def reset(self) -> None:
        """Begin where the state that was loaded says."""
        self.collector.reset()

    def state_dict(self) -> dict[str, Any]:
        """All that the batches after this one follow from; the next one is in it."""
        ready = {} if self._next is None else self._next.result().flatten_keys("/").to_dict()
        return {"collector": self.collector.state_dict(), "given": self._given, "next": ready}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, after a :meth:`reset`."""
        self.collector.load_state_dict(state["collector"])
        self._given = state["given"]
        if state["next"]:
            self._next = Future()
            self._next.set_result(TensorDict(state["next"]).auto_batch_size_(2).unflatten_keys("/"))

    def shutdown(self) -> None:
        """End the processes, when the batch that they are at is there."""
        if self._next is not None:
            wait([self._next])
        self._thread.shutdown()
        self.collector.shutdown()
