"""Measure what PEFT and IMSM teach a language model, and what they make it forget.

The packages, from top to bottom: ``cli``, ``serving``, ``studies``, ``pipeline``, ``reporting``,
``config``, ``training`` and ``evaluation``, ``models``, ``data`` and ``distributed``, ``utils``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imsm.models.api import get_siamese_model
    from imsm.models.siamese.config import SiameseConfig
    from imsm.models.siamese.model import SiameseForCausalLM

__version__ = "0.1.0"
__all__ = ["SiameseConfig", "SiameseForCausalLM", "__version__", "get_siamese_model"]


def __getattr__(name: str) -> Any:
    """Import the model on first use, because importing torch and transformers takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'imsm' has no attribute {name!r}")
    # for all names, because this module registers the classes with the auto classes of transformers
    from imsm.models import api

    return getattr(api, name)
