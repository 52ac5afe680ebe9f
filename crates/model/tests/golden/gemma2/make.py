"""Makes the golden files beside it; see ../models.py."""

import sys
from pathlib import Path

from transformers import Gemma2Config, Gemma2ForCausalLM

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))
from models import VOCAB, Case, rope, run, without  # noqa: E402


def gemma_2(config):
    return without(config, "rope_parameters", "layer_types", "tie_word_embeddings") | {"rope_theta": 10_000.0}


CASES = {
    "capped": Case(
        Gemma2ForCausalLM,
        Gemma2Config(
            vocab_size=VOCAB, hidden_size=40, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=10, rms_norm_eps=1e-6,
            max_position_embeddings=512, sliding_window=8, attn_logit_softcapping=2.0, final_logit_softcapping=5.0,
            pad_token_id=0, bos_token_id=256, eos_token_id=[257, 258], rope_parameters=rope(10_000.0),
        ),
        hub_style=gemma_2,
    ),
}

if __name__ == "__main__":
    run(Path(__file__).parent, CASES)
