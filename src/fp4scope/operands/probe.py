"""What quantizing does at one matrix product, apart from all that follows."""

from typing import NamedTuple

from torch import Tensor

from fp4scope.operands.apply import Injector
from fp4scope.treatments import Setting


class Moved(NamedTuple):
    """By how much a product's output moves when its operands are quantized: W x to Wq xq.

    Attributes:
        weight: (Wq - W) x; None where the weight is left alone.
        input: Wq (xq - x), with W for Wq where the weight is; None where the input is left alone.
    """

    weight: Tensor | None
    input: Tensor | None

    @property
    def total(self) -> Tensor:
        """Of both together."""
        if self.weight is None or self.input is None:
            found = self.input if self.weight is None else self.weight
            assert found is not None
            return found
        return self.weight + self.input


def moved(injector: Injector, name: str, setting: Setting, x: Tensor) -> Moved:
    """What quantizing a product as a setting says does to its output.

    Each part is a product with a difference that was taken first, so nothing cancels, not even in
    BF16.

    Args:
        injector: Of the model; settings may be applied meanwhile.
        name: The product's.
        setting: How its operands are treated.
        x: What enters it, unquantized.

    Raises:
        NonFiniteError: The calibrated amax is 0, but `x` is not.
        UnitError: The model has no such product, or the calibration has not.
    """
    product, weight = injector.product(name), injector.weight(name)
    image, by_weight, by_input = weight, None, None
    if setting.weight is not None:
        image = injector.quantized_weight(name, setting.weight)
        by_weight = product.times(x, image - weight)
    if setting.input is not None:
        by_input = product.times(injector.quantized_input(name, setting.input, x) - x, image)
    return Moved(by_weight, by_input)
