"""Makes the golden files beside it: small random Qwen3 models with what PyTorch computes with them.

    pip install torch transformers peft     (made with torch 2.15, transformers 5.23, peft 0.21)
    python make.py

A case is a model directory with an adapter that PEFT saved and `expected.safetensors`:

    lengths, tokens, targets   ragged sequences, one after another
    base_logprobs, logprobs    of the targets, without and with the adapter
    trained, weights           which sequences the gradients are of, and a weight for each of their rows
    grad.<PEFT's name>         of sum(-logprob * weight), for every LoRA matrix
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
VOCAB = 259
LENGTHS = [40, 1, 17, 70]
TRAINED = [0, 2]
SITES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]

# Sizes are odd on purpose: no multiple of a vector, heads that do not add up to the hidden size.
CASES = {
    "tied": dict(
        dtype=torch.float32, shard="1GB", rank=3, alpha=32, sites=SITES, embedding=False, ship_head=False,
        config=dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-2, rope_theta=10_000.0,
            tie_word_embeddings=True, max_position_embeddings=512, eos_token_id=257,
        ),
    ),
    "untied": dict(
        dtype=torch.bfloat16, shard="100KB", rank=5, alpha=32, sites=SITES, embedding=False, ship_head=False,
        config=dict(
            hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, rope_theta=1_000_000.0,
            tie_word_embeddings=False, max_position_embeddings=512, eos_token_id=[257, 258],
        ),
    ),
    "odd": dict(
        dtype=torch.float16, shard="1GB", rank=2, alpha=8, sites=SITES, embedding=True, ship_head=True,
        config=dict(
            hidden_size=40, intermediate_size=57, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, head_dim=24, rms_norm_eps=1e-5, rope_theta=500.0,
            tie_word_embeddings=True, max_position_embeddings=512, eos_token_id=257,
        ),
    ),
}


def randomize(model, generator):
    """Weights so large that every switch of the decoder moves the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                spread = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(0.5 + 1.5 * spread)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                scale = 1.3 / parameter.shape[1] ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def logprobs(model, tokens, targets):
    logits = model(input_ids=tokens[None]).logits[0].float()
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]


def save_base(model, case, path):
    model.to(case["dtype"]).save_pretrained(path, max_shard_size=case["shard"])
    if case["ship_head"]:
        file = path / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, {"format": "pt"})


def make(name, case, seed):
    generator = torch.Generator().manual_seed(seed)
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, **rope(case["config"])))
    randomize(base, generator)
    save_base(base, case, path)
    # Read again: the numbers are then those of the file, rounded to its dtype, computed with in f32.
    base = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")

    tokens = [torch.randint(VOCAB, (length,), generator=generator) for length in LENGTHS]
    targets = [torch.randint(VOCAB, (length,), generator=generator) for length in LENGTHS]
    weights = [torch.rand(LENGTHS[i], generator=generator) for i in TRAINED]
    weights[0][:7] = 0
    with torch.no_grad():
        plain = [logprobs(base, *pair) for pair in zip(tokens, targets)]

    lora = LoraConfig(r=case["rank"], lora_alpha=case["alpha"], target_modules=case["sites"], task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    matrices = {key: value for key, value in model.named_parameters() if "lora_" in key}
    with torch.no_grad():
        for key, value in matrices.items():
            scale = 0.6 / value.shape[1] ** 0.5 * (32 / case["alpha"]) ** 0.5 * (case["rank"] / 32) ** 0.5
            value.copy_(scale * torch.randn(value.shape, generator=generator))
        adapted = [logprobs(model, *pair) for pair in zip(tokens, targets)]
    model.peft_config["default"].base_model_name_or_path = f"golden/{name}"
    model.save_pretrained(path / "adapter", save_embedding_layers=case["embedding"])
    (path / "adapter" / "README.md").unlink(missing_ok=True)
    sort_modules(path / "adapter" / "adapter_config.json")

    loss = sum(-(logprobs(model, tokens[i], targets[i]) * weight).sum() for i, weight in zip(TRAINED, weights))
    loss.backward()
    expected = {
        "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        "tokens": torch.cat(tokens).to(torch.int32),
        "targets": torch.cat(targets).to(torch.int32),
        "base_logprobs": torch.cat(plain),
        "logprobs": torch.cat(adapted),
        "trained": torch.tensor(TRAINED, dtype=torch.int32),
        "weights": torch.cat(weights),
    }
    for key, value in matrices.items():
        expected["grad." + key.replace(".default", "")] = value.grad
    save_file(expected, path / "expected.safetensors")
    moved = (expected["logprobs"] - expected["base_logprobs"]).abs().max()
    print(f"{name}: loss {loss.item():.6f}, the adapter moves logprobs by up to {moved:.3f}")


def sort_modules(path):
    """PEFT writes a set; the order is fixed here so that making again changes nothing."""
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def rope(config):
    theta = config["rope_theta"]
    rest = {key: value for key, value in config.items() if key != "rope_theta"}
    return dict(rest, rope_parameters={"rope_type": "default", "rope_theta": theta})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(CASES.items()):
        make(name, case, seed)
