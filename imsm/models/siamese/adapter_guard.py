"""Detect that PEFT changed the adapter of a siamese model after the model was built.

Merging, removing or switching an adapter changes the layers that both streams share: the original stream would become
the tuned model, for example. PEFT reports none of this to the siamese model. PEFT's `disable_adapter()` is allowed:
within it the tuned stream is the original, as in a plain PEFT model.
"""

from collections.abc import Callable
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from imsm.utils.errors import UserError


@dataclass(frozen=True)
class _Place:
    """One tuner layer in its parent, and the adapters that were active in it."""

    parent: nn.Module
    name: str
    layer: nn.Module
    active: list[str]

    def is_removed(self) -> bool:
        """Whether the layer is unused; a wrapper around it (FSDP, `torch.compile`) still uses it."""
        found = getattr(self.parent, self.name, None)
        return found is not self.layer and (found is None or all(each is not self.layer for each in found.modules()))

    def is_merged(self) -> bool:
        """Whether the adapter is part of the base layer's weight."""
        return bool(getattr(self.layer, "merged_adapters", ()))

    def is_switched(self) -> bool:
        """Whether another adapter is active."""
        return list(self.layer.active_adapters) != self.active  # type: ignore[arg-type]


_CHANGES: tuple[tuple[Callable[[_Place], bool], str, str], ...] = (
    (_Place.is_removed, "was removed", "load the model again; model.merge_and_unload() returns a plain model"),
    (_Place.is_merged, "is merged into the backbone's weights", "call model.adapted.unmerge_adapter()"),
    (_Place.is_switched, "is not the active one", "call model.adapted.set_adapter('{name}')"),
)


class AdapterGuard:
    """The adapter of a model as it was when the siamese model was built."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model if isinstance(model, PeftModel) else None
        self._active = None if self._model is None else self._model.active_adapter
        self._places = [
            _Place(parent, name, child, list(child.active_adapters))
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, BaseTunerLayer | AuxiliaryTrainingWrapper)
        ]

    def check(self, *, first_layer_only: bool = False) -> None:
        """Raise UserError if a change through PEFT made a stream wrong.

        A check of all layers takes about a millisecond; PEFT changes all layers of an adapter at once.
        """
        places = self._places[:1] if first_layer_only else self._places
        if self._model is not None and self._active not in self._model.peft_config:
            self._reject(*_CHANGES[0][1:])
        for changed, problem, fix in _CHANGES:
            if any(changed(place) for place in places):
                self._reject(problem, fix)
        if self._model is not None and self._model.active_adapter != self._active:
            self._reject("is not the active one", "call model.adapted.set_adapter('{name}')")

    def _reject(self, problem: str, fix: str) -> None:
        raise UserError(
            f"model.adapted: its adapter {self._active!r} {problem}, so the streams are not those of this model; "
            f"{fix.format(name=self._active)}"
        )
