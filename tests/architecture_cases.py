"""62 architectures of language models, 32 dimensions wide, with random weights; and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from llama_cases import EOS

ROWS, WIDTH, LAYERS, CONTEXT = EOS + 1, 32, 3, 64
COMMON: dict[str, Any] = {"vocab_size": ROWS, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
DEEP: dict[str, Any] = COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
GROUPED: dict[str, Any] = DEEP | {"num_key_value_heads": 2}
HEADS: dict[str, Any] = GROUPED | {"head_dim": 8}
NARROW: dict[str, Any] = COMMON | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MAMBA: dict[str, Any] = COMMON | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8}
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A kind of model: the stem of its classes in transformers, and its settings."""

    name: str
    stem: str
    settings: dict[str, Any]
    kind: str = "ForCausalLM"
    adds_up: bool = True
    """Whether pre + attn + mlp = post, of sites that are known."""
    parts: bool = True
    """Whether the sites of attention and MLP are known."""
    projection: bool = True
    """Whether the attention's output projection is known."""
    parallel: bool = False
    """Whether attention and MLP read the same, so that there is no resid_mid."""
    shifted: bool = False
    """Whether transformers' list of hidden states begins behind the first block."""
    context: int | None = CONTEXT
    config: str = ""
    """The stem of its configuration, where that is another."""
    text: dict[str, Any] = field(default_factory=dict)
    """Settings of the part for text, in a model that has others."""
    always: bool = False
    """Whether the ordinary tests have it too."""

    def make(self) -> PreTrainedModel:
        settings = self.settings | ({"text_config": self.text} if self.text else {})
        config = getattr(transformers, f"{self.config or self.stem}Config")(**settings)
        torch.manual_seed(0)
        model = getattr(transformers, f"{self.stem}{self.kind}")(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return model

    def __str__(self) -> str:
        return self.name


OPT: dict[str, Any] = COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": WIDTH,
    "max_position_embeddings": CONTEXT,
}
A = Architecture
GRANITE = {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0}
ARCHITECTURES = [
    A("gpt2", "GPT2", NARROW, "LMHeadModel", always=True),
    A(
        "gpt_neo",
        "GPTNeo",
        COMMON
        | {
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_heads": 4,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global"], LAYERS]],
        },
    ),
    A("gptj", "GPTJ", NARROW | {"rotary_dim": 4}, parallel=True),
    A("gpt_neox", "GPTNeoX", DEEP | {"use_parallel_residual": True}, parallel=True, always=True),
    A("gpt_neox_sequential", "GPTNeoX", DEEP | {"use_parallel_residual": False}),
    A("llama", "Llama", GROUPED, always=True),
    A("llama_tied", "Llama", GROUPED | {"tie_word_embeddings": True}),
    A("qwen2", "Qwen2", GROUPED, always=True),
    A("qwen3", "Qwen3", HEADS),
    A("qwen2_moe", "Qwen2Moe", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 16}),
    A("qwen3_moe", "Qwen3Moe", HEADS | EXPERTS),
    A(
        "qwen3_next",
        "Qwen3Next",
        HEADS
        | EXPERTS
        | {
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    A("gemma", "Gemma", HEADS),
    A("gemma2", "Gemma2", HEADS | {"sliding_window": 16}, always=True),
    A("gemma3", "Gemma3", HEADS | {"sliding_window": 16}, config="Gemma3Text"),
    A(
        "gemma3_vision",
        "Gemma3",
        {"vision_config": VISION},
        "ForConditionalGeneration",
        text=HEADS | {"sliding_window": 16},
        always=True,
    ),
    A("opt", "OPT", OPT, always=True),
    A("opt_post_norm", "OPT", OPT | {"do_layer_norm_before": False}, adds_up=False),
    A("phi", "Phi", DEEP, parallel=True),
    A("phi3", "Phi3", GROUPED),
    A("mistral", "Mistral", HEADS | {"sliding_window": 16}),
    A("mixtral", "Mixtral", HEADS | {"num_local_experts": 4}),
    A(
        "bloom",
        "Bloom",
        COMMON | {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4},
        context=None,
        always=True,
    ),
    A(
        "falcon",
        "Falcon",
        DEEP | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
        parallel=True,
    ),
    A("falcon_parallel", "Falcon", DEEP | {"parallel_attn": True, "alibi": False}, parallel=True),
    A("falcon_sequential", "Falcon", DEEP | {"parallel_attn": False, "alibi": True, "multi_query": False}),
    A(
        "mpt",
        "Mpt",
        COMMON
        | {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": CONTEXT},
    ),
    A("cohere", "Cohere", GROUPED, parallel=True),
    A("cohere2", "Cohere2", HEADS | {"sliding_window": 16}, parallel=True),
    A("olmo", "Olmo", GROUPED),
    A("olmo2", "Olmo2", GROUPED),
    A("olmoe", "Olmoe", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    A("stablelm", "StableLm", GROUPED),
    A("starcoder2", "Starcoder2", GROUPED),
    A("gpt_bigcode", "GPTBigCode", NARROW),
    A("codegen", "CodeGen", NARROW | {"rotary_dim": 4, "n_ctx": CONTEXT}, parallel=True),
    A(
        "xglm",
        "XGLM",
        COMMON
        | {
            "d_model": WIDTH,
            "ffn_dim": 48,
            "num_layers": LAYERS,
            "attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
    ),
    A("biogpt", "BioGpt", DEEP),
    A("glm", "Glm", HEADS),
    A("glm4", "Glm4", HEADS),
    A("exaone4", "Exaone4", HEADS | {"sliding_window": 16}),
    A("nemotron", "Nemotron", HEADS),
    A("persimmon", "Persimmon", DEEP),
    A(
        "gpt_oss",
        "GptOss",
        HEADS
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    A("smollm3", "SmolLM3", GROUPED),
    A("deepseek_v2", "DeepseekV2", DEEP | LATENT),
    A("deepseek_v3", "DeepseekV3", DEEP | LATENT),
    A("helium", "Helium", HEADS),
    A(
        "jetmoe",
        "JetMoe",
        COMMON
        | {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "intermediate_size": 48,
            "max_position_embeddings": CONTEXT,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        projection=False,
    ),
    A("arcee", "Arcee", GROUPED),
    A("nanochat", "NanoChat", GROUPED),
    A("granite", "Granite", GROUPED | GRANITE, always=True),
    A("granitemoe", "GraniteMoe", GROUPED | GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    A("ernie4_5", "Ernie4_5", HEADS),
    A("seed_oss", "SeedOss", HEADS),
    A("apertus", "Apertus", GROUPED),
    A(
        "falcon_h1",
        "FalconH1",
        HEADS
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "attention_out_multiplier": 0.5,
        },
        adds_up=False,
    ),
    A("mamba", "Mamba", MAMBA, parts=False, shifted=True, context=None, always=True),
    A(
        "mamba2",
        "Mamba2",
        MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
        parts=False,
        shifted=True,
        context=None,
    ),
    A(
        "rwkv",
        "Rwkv",
        COMMON | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "context_length": CONTEXT},
        shifted=True,
        adds_up=False,
    ),
    A("openai_gpt", "OpenAIGPT", NARROW, "LMHeadModel", adds_up=False),
    A("ctrl", "CTRL", NARROW | {"dff": 48}, "LMHeadModel", adds_up=False, parts=False),
]
