"""A small model of every family, with random weights and nano's tokenizer, as transformers saves it."""

import shutil

import torch
import transformers
from conftest import NANO

# Each has what sets its family apart, at a size where the tests' short sequences meet it.
SIZES = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}
SCALED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": ("LlamaForCausalLM", {"rope_parameters": SCALED, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": False}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 12, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"sliding_window": 12, "head_dim": 32, "query_pre_attn_scalar": 24,
         "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"sliding_window": 12, "head_dim": 32, "query_pre_attn_scalar": 24,
         "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
}


def build(family, folder):
    """Writes the family's model into `folder`; gives the folder."""
    class_name, switches = FAMILIES[family]
    config_class = getattr(transformers, class_name).config_class
    torch.manual_seed(sum(map(ord, family)))
    # A larger spread than usual: logits of a random model should not all be alike.
    config = config_class(**SIZES, **switches, initializer_range=0.1, attn_implementation="eager")
    model = getattr(transformers, class_name)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        shutil.copy(NANO / name, folder)
    return folder


def reference(folder):
    """The model in transformers, in f32; its attention is the plain one."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()
