"""`mode=plan`: what a run would be and take; nothing is loaded, fetched or written."""

from __future__ import annotations

from imsm.assemble import count_trainable, put_together
from imsm.backbones.skeleton import build_skeleton, find_configuration
from imsm.config import RunConfig
from imsm.stages.parts import adapter_of, parts_of


def print_plan(config: RunConfig) -> None:
    """Print the plan of one run."""
    import torch

    configuration, _ = find_configuration(
        path=config.backbone.path,
        revision=config.backbone.revision,
        architecture=config.backbone.architecture,
    )
    plain = build_skeleton(configuration, dtype=config.backbone.dtype, attn_implementation="sdpa")
    adapter = adapter_of(config) if config.method.trained else None
    with torch.device("meta"):
        model = put_together(plain, adapter=adapter, **parts_of(config))
    counts = count_trainable(model)
    print(
        f"trainable parameters: {sum(counts.values()):,} "
        f"(adapter {counts['adapter']:,}, gate {counts['gate']:,})"
    )
