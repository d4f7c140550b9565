"""Quantize operands of linears while the model runs its own forward, and undo it exactly.

Inside `with injector.applied(settings)` a linear's weight *parameter* is replaced by one that
holds its quantized-dequantized image, and its input likewise as it enters. The original parameter
objects are put back afterwards, also after an exception, so the model is the same to the bit: no
value is ever written into it. The forward that runs is the model's own, whatever its code does.

Quantized weights are kept from one `with` to the next, by linear and treatment, until `forget`. An
input that several linears share (q/k/v, gate/up) is quantized once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from fp4scope.errors import NonFiniteError, UnitError
from fp4scope.kernels import activation_of, is_fused, qdq_gated
from fp4scope.operands.adapters import Input, Operand, Product
from fp4scope.operands.experts import experts_in, routed
from fp4scope.operands.fitted import Fits, Moments
from fp4scope.operands.images import Images, places_of
from fp4scope.operands.inputs import Amaxes, Chosen, SeveralTimes, SharedInput, straight_through
from fp4scope.operands.nonfinite import nonfinite_cause
from fp4scope.operands.products import operand_at, place_of, product_at
from fp4scope.operands.treated import image_of, noisy
from fp4scope.recipes import Part
from fp4scope.treatments import Amax, Setting, Treatment


class Injector:
    """Applies settings to the linears of one model.

    Args:
        model: The model. Between `with` blocks it is as it was.
        calibrated: Amax of each linear's input by its full name, for treatments with a calibrated
            tensor scale. Under others each window (an axis-0 entry of a 3-d input) has its own.
        by_expert: The same for each expert of those that hold experts, for treatments that want it.
        parts: Of linears whose parts are sites: all of them, by the linear's name.
        fused: Products that have one tensor scale of weights, by the name of each of them; by
            default each has its own.
    """

    def __init__(
        self,
        model: nn.Module,
        calibrated: Mapping[str, float] | None = None,
        by_expert: Mapping[str, Sequence[float]] | None = None,
        parts: Mapping[str, Sequence[Part]] | None = None,
        fused: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.model = model
        self.calibrated = dict(calibrated or {})
        self.by_expert = {name: tuple(amaxes) for name, amaxes in (by_expert or {}).items()}
        self._fused = dict(fused or {})
        self._fits = Fits(lambda name: self.product(name).shaped(self._original(name)))
        self._images = Images(
            lambda name, weight: self._flag(name, "weight", weight),
            self._scale_partners,
            self._fits.of,
        )
        self._parts = {name: tuple(of) for name, of in (parts or {}).items()}
        # What a site is: a product, or one of its experts or parts.
        self._places: dict[str, tuple[str, int | None]] = {
            f"{name}.{part.name}": (name, number)
            for name, of in self._parts.items()
            for number, part in enumerate(of)
        }
        self._products: dict[str, Product] = {}
        self._operands: dict[str, Operand] = {}
        self._experts = experts_in(model)
        # What stands in the model while an image is in its place; None while nothing is applied.
        self._originals: dict[str, nn.Parameter] | None = None
        # One for each weight and each input that was quantized; true only when an error follows.
        self._flags: dict[tuple[str, str], Tensor] = {}
        self._amaxes: dict[tuple[str, Amaxes, torch.device], Tensor] = {}
        self._shared: SharedInput | None = None
        # Modules whose whole input is quantized in one way, by identity: name and how.
        self._whole: dict[int, tuple[str, list[Chosen]]] = {}

    @contextmanager
    def applied(self, settings: Mapping[str, Setting], *, check: bool = True) -> Iterator[None]:
        """The model with these settings, until the block ends.

        Args:
            settings: By full module name, such as `model.layers.0.mlp.up_proj`. An expert of
                several in one tensor has a name with its number, `mlp.experts.7.down_proj`, and a
                part of a linear one with the part's name behind it.
            check: Check the inputs when the block ends, which waits for its forwards. Else
                call `check` after several blocks.

        Raises:
            NonFiniteError: NaN or Inf in a weight or an input, said when the block ends.
            UnitError: The model has no such linear, or the calibration has not.
        """
        if self._originals is not None:
            raise RuntimeError("this injector is applied already; leave that block first")
        self._originals = {}
        with ExitStack() as undo:
            undo.callback(self._leave)
            undo.enter_context(routed(self._experts))
            try:
                for name, pieces in self._by_product(settings).items():
                    self._apply(name, pieces, undo)
                yield
                if check:
                    self.check()
            except BaseException:
                self._unread()
                raise

    def _by_product(self, settings: Mapping[str, Setting]) -> dict[str, dict[int, Setting]]:
        """By product, and expert or part from 0. One that has several names has the first."""
        found: dict[str, dict[int, Setting]] = {}
        named: dict[tuple[int, str] | str, str] = {}
        for site, setting in settings.items():
            name, piece = self._place(site)
            every = range(self._pieces(name)) if piece is None else (piece,)
            operand = self._operand(name)
            same = operand.identity if isinstance(operand, Product) else name
            own = named.setdefault(same, name)
            found.setdefault(own, {}).update(dict.fromkeys(every, setting))
        # What a cache holds first: a linear may quantize it again as it enters.
        return dict(
            sorted(found.items(), key=lambda item: isinstance(self._operand(item[0]), Product))
        )

    def _pieces(self, name: str) -> int:
        """Of how many experts or parts a product is."""
        return len(self._parts[name]) if name in self._parts else self._operand(name).experts

    def _apply(self, name: str, settings: Mapping[int, Setting], undo: ExitStack) -> None:
        assert self._originals is not None
        operand, parts = self._operand(name), self._parts.get(name)
        weights = {piece: s.weight for piece, s in settings.items() if s.weight is not None}
        if weights:
            product = self.product(name)
            image = self._images.of(name, product, product.parameter, weights, parts)
            self._originals[name] = product.parameter
            undo.callback(product.put(image))
        self._apply_noise(name, settings, undo)
        inputs: dict[Treatment, list[int]] = {}
        for piece, setting in settings.items():
            if setting.input is not None:
                inputs.setdefault(setting.input, []).append(piece)
        if not inputs:
            return
        chosen = [
            Chosen(treatment, self._amax(name, treatment), tuple(pieces))
            for treatment, pieces in inputs.items()
        ]
        if len(chosen) == 1 and len(chosen[0].pieces or ()) == self._pieces(name):
            chosen = [chosen[0]._replace(pieces=None)]
            if isinstance(operand, Product) and parts is None:
                self._whole[operand.identity[0]] = name, chosen
        if parts is None or chosen[0].pieces is None or parts[0].axis == "cols":
            undo.callback(operand.watch(name, partial(self._quantize_input, chosen), None))
        else:
            several = SeveralTimes(self.product(name), parts, chosen, self._quantize_input)
            undo.callback(operand.watch(name, several.before, several.after))

    def _apply_noise(self, name: str, settings: Mapping[int, Setting], undo: ExitStack) -> None:
        """Add noise to what leaves, by how much of it there is to be."""
        levels: dict[float, list[int]] = {}
        for piece, setting in settings.items():
            if setting.noise is not None:
                levels.setdefault(setting.noise, []).append(piece)
        if not levels:
            return
        if name in self._parts:
            raise UnitError(f"noise is for whole linears, and {name} is measured in parts")
        whole = self._pieces(name)

        def after(_: str, entering: Input, output: Tensor) -> Tensor:
            found = output
            for db, pieces in levels.items():
                moved = noisy(output, db)
                found = moved if len(pieces) == whole else entering.where(pieces, moved, found)
            return found

        undo.callback(self._operand(name).watch(name, None, after))

    def _leave(self) -> None:
        self._originals = self._shared = None
        self._whole = {}

    def gated(
        self,
        linear: nn.Module,
        activation: Callable[[Tensor], Tensor],
        gate: Shaped[Tensor, "*batch cols"],
        x: Shaped[Tensor, "*batch cols"],
    ) -> Tensor | None:
        """What a linear reads that is about to be called with activation(gate) * x, in one kernel.

        None where there is no such kernel, or where somebody else wants to see what enters.
        """
        name, chosen = self._whole.get(id(linear), ("", []))
        watched = len(linear._forward_pre_hooks) > 1
        # An inference tensor cannot tell the linear's own watcher that it is the same one.
        if not chosen or watched or torch.is_grad_enabled() or x.is_inference():
            return None
        (treatment, amax, _), kind = chosen[0], activation_of(activation)
        fmt = treatment.format.for_input
        # A single amax that is known before, and not one whose input has to be looked at.
        known = (isinstance(amax, float) and amax > 0) or not fmt.uses_tensor_amax
        if kind is None or not (known and treatment.is_plain and is_fused(x, fmt)):
            return None
        scale = self._scale_amax(name, Input(x), amax) if fmt.uses_tensor_amax else None
        image = qdq_gated(gate, x, kind, fmt, scale, self._flag(name, "input", x))
        # The linear's own watcher finds that it is quantized already.
        self._shared = SharedInput(image, image._version, chosen, "", image)
        return image

    def check(self) -> None:
        """Wait for the forwards so far, and complain if any quantized operand was not finite.

        Called at the end of each block, so that weights of mixed experts are let go of, too.

        Raises:
            NonFiniteError: It was; names the first such linear in the order in which they ran.
        """
        self._images.forget_mixtures()
        flags = self._flags
        if not flags or not bool(torch.stack(list(flags.values())).any()):
            self._flags = {}
            return
        first, operand = next(key for key, flag in flags.items() if bool(flag))
        self._unread()
        if operand == "weight":
            raise NonFiniteError(f"the weight of {first} has NaN or Inf; the checkpoint is damaged")
        dtype = next(self.model.parameters()).dtype
        raise NonFiniteError(
            f"the input of {first} has NaN or Inf in {dtype}, and FP4 can hold neither; "
            f"{nonfinite_cause(self.model)}"
        )

    def _unread(self) -> None:
        """Give up what was not looked at: a weight is quantized, and so looked at, once more."""
        unread = {name for name, operand in self._flags if operand == "weight"}
        self.forget(image for image in self.held if image[0] in unread)
        self._flags = {}

    @property
    def held(self) -> Set[tuple[str, Treatment]]:
        """The quantized weights that are kept, by linear and treatment."""
        return self._images.held

    def forget(self, images: Iterable[tuple[str, Treatment]] | None = None) -> None:
        """Let go of some quantized weights, by linear and treatment; of all by default."""
        for site, treatment in self.held if images is None else images:
            name, piece = self._place(site)
            self._images.forget(name, treatment, piece)
        if images is None:
            self._images.forget_mixtures()

    def fit(self, moments: Mapping[str, Moments]) -> None:
        """Take in what some products' inputs are like, for treatments that are fitted to it."""
        self._fits.take(moments)
        self.forget()

    def moved(self, name: str, setting: Setting, entering: Input) -> Tensor:
        """By how much quantizing a linear as a setting says moves its output: Wq xq - W x.

        Weight and input are told apart, (Wq - W) x + Wq (xq - x), and each part is a product with
        a difference that was taken first, so nothing cancels, not even in BF16. Settings may be
        applied meanwhile. NaN or Inf is found by `check`.

        Args:
            name: The linear's.
            setting: How its operands are treated.
            entering: What enters it, unquantized.

        Raises:
            NonFiniteError: The calibrated amax is 0, but the input is not.
            UnitError: The model has no such linear, or the calibration has not.
        """
        product = self.product(name)
        own = product.shaped(self._original(name))
        weight = own
        parts: list[Tensor] = []
        if setting.weight is not None:
            weight = self.quantized_weight(name, setting.weight)
            parts.append(product.times(entering, weight - own))
        if setting.input is not None:
            rounded = self.quantized_input(name, setting.input, entering)
            parts.append(product.times(entering._replace(x=rounded - entering.x), weight))
        return sum(parts[1:], start=parts[0])

    def quantized_weight(
        self, name: str, treatment: Treatment
    ) -> Shaped[Tensor, "*experts rows cols"]:
        """The image of a linear's weight.

        NaN or Inf is found by `check`.

        Raises:
            UnitError: The model has no such linear.
        """
        product = self.product(name)
        every = dict.fromkeys(range(self._pieces(name)), treatment)
        parts, original = self._parts.get(name), self._original(name)
        return product.shaped(self._images.of(name, product, original, every, parts))

    def quantized_input(self, name: str, treatment: Treatment, entering: Input) -> Tensor:
        """The image of what enters a linear, as it would be inside `applied`.

        NaN or Inf is found by `check`.

        Raises:
            NonFiniteError: The calibrated amax is 0, but the input is not.
            UnitError: The calibration has no such linear.
        """
        return self._input_image(name, treatment, self._amax(name, treatment), entering)

    def tensor_amax(self, name: str, treatment: Treatment, entering: Input) -> Tensor | None:
        """The amax that fixes the tensor scale of what enters a linear; None for its own.

        Raises:
            UnitError: The calibration has no such linear.
        """
        if not treatment.format.uses_tensor_amax:
            return None
        return self._scale_amax(name, entering, self._amax(name, treatment))

    def product(self, name: str) -> Product:
        """The model's product of this name.

        Raises:
            UnitError: The model has no such linear.
        """
        if name not in self._products:
            self._products[name] = product_at(self.model, name)
        return self._products[name]

    def _operand(self, name: str) -> Operand:
        """What of this name is quantized on its way."""
        if name not in self._operands:
            self._operands[name] = operand_at(self.model, name)
        return self._operands[name]

    def _place(self, site: str) -> tuple[str, int | None]:
        """The product that a site is, and which of its experts or parts if it is one."""
        if site not in self._places:
            self._places[site] = place_of(self.model, site)
        return self._places[site]

    def _original(self, name: str) -> nn.Parameter:
        if self._originals is not None and name in self._originals:
            return self._originals[name]
        return self.product(name).parameter

    def _scale_partners(self, name: str) -> list[tuple[Product, nn.Parameter]]:
        """Others that share a product's tensor scale, as they are when nothing is applied."""
        others = [other for other in self._fused.get(name, ()) if other != name]
        return [(self.product(other), self._original(other)) for other in others]

    def _amax(self, name: str, treatment: Treatment) -> Amaxes:
        if treatment.tensor_scale in (None, Amax.WINDOW):
            return None
        if name not in self.calibrated:
            raise UnitError(
                f"the input of {name} has no calibrated amax ({len(self.calibrated)} linears have "
                "one); calibrate it, or use --activation-scale dynamic"
            )
        each = self.by_expert.get(name) if treatment.tensor_scale is Amax.EXPERT else None
        return self.calibrated[name] if each is None else each

    def _quantize_input(self, chosen: Sequence[Chosen], name: str, entering: Input) -> Tensor:
        x = entering.x
        # Parts of inputs are not those of another linear that reads the same tensor, nor is what
        # is fitted to its weight.
        fitted = any(treatment.fit for treatment, _, _ in chosen)
        apart = name if fitted or name in self._parts else ""
        if self._shared is not None and self._shared.is_for(x, chosen, apart):
            for each in chosen:
                self._check_amax(name, each.amax, x)
            return self._shared.image
        image = x
        for treatment, amax, pieces in chosen:
            rounded = self._input_image(name, treatment, amax, entering)
            if pieces is None:
                image = rounded
            elif name in self._parts:
                cols = places_of(self._parts[name], pieces, x.device)
                image = image.index_copy(-1, cols, rounded.index_select(-1, cols))
            else:
                image = entering.where(pieces, rounded, image)
        if torch.is_grad_enabled() and x.requires_grad:
            image = straight_through(x, image)
        if not x.is_inference():  # such tensors cannot tell whether they were changed
            self._shared = SharedInput(x, x._version, chosen, apart, image)
        return image

    def _input_image(
        self, name: str, treatment: Treatment, amax: Amaxes, entering: Input
    ) -> Tensor:
        self._check_amax(name, amax, entering.x)
        flag = self._flag(name, "input", entering.x)

        def scale_amax(x: Tensor) -> Tensor | None:
            if not treatment.format.uses_tensor_amax:
                return None
            return self._scale_amax(name, entering._replace(x=x), amax)

        fits = self._fits.of(name, treatment)
        return image_of(entering.x, treatment, scale_amax, flag, entering=True, **fits)

    def _check_amax(self, name: str, amax: Amaxes, x: Tensor) -> None:
        if amax == 0 and bool(x.any()):
            raise NonFiniteError(
                f"the calibrated amax of the input of {name} is 0, but here it is not zero; "
                "calibrate on more text, or use --activation-scale dynamic"
            )

    def _flag(self, name: str, operand: str, x: Tensor) -> Tensor:
        if (name, operand) not in self._flags:
            self._flags[name, operand] = torch.zeros((), dtype=torch.bool, device=x.device)
        return self._flags[name, operand]

    def _scale_amax(self, name: str, entering: Input, amax: Amaxes) -> Tensor | None:
        """The calibrated one, kept on the device, that of each row's expert, or of each window."""
        x = entering.x
        if x.numel() == 0:  # an expert that no token chose
            return None
        if amax is None:
            return x.abs().flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1)) if x.ndim > 2 else None
        key = name, amax, x.device
        if key not in self._amaxes:
            self._amaxes[key] = torch.tensor(amax, dtype=torch.float32, device=x.device)
        found = self._amaxes[key]
        return found if found.ndim == 0 else entering.by_row(found)[:, None]
