"""What the make.py of every family shares: it makes a small random model and what PyTorch computes with it.

    pip install torch transformers peft     (made with torch 2.15, transformers 5.23, peft 0.21)
    python <family>/make.py

A case is a model directory with an adapter that PEFT saved and `expected.safetensors`:

    lengths, tokens, targets   ragged sequences, one after another
    base_logprobs, logprobs    of the targets, without and with the adapter
    trained, weights           which sequences the gradients are of, and a weight for each of their rows
    grad.<PEFT's name>         of sum(-logprob * weight), for every LoRA matrix

and, where a case is `long`, for positions far from the first:

    long_tokens                one more sequence
    long_rows, long_targets    a few of its rows, and a target for each
    long_base_logprobs, long_logprobs
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

VOCAB = 259
LENGTHS = [40, 1, 17, 70]
TRAINED = [0, 2]
LONG_ROWS = [0, 1, 40, 100, 511, 1023, 1500, 2047, 2048, 2100, 2200, 2303]
LONG_LENGTH = LONG_ROWS[-1] + 1
SITES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


@dataclass
class Case:
    model: type
    config: object
    dtype: torch.dtype = torch.bfloat16
    shard: str = "1GB"
    rank: int = 2
    alpha: int = 32
    sites: list | str = field(default_factory=lambda: list(SITES))
    embedding: bool = False
    ship_head: bool = False
    # Rewrites config.json as transformers 4 wrote it, which is how most models lie on the hub.
    hub_style: object = None
    long: bool = False


def run(here, cases):
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(cases.items()):
        make(here, name, case, seed)


def make(here, name, case, seed):
    generator = torch.Generator().manual_seed(seed)
    path = here / name
    shutil.rmtree(path, ignore_errors=True)
    base = case.model(case.config)
    randomize(base, generator)
    save_base(base, case, path)
    # Read again: the numbers are then those of the file, rounded to its dtype, computed with in f32.
    base = case.model.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()

    tokens = [torch.randint(VOCAB, (length,), generator=generator) for length in LENGTHS]
    targets = [torch.randint(VOCAB, (length,), generator=generator) for length in LENGTHS]
    weights = [torch.rand(LENGTHS[i], generator=generator) for i in TRAINED]
    weights[0][:7] = 0
    with torch.no_grad():
        plain = [logprobs(base, *pair) for pair in zip(tokens, targets)]
        long = Long(case, base, generator)

    lora = LoraConfig(r=case.rank, lora_alpha=case.alpha, target_modules=case.sites, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).eval()
    matrices = {key: value for key, value in model.named_parameters() if "lora_" in key}
    with torch.no_grad():
        for key, value in matrices.items():
            scale = 0.6 / value.shape[1] ** 0.5 * (32 / case.alpha) ** 0.5 * (case.rank / 32) ** 0.5
            value.copy_(scale * torch.randn(value.shape, generator=generator))
        adapted = [logprobs(model, *pair) for pair in zip(tokens, targets)]
    model.peft_config["default"].base_model_name_or_path = f"golden/{name}"
    model.save_pretrained(path / "adapter", save_embedding_layers=case.embedding)
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
        **long.expected(model),
    }
    for key, value in matrices.items():
        expected["grad." + key.replace(".default", "")] = value.grad
    save_file(expected, path / "expected.safetensors")
    moved = (expected["logprobs"] - expected["base_logprobs"]).abs().max()
    print(f"{here.name}/{name}: loss {loss.item():.6f}, the adapter moves logprobs by up to {moved:.3f}")


class Long:
    """A sequence of which only a few rows are kept."""

    def __init__(self, case, base, generator):
        self.wanted = case.long
        if self.wanted:
            self.tokens = torch.randint(VOCAB, (LONG_LENGTH,), generator=generator)
            self.targets = torch.randint(VOCAB, (LONG_LENGTH,), generator=generator)
            self.base = logprobs(base, self.tokens, self.targets)[LONG_ROWS]

    def expected(self, model):
        if not self.wanted:
            return {}
        with torch.no_grad():
            adapted = logprobs(model, self.tokens, self.targets)[LONG_ROWS]
        return {
            "long_tokens": self.tokens.to(torch.int32),
            "long_rows": torch.tensor(LONG_ROWS, dtype=torch.int32),
            "long_targets": self.targets[LONG_ROWS].to(torch.int32),
            "long_base_logprobs": self.base,
            "long_logprobs": adapted,
        }


def randomize(model, generator):
    """Weights so large that every switch of the decoder moves the logits."""
    gemma = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_tower" in name or "multi_modal" in name:
                parameter.zero_()
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            elif "norm" in name:
                spread = torch.rand(parameter.shape, generator=generator)
                # Gemma's files hold what a weight differs from 1 by.
                parameter.copy_((-0.5 if gemma else 0.5) + 1.5 * spread)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                scale = 1.3 / parameter.shape[1] ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def logprobs(model, tokens, targets):
    logits = model(input_ids=tokens[None]).logits[0].float()
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]


def save_base(model, case, path):
    model.to(case.dtype).save_pretrained(path, max_shard_size=case.shard)
    if case.ship_head:
        file = path / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, {"format": "pt"})
    if case.hub_style:
        file = path / "config.json"
        config = case.hub_style(json.loads(file.read_text()))
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def sort_modules(path):
    """PEFT writes a set; the order is fixed here so that making again changes nothing."""
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def rope(theta, kind="default", **more):
    return {"rope_type": kind, "rope_theta": theta, **more}
