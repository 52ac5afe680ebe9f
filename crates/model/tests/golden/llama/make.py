"""Makes the golden files beside it; see ../models.py."""

import sys
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))
from models import VOCAB, Case, rope, run, without  # noqa: E402


def llama_3(config):
    scaling = without(config["rope_parameters"], "rope_theta")
    return without(config, "rope_parameters", "head_dim") | {"rope_theta": 10_000.0, "rope_scaling": scaling}


CASES = {
    # Of the 8 pairs of a head, 3 turn as they are, 2 stand on the ramp, 3 turn slower.
    "scaled": Case(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
            num_key_value_heads=1, rms_norm_eps=1e-5, max_position_embeddings=4096, tie_word_embeddings=False,
            bos_token_id=256, eos_token_id=[257, 258],
            rope_parameters=rope(
                10_000.0, "llama3", factor=8.0, low_freq_factor=0.5, high_freq_factor=4.0,
                original_max_position_embeddings=512,
            ),
        ),
        hub_style=llama_3, long=True,
    ),
    "biased": Case(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=40, intermediate_size=60, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-5, max_position_embeddings=4096,
            attention_bias=True, mlp_bias=True, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
            bos_token_id=256, eos_token_id=257, rope_parameters=rope(500.0, "linear", factor=4.0),
        ),
        long=True,
    ),
}

if __name__ == "__main__":
    run(Path(__file__).parent, CASES)
