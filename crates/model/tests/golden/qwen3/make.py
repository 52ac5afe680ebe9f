"""Makes the golden files beside it; see ../models.py."""

import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))
from models import VOCAB, Case, rope, run  # noqa: E402


def config(theta, **more):
    return Qwen3Config(vocab_size=VOCAB, max_position_embeddings=512, rope_parameters=rope(theta), **more)


# Sizes are odd on purpose: no multiple of a vector, heads that do not add up to the hidden size.
CASES = {
    "tied": Case(
        Qwen3ForCausalLM,
        config(
            theta=10_000.0, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-2, tie_word_embeddings=True, eos_token_id=257,
        ),
        dtype=torch.float32, rank=3,
    ),
    "untied": Case(
        Qwen3ForCausalLM,
        config(
            theta=1_000_000.0, hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, tie_word_embeddings=False,
            eos_token_id=[257, 258],
        ),
        shard="100KB", rank=5,
    ),
    "odd": Case(
        Qwen3ForCausalLM,
        config(
            theta=500.0, hidden_size=40, intermediate_size=57, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, head_dim=24, rms_norm_eps=1e-5, tie_word_embeddings=True, eos_token_id=257,
        ),
        dtype=torch.float16, alpha=8, embedding=True, ship_head=True,
    ),
}

if __name__ == "__main__":
    run(Path(__file__).parent, CASES)
