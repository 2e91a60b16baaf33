"""vLLM plugin: both streams and the gate of a run, on vLLM's own engine.

`imsm export RUN --vllm DIR` writes a folder for ``vllm serve DIR``. The plugin is tested with vLLM 0.32; it imports
no other part of imsm, whose transformers that version of vLLM does not accept, so it is installed with
``pip install --no-deps``.

The stock model runs on 2N rows for N tokens: first those of the original, then those of the tuned model. Embeddings,
norms, positions and linear layers treat rows independently; adapted layers add a change to the second half. Each
attention layer has twice the heads, so that one entry of the paged cache holds keys and values of both streams
(`imsm.serving.vllm.internals`); two more attention layers carry the query state (`imsm.serving.vllm.query_memory`).
"""

ARCHITECTURES = {
    "Gemma3ForCausalLM": "SiameseGemma3ForCausalLM",
    "LlamaForCausalLM": "SiameseLlamaForCausalLM",
    "MistralForCausalLM": "SiameseMistralForCausalLM",
    "Qwen2ForCausalLM": "SiameseQwen2ForCausalLM",
    "Qwen3ForCausalLM": "SiameseQwen3ForCausalLM",
}
"""Architectures of transformers, and the plugin's for both streams."""
VLLM_VERSION = "0.32"
"""The minor version of vLLM whose internals the plugin knows."""


def register() -> None:
    """Register the architectures with vLLM; called by vLLM in each of its processes.

    Raises:
        ImportError: another version of vLLM is installed.
    """
    import vllm
    from vllm import ModelRegistry

    if not vllm.__version__.startswith(f"{VLLM_VERSION}."):
        raise ImportError(f"vllm=={vllm.__version__}: imsm.serving.vllm needs {VLLM_VERSION}.*; install that version")
    from imsm.serving.vllm.internals import register_config_hook

    for name in ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"imsm.serving.vllm.model:{name}")
        register_config_hook(name)
