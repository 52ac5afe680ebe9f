"""Makes the golden files beside it; see ../models.py."""

import sys
from pathlib import Path

from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))
from models import SITES, VOCAB, Case, rope, run, without  # noqa: E402


def ropes(theta, local_theta):
    return {
        "full_attention": rope(theta, "linear", factor=8.0),
        "sliding_attention": rope(local_theta),
    }


def gemma_3(config):
    """As the models that see images lie on the hub: what is as in every Gemma 3 is left out."""
    text = config["text_config"]
    keys = [
        "head_dim", "hidden_size", "intermediate_size", "model_type", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "sliding_window", "vocab_size",
    ]
    text = {key: text[key] for key in keys} | {
        "query_pre_attn_scalar": 20,
        "rope_local_base_freq": 500.0,
        "rope_theta": 10_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window_pattern": 2,
    }
    return without(config, "tie_word_embeddings") | {"text_config": text}


CASES = {
    "text": Case(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            vocab_size=VOCAB, hidden_size=40, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=10, rms_norm_eps=1e-6,
            max_position_embeddings=4096, sliding_window=8, sliding_window_pattern=3, pad_token_id=0,
            bos_token_id=256, eos_token_id=257, rope_parameters=ropes(10_000.0, 500.0),
        ),
        long=True,
    ),
    # The text part of a model that sees images, without images.
    "image": Case(
        Gemma3ForConditionalGeneration,
        Gemma3Config(
            text_config=dict(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=20, sliding_window=8,
                sliding_window_pattern=2, pad_token_id=0, bos_token_id=256, eos_token_id=257,
                rope_parameters=ropes(10_000.0, 500.0),
            ),
            vision_config=dict(
                hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28,
                patch_size=14,
            ),
            mm_tokens_per_image=4, image_token_index=255, eos_token_id=257,
        ),
        sites=rf"model\.language_model\.layers\..*\.({'|'.join(SITES[:-1])})|{SITES[-1]}",
        hub_style=gemma_3,
    ),
}

if __name__ == "__main__":
    run(Path(__file__).parent, CASES)
