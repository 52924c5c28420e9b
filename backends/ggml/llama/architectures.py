"""The architectures that a tiny model can be made of: hyperparameters that make it small, as GGUF metadata.

What the tensors are called and how large they are follows from the hyperparameters, in libllama; `shapes.json` holds
what it says (harvest.py). After a change here:

    python -m opconform.backends.ggml.llama.harvest --ggml-lib FOLDER

Rows are 256 wide, the block of the K types, and heads as wide as the kernels of real models want them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 256
CONTEXT = 256
WIDTH = 256  #: of the embedding
SIGMOID = 2  #: how a mixture of experts is gated: enum llama_expert_gating_func_type

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "context_length": CONTEXT,
    "embedding_length": WIDTH,
    "block_count": 2,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
_EXPERTS: Mapping[str, Any] = {
    "expert_count": 8,
    "expert_used_count": 4,
    "expert_feed_forward_length": 256,
}
#: Multi-head latent attention: rows of 128 with a rotary part of 64, heads of 64 + 64 and 64.
_LATENT: Mapping[str, Any] = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 128,
    "attention.key_length": 192,
    "attention.value_length": 128,
    "attention.key_length_mla": 128,
    "attention.value_length_mla": 64,
    "rope.dimension_count": 64,
}
_DELTA_NET: Mapping[str, Any] = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 64,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 256,
    "attention.key_length": 64,
    "attention.value_length": 64,
}
_NO_ATTENTION: Mapping[str, Any] = {"attention.head_count": 0, "attention.head_count_kv": 0}


_OUTPUT = "output.weight"  #: without it the embedding does for the output too


def _of(layers: tuple[int, ...], *tensors: str) -> tuple[str, ...]:
    """The tensors of each of these layers."""
    return tuple(f"blk.{layer}.{tensor}" for layer in layers for tensor in tensors)


@dataclass(frozen=True)
class Architecture:
    """One architecture: its name in libllama, its metadata (keys without that name), and the tensors that libllama
    takes only where a file lists them."""

    arch: str
    metadata: Mapping[str, Any]
    optional: tuple[str, ...] = ()
    whole: Mapping[str, Any] = field(default_factory=dict)  #: metadata under keys that are not the architecture's

    @property
    def keys(self) -> dict[str, Any]:
        """All of the metadata that a file has. Layers that differ get one value each."""
        own = {**_COMMON, **self.metadata}
        return {
            "general.architecture": self.arch,
            "tokenizer.ggml.model": "no_vocab",
            **{f"{self.arch}.{key}": value for key, value in own.items()},
            **self.whole,
        }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", {}, (_OUTPUT,)),
    "llama-moe": Architecture(
        "llama",
        {**_EXPERTS, "feed_forward_length": 256},
        (_OUTPUT, *_of((0, 1), "ffn_gate_inp.weight", "ffn_gate_exps.weight")),
    ),
    "qwen3next": Architecture(
        "qwen3next",
        {
            **_EXPERTS,
            **_DELTA_NET,
            "block_count": 4,  # every fourth layer has attention, whatever the file says
            "full_attention_interval": 4,
            "expert_shared_feed_forward_length": 256,
            "rope.dimension_count": 32,
        },
        (_OUTPUT, *_of((0, 1, 2), "attn_qkv.weight", "attn_gate.weight")),
    ),
    "qwen35": Architecture(
        "qwen35",
        {
            **_DELTA_NET,
            "full_attention_interval": 2,
            "rope.dimension_count": 32,
            "rope.dimension_sections": (6, 5, 5, 0),
        },
        (_OUTPUT, *_of((0,), "attn_qkv.weight", "attn_gate.weight")),
    ),
    "kimi-linear": Architecture(
        "kimi-linear",
        {
            **_EXPERTS,
            **_LATENT,
            "attention.head_count": 2,
            "attention.head_count_kv": (0, 1),
            "expert_shared_count": 1,
            "expert_gating_func": SIGMOID,
            "expert_weights_scale": 2.446,
            "expert_weights_norm": True,
            "leading_dense_block_count": 1,
            "ssm.conv_kernel": 4,
            "kda.head_dim": 128,
        },
        _of((1,), "ffn_gate_shexp.weight", "ffn_down_shexp.weight", "ffn_up_shexp.weight"),
    ),
    "deepseek2": Architecture(
        "deepseek2",
        {
            **_EXPERTS,
            **_LATENT,
            "attention.q_lora_rank": 128,
            "expert_shared_count": 1,
            "expert_gating_func": SIGMOID,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "leading_dense_block_count": 1,
        },
        (_OUTPUT, *_of((1,), "exp_probs_b.bias")),
    ),
    "gemma3": Architecture(
        "gemma3",
        {
            "block_count": 6,  # every sixth layer sees everything, whatever the file says
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.sliding_window": 32,
        },
    ),
    "mamba": Architecture(
        "mamba",
        {
            **_NO_ATTENTION,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 512,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 16,
        },
    ),
    "mamba2": Architecture(
        "mamba2",
        {
            **_NO_ATTENTION,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 512,
            "ssm.state_size": 128,
            "ssm.time_step_rank": 8,
            "ssm.group_count": 1,
        },
    ),
    "rwkv6": Architecture(
        "rwkv6",
        {
            **_NO_ATTENTION,
            "attention.layer_norm_epsilon": 1e-5,
            "wkv.head_size": 64,
            "time_mix_extra_dim": 32,
            "time_decay_extra_dim": 64,
            "rescale_every_n_layers": 6,
        },
        _of((0, 1), "time_mix_lerp_fused.weight"),
    ),
    "rwkv7": Architecture(
        "rwkv7",
        {
            **_NO_ATTENTION,
            "attention.layer_norm_epsilon": 1e-5,
            "wkv.head_size": 64,
            "attention.decay_lora_rank": 64,
            "attention.iclr_lora_rank": 64,
            "attention.value_residual_mix_lora_rank": 32,
            "attention.gate_lora_rank": 128,
        },
    ),
    "gpt2": Architecture("gpt2", {"attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 4}),
    "gpt-oss": Architecture(
        "gpt-oss",
        {**_EXPERTS, "attention.key_length": 64, "attention.value_length": 64, "attention.sliding_window": 32},
        _of((0, 1), "attn_q.bias", "attn_k.bias", "attn_v.bias"),
    ),
}
