"""The longest sequence that a backbone's positions allow."""

from transformers import PretrainedConfig


def position_limit(config: PretrainedConfig) -> int | None:
    """Return the number of positions of a model, or None if its configuration states no limit.

    A factor of its rotary embeddings extends the positions that the model was trained with
    (``original_max_position_embeddings``, else ``max_position_embeddings``). A sliding window is not a limit.
    """
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    # one setting for all layers, or one per kind of layer
    settings = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    extended = [
        int((setting.get("original_max_position_embeddings") or positions) * setting["factor"])
        for setting in settings
        if setting.get("factor")
    ]
    return max([positions, *extended])
