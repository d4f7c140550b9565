"""Squares of a matrix, each laid out as one row, and back."""

import math

import torch
from jaxtyping import Shaped
from torch import Tensor


def counts(shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
    """How many matrices there are, and how many squares each has downwards and across."""
    rows, cols = _sides(shape)
    return math.prod(shape[:-2]), -(-rows // size), -(-cols // size)


def cut(x: Shaped[Tensor, "*shape"], size: int) -> Shaped[Tensor, "tiles numbers"]:
    """The squares of the last two axes, row by row of squares; zeros fill those at the edges."""
    rows, cols = _sides(x.shape)
    matrices, down, across = counts(x.shape, size)
    edges = (0, -cols % size, 0, -rows % size)
    whole = torch.nn.functional.pad(x.reshape(matrices, rows, cols), edges)
    squares = whole.view(matrices, down, size, across, size)
    return squares.transpose(2, 3).reshape(matrices * down * across, size * size)


def joined(
    tiles: Shaped[Tensor, "tiles numbers"], shape: tuple[int, ...], size: int
) -> Shaped[Tensor, "*shape"]:
    """What `cut` took apart."""
    rows, cols = _sides(shape)
    matrices, down, across = counts(shape, size)
    whole = tiles.view(matrices, down, across, size, size).transpose(2, 3)
    return whole.reshape(matrices, down * size, across * size)[:, :rows, :cols].reshape(shape)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of each matrix; a vector is one row."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[-2], shape[-1])
