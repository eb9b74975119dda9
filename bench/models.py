"""How far log-probs through our policy and sampler are from plain transformers', by model type, on small random models.

    python -m bench models [TYPE ...]

For each type a random model in float32 with two layers or more, saved and loaded as `luspo train` loads it. The sampler draws
responses to three prompts (prefill once a prompt, cached decode steps); the policy computes their log-probs with rows end to end
and each prompt once; transformers computes them row by row with its written-out attention. Where a type has a sliding window
it is 5 tokens, and rows are 14 to 19. The table of docs/models.md is what this prints; a type that is refused says why.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
WINDOW = {"sliding_window": 5}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA = MIXED | {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
MODELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Llama", "Llama 2 and 3", {}),
    ("Llama", "Llama 3.1, scaled positions", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    ("Qwen2", "Qwen2, Qwen2.5", {}),
    ("Qwen2", "Qwen2 with a window", MIXED | {"use_sliding_window": True}),
    ("Qwen3", "Qwen3", {"head_dim": 8}),
    ("Qwen3", "Qwen3 with a window", MIXED | {"head_dim": 8, "use_sliding_window": True}),
    ("Qwen2Moe", "Qwen2-MoE", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                               "shared_expert_intermediate_size": 40}),
    ("Qwen3Moe", "Qwen3-MoE", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}),
    ("SmolLM3", "SmolLM3", {"no_rope_layers": [1, 0]}),
    ("SmolLM3", "SmolLM3 with a window", MIXED | {"use_sliding_window": True}),
    ("Phi3", "Phi-3, Phi-4", {"sliding_window": None}),
    ("Phi3", "Phi-3 with a window", WINDOW),
    ("Mistral", "Mistral without a window", {"sliding_window": None}),
    ("Mistral", "Mistral with a window", WINDOW),
    ("Ministral", "Ministral", MIXED | {"head_dim": 8}),
    ("Mixtral", "Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    ("Mixtral", "Mixtral with a window", WINDOW | {"num_local_experts": 4}),
    ("Phimoe", "Phi-3.5-MoE", {"num_local_experts": 4, "sliding_window": None}),
    ("Gemma", "Gemma", {"head_dim": 8, "tie_word_embeddings": True}),
    ("Gemma2", "Gemma 2: window, bounded scores and logits", GEMMA | {
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    ("Gemma3Text", "Gemma 3, text", GEMMA),
    ("VaultGemma", "VaultGemma", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    ("Olmo", "OLMo", {}),
    ("Olmo2", "OLMo 2", {}),
    ("Olmo3", "OLMo 3", MIXED),
    ("Glm", "GLM-4 (glm)", {"head_dim": 8}),
    ("Glm4", "GLM-4-0414 (glm4)", {"head_dim": 8}),
    ("Cohere", "Command R, logit_scale 1", {"logit_scale": 1.0}),
    ("Granite", "Granite, logits_scaling 1", {}),
    ("StableLm", "StableLM", {}),
    ("Starcoder2", "StarCoder2", {"sliding_window": None}),
    ("Starcoder2", "StarCoder2 with a window", WINDOW),
    ("SeedOss", "Seed-OSS", {"head_dim": 8}),
    ("Exaone4", "EXAONE 4", MIXED),
    ("Helium", "Helium", {"head_dim": 8}),
    ("Arcee", "Arcee", {}),
    ("Apertus", "Apertus", {}),
    ("Nemotron", "Nemotron", {}),
    ("Ernie4_5", "ERNIE 4.5", {"head_dim": 8}),
    ("HunYuanDenseV1", "Hunyuan, dense", {"head_dim": 8}),
    ("DeepseekV2", "DeepSeek-V2", LATENT),
    ("DeepseekV3", "DeepSeek-V3", LATENT),
    ("OPT", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ("Qwen3Next", "Qwen3-Next", {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
                                 "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                                 "shared_expert_intermediate_size": 24}),
    ("Qwen3_5Text", "Qwen3.5, text", {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    ("GptOss", "gpt-oss", MIXED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Cohere2", "Command A", MIXED),
    ("GPT2", "GPT-2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
)  # fmt: skip
"""Class in transformers, what it is known as, and the entries in which its configuration differs from `SIZES`."""


def made(family: str, changes: dict[str, Any]) -> Any:
    """A random model whose weights are large enough that a wrong mask or factor moves its log-probs."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family.removesuffix('Text')}ForCausalLM"
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" not in key and weight.dim() > 1:
                weight.normal_(0.0, 0.2)
    return model.float()


def measured(family: str, changes: dict[str, Any]) -> Any:
    """The `Agreement` of a random model, saved and loaded again; raises UsageError where it is refused."""
    from luspo_cli.config.model import ModelConfig
    from luspo_cli.policy.loading import load_model
    from luspo_cli.rollout.in_process.agreement import measure
    from luspo_cli.training.made.build import made_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        made(family, changes).save_pretrained(folder)
        made_tokenizer(64).save_pretrained(folder)
        return measure(load_model(ModelConfig(path=folder)).model.eval())


def main() -> None:
    import transformers

    from luspo_cli.errors import UsageError
    from luspo_cli.policy.loading import no_progress_bars

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="classes of transformers, as Qwen3; all by default")
    asked = parser.parse_args().types
    no_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, float32, largest |difference| of a log-prob in nats:\n")
    print("| model | `model_type` | policy | sampler |\n|---|---|---|---|")
    refused = []
    for family, known, changes in MODELS:
        if asked and family not in asked:
            continue
        kind = getattr(transformers, f"{family}Config").model_type
        try:
            found = measured(family, changes)
        except UsageError as error:
            refused.append(f"| {known} | `{kind}` | {str(error).split(maxsplit=2)[2]} |")
        else:
            print(f"| {known} | `{kind}` | {found.policy:.1e} | {found.sampler:.1e} |", flush=True)
    if refused:
        print("\n| refused | `model_type` | why |\n|---|---|---|", *refused, sep="\n")


if __name__ == "__main__":
    main()
