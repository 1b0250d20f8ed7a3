"""Batch normalisation over the whole batch where several processes have a share of it each."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deepfake.ranks import Ranks


class WholeBatch(TorchFunctionMode):
    """While it lasts, batch normalisation that trains takes mean and variance of the shares of all ranks.

    PyTorch's own such layer works on graphics cards alone, and counts every image.

    Args:
        ranks: each of which enters it for the same layers.
        count: first images of this rank's share that are part of the batch; any others only fill up.
    """

    def __init__(self, ranks: Ranks, count: int) -> None:
        super().__init__()
        self.ranks, self.count = ranks, count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._normalised if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _normalised(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As `torch.nn.functional.batch_norm`."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        values = input.float()
        over = [0, *range(2, values.dim())]
        channels = [1, -1, *[1] * (values.dim() - 2)]
        counted = values[: self.count]
        number = counted.numel() // counted.shape[1]
        mean = counted.sum(over) / max(number, 1)
        squares = (counted - mean.view(channels)).square().sum(over)
        # One row a rank; the sum over the shares from the sums within them, which loses no digits.
        row = torch.cat([mean, squares, mean.new_tensor([number])])
        rows = _Gathered.apply(row, self.ranks)
        means, squares, numbers = rows[:, : len(mean)], rows[:, len(mean) : -1], rows[:, -1:]
        total = numbers.sum()
        mean = (means * numbers).sum(0) / total
        variance = (squares + (means - mean).square() * numbers).sum(0) / total
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * total / (total - 1).clamp(min=1)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        output = (values - mean.view(channels)) * (variance + eps).rsqrt().view(channels)
        if weight is not None:
            output = output * weight.view(channels)
        if bias is not None:
            output = output + bias.view(channels)
        return output.to(input.dtype)


class _Gathered(torch.autograd.Function):
    """The row of every rank, (world, n), of this rank's, (n,)."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        rows = row.new_zeros(ranks.world, len(row))
        rows[ranks.rank] = row
        return ranks.total(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.ranks.total(gradient.clone())[ctx.ranks.rank], None
