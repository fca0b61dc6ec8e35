"""Several processes that compute one night: the first does all that it does alone, the others help it compute.

`torchrun` and `accelerate launch` start the same command several times and number the processes in the environment.
The first one, rank 0, opens the store, decides, writes and prints. The others wait for what it asks them to compute
with it: its data is sent to them, and each computes its share. A process alone is a world of one: nothing is sent,
and torch.distributed is not imported.

Home and cache folder must be the same for all, on a file system that all nodes see.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from assistant.errors import AssistantError
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: rank 0 has much to do alone. Launchers end all when one fails."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T], size: Callable[[T], int]) -> list[T]:
        """Give this process its part of what all have: the largest first, each to whom has least so far."""
        if self.size == 1:
            return list(items)
        loads = [0] * self.size
        mine = []
        for item in sorted(items, key=size, reverse=True):
            rank = loads.index(min(loads))
            loads[rank] += size(item)
            if rank == self.rank:
                mine.append(item)
        return mine

    def tell(self, value: T) -> T:
        """Return rank 0's value to all."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, mine: Mapping[str, T]) -> dict[str, T]:
        """Join the entries of all, for all."""
        if self.size == 1:
            return dict(mine)
        from torch import distributed

        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, dict(mine))
        return {key: value for part in parts for key, value in part.items()}

    def add(self, tensors: Sequence["Tensor"]) -> None:
        """Add up each tensor over all processes, in place, in one message."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    @contextmanager
    def together(self, helper: Callable[..., None], *arguments: Any) -> Iterator[None]:
        """Compute the block on rank 0 while all others call `helper(*arguments, world)`.

        Args:
            helper: a module's function that sends and receives as the block does.
            arguments: can be pickled.
        """
        if self.size == 1:
            yield
            return
        from torch import distributed

        self.tell((helper, arguments))
        try:
            yield
        except BaseException:
            distributed.destroy_process_group()  # the others would wait for what never comes
            raise


ALONE = World()


@contextmanager
def open_world() -> Iterator[World]:
    """Join the processes that a launcher started with this one, if there are any."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), size)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def lead(world: World, command: Callable[[], int]) -> int:
    """Run a command on rank 0, and let the others go with its exit status however it ends."""
    status = 1
    try:
        status = command()
    finally:
        if world.size > 1:
            from torch import distributed

            if distributed.is_initialized():  # else they have gone already
                world.tell(status)
    return status


def follow(world: World) -> int:
    """Help rank 0 until it ends; return its exit status, or 1 where this process cannot go on."""
    while True:
        asked: Any = world.tell(None)
        if isinstance(asked, int):
            return asked
        helper, arguments = asked
        try:
            helper(*arguments, world)
        except (FinetuneError, AssistantError) as error:
            sys.stderr.write(f"Process {world.rank}: {error}\n")
            return 1
