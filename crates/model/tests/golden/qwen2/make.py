"""Makes the golden files beside it; see ../models.py."""

import sys
from pathlib import Path

from transformers import Qwen2Config, Qwen2ForCausalLM

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))
from models import VOCAB, Case, rope, run, without  # noqa: E402


def qwen_2(config):
    scaling = without(config["rope_parameters"], "rope_theta", "rope_type") | {"type": "yarn"}
    return without(config, "rope_parameters", "layer_types") | {"rope_theta": 10_000.0, "rope_scaling": scaling}


CASES = {
    "windowed": Case(
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=4096, tie_word_embeddings=True,
            use_sliding_window=True, sliding_window=8, max_window_layers=1, eos_token_id=257,
            rope_parameters=rope(10_000.0, "yarn", factor=4.0, original_max_position_embeddings=1024),
        ),
        hub_style=qwen_2, long=True,
    ),
}

if __name__ == "__main__":
    run(Path(__file__).parent, CASES)
