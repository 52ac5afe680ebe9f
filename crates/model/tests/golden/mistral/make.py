"""Makes the golden files beside it; see ../models.py."""

import sys
from pathlib import Path

from transformers import MistralConfig, MistralForCausalLM

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))
from models import VOCAB, Case, rope, run, without  # noqa: E402


def mistral_7b(config):
    return without(config, "rope_parameters", "head_dim") | {"rope_theta": 10_000.0}


CASES = {
    "windowed": Case(
        MistralForCausalLM,
        MistralConfig(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=512, sliding_window=8,
            tie_word_embeddings=False, bos_token_id=256, eos_token_id=257, rope_parameters=rope(10_000.0),
        ),
        hub_style=mistral_7b, shard="100KB",
    ),
}

if __name__ == "__main__":
    run(Path(__file__).parent, CASES)
