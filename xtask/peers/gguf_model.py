"""Writes a Qwen3 model in Hugging Face format as GGUF files for llama.cpp, without a tokenizer.

    gguf_model.py MODEL_DIR OUT_DIR

Makes OUT_DIR/{f32,f16,bf16}.gguf. Norms stay f32, as llama.cpp's own converter has it.
"""

import json
import pathlib
import sys

import numpy
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
}


def main():
    folder, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3" and config["tie_word_embeddings"], "a Qwen3 model with tied embeddings"
    tensors = read(folder / "model.safetensors")
    for kind, file_type in KINDS.items():
        writer = GGUFWriter(out / f"{kind}.gguf", "qwen3")
        writer.add_file_type(file_type)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("none")
        for name, halves in tensors.items():
            add(writer, kind, name, halves)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read(path):
    """Each tensor as the 16 bits of its bf16 numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", name
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = numpy.frombuffer(data[begin:end], dtype=numpy.uint16).reshape(entry["shape"])
    return tensors


def add(writer, kind, name, halves):
    if kind == "bf16" and halves.ndim == 2:
        writer.add_tensor(renamed(name), halves.copy().view(numpy.uint8), raw_dtype=GGMLQuantizationType.BF16)
        return
    values = (halves.astype(numpy.uint32) << 16).view(numpy.float32)
    if kind == "f16" and halves.ndim == 2:
        values = values.astype(numpy.float16)
    writer.add_tensor(renamed(name), values)


def renamed(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{LAYER[part]}.weight"


main()
