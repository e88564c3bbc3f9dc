"""Devices that are asked for by name."""

from typing import TYPE_CHECKING

from sparing.errors import ArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["usable_device"]


def usable_device(device: "str | torch.device", *, name: str = "device") -> "torch.device":
    """Finds a device.

    Args:
        device: cpu, cuda, cuda:1, ...
        name: of the argument, for messages.

    Raises:
        ArgumentError: no such device here.
    """
    import torch

    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"{name}: {str(device)!r} is not usable here: {reason}") from None
    if found.type == "meta":
        raise ArgumentError(f"{name}: 'meta' holds no numbers; take cpu or cuda")
    return found
