"""Rules by which ``torch.vmap`` makes one call of an operator out of the calls for all slices.

A slice's results are those of the operator called for it alone, to the bit: rows don't depend on their neighbours.
Without a rule torch calls an operator once per slice, and warns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Any, Any]]
"""(operator, info, in_dims, *arguments) -> (results, out_dims): after the operator itself what
:func:`torch.library.register_vmap` takes."""


def rows(*names: str) -> Callable[[Sequence[str]], Rule]:
    """For an operator whose results, and those of its arguments that are called ``names``, begin with an axis of rows:
    the slices become further rows. Where another argument differs from slice to slice, they are called one by one."""

    def for_arguments(arguments: Sequence[str]) -> Rule:
        unknown = set(names) - set(arguments)
        if unknown:
            raise ValueError(f"the operator has no arguments {sorted(unknown)}, only {list(arguments)}")
        by_row = [name in names for name in arguments]

        def rule(operator: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Any, Any]:
            size = info.batch_size
            if size == 0:
                return _no_slices(operator, in_dims, given)
            if any(isinstance(dim, int) and not has_rows for dim, has_rows in zip(in_dims, by_row)):
                return _one_by_one(operator, size, in_dims, given)
            folded = [
                _in_front(value, dim, size).flatten(0, 1) if has_rows and isinstance(value, Tensor) else value
                for value, dim, has_rows in zip(given, in_dims, by_row)
            ]
            return _with_dims(operator(*folded), lambda result: _unfolded(result, size))

        return rule

    return for_arguments


def batches(broadcast: Sequence[str] = (), **own_axes: int | str) -> Callable[[Sequence[str]], Rule]:
    """For an operator whose arguments have any number of batch axes before their own ones, and whose results have the
    batch axes of its arguments: the slices become the first batch axis.

    ``own_axes`` is the number of an argument's own axes, or, where that depends on how rotations are written, the name
    of the argument that says so. Arguments called ``broadcast`` are broadcast by the operator itself.
    """

    def for_arguments(arguments: Sequence[str]) -> Rule:
        unknown = {*own_axes, *broadcast} - set(arguments)
        if unknown:
            raise ValueError(f"the operator has no arguments {sorted(unknown)}, only {list(arguments)}")

        def rule(operator: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Any, Any]:
            size = info.batch_size
            if size == 0:
                return _no_slices(operator, in_dims, given)
            if any(isinstance(dim, int) and name not in own_axes for name, dim in zip(arguments, in_dims)):
                return _one_by_one(operator, size, in_dims, given)
            options = dict(zip(arguments, given))
            batch_axes = {}
            for name, value, dim in zip(arguments, given, in_dims):
                if name in own_axes and isinstance(value, Tensor):
                    own = own_axes[name]
                    if isinstance(own, str):
                        own = 3 if options[own] == "matrix" else 2
                    batch_axes[name] = value.dim() - own - isinstance(dim, int)
            most = max(batch_axes.values())
            widened = []
            for name, value, dim in zip(arguments, given, in_dims):
                if name in batch_axes and (isinstance(dim, int) or name not in broadcast):
                    value = _in_front(value, dim, size)
                    value = value.reshape(size, *(1,) * (most - batch_axes[name]), *value.shape[1:])
                widened.append(value)
            return _with_dims(operator(*widened), lambda result: _leading(result, size))

        return rule

    return for_arguments


def _in_front(value: Tensor, dim: int | None, size: int) -> Tensor:
    """(size, ...): the slices, or one for all."""
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _unfolded(result: Tensor, size: int) -> Tensor:
    if result.shape == (0,):  # what was not asked for has no elements and no rows
        return result.expand(size, 0)
    return result.unflatten(0, (size, result.shape[0] // size))


def _leading(result: Tensor, size: int) -> Tensor:
    return result.expand(size, 0) if result.shape == (0,) else result


def _with_dims(results: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    if isinstance(results, Tensor):
        return change(results), 0
    return tuple(change(result) for result in results), (0,) * len(results)


def _one_by_one(operator: Callable[..., Any], size: int, in_dims: tuple[Any, ...], given: Sequence[Any]) -> Any:
    slices = [
        operator(*(x.select(dim, number) if isinstance(dim, int) else x for x, dim in zip(given, in_dims)))
        for number in range(size)
    ]
    if isinstance(slices[0], Tensor):
        return torch.stack(slices), 0
    return tuple(torch.stack(parts) for parts in zip(*slices)), (0,) * len(slices[0])


def _no_slices(operator: Callable[..., Any], in_dims: tuple[Any, ...], given: Sequence[Any]) -> Any:
    """No slice tells the shapes of the results, and a slice of zeros does."""
    zeros = [_zero_slice(x, dim) if isinstance(dim, int) else x for x, dim in zip(given, in_dims)]
    return _with_dims(operator(*zeros), lambda result: result.expand(1, *result.shape)[:0])


def _zero_slice(value: Tensor, dim: int) -> Tensor:
    if value.is_floating_point():
        return value.sum(dim)  # by way of which autograd reaches the argument
    return value.new_zeros(value.movedim(dim, 0).shape[1:])
