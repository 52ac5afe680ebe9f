"""Trains the nano model from scratch on generated conversations, on the CPU.

The same seed gives the same text for every step, so a run that was stopped goes on from its
checkpoint as if it had not been. Run `python train.py`; it writes `config.json`,
`generation_config.json` and `model.safetensors` here.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

import generate

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinsmith"
END_OF_TEXT, START, END = 0, 1, 2

CONFIG = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END_OF_TEXT,
}

STEPS = 2000
WARMUP_STEPS = 100
LEARNING_RATE = 4e-3
CLIP_NORM = 1.0
TOKENS_PER_STEP = 4096
SHORT_ROW, LONG_ROW = 64, 256
# What is learned is the answers; the questions count a little, so that sampled text hangs together.
QUESTION_WEIGHT = 0.05
SAVE_EVERY_SECONDS = 60


class Text:
    """Turns conversations into token ids and loss weights."""

    def __init__(self):
        self.tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        self.role = {role: self.ids(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")}
        self.close = self.ids("<|im_end|>\n")

    def ids(self, text):
        return self.tokenizer.encode(text).ids

    def row(self, messages):
        """Token ids of a conversation in the chat template, and the weight of predicting each."""
        tokens, weights = [], []
        for message in messages:
            answer = message["role"] == "assistant"
            content = self.ids(message["content"])
            tokens += self.role[message["role"]] + content + self.close
            weights += [0.0] * 3 + [1.0 if answer else QUESTION_WEIGHT] * (len(content) + 1) + [0.0]
        return tokens, weights

    def batch(self, step):
        """Tokens and weights [rows, length] of one step.

        A row starts with a conversation at position 0 and is filled with others, so nothing is
        padded: short rows for the single question, every fourth step long ones for long contexts.
        """
        rng = random.Random(generate.SEED * 1_000_000 + step)
        length = LONG_ROW if step % 4 == 0 else SHORT_ROW
        rows, row_weights = [], []
        for _ in range(TOKENS_PER_STEP // length):
            tokens, weights = [], []
            while len(tokens) < length:
                more = self.row(generate.conversation(rng, rng.choice([1, 1, 1, 2, 3])))
                tokens, weights = tokens + more[0], weights + more[1]
            rows.append(tokens[:length])
            row_weights.append(weights[:length])
        return torch.tensor(rows), torch.tensor(row_weights)


def learning_rate(step, steps):
    """Warm-up, then flat for half of the run, then down to nothing in a straight line."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, 2.0 * (steps - step) / steps)


def optimizers_of(model):
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_step(model, optimizers, tokens, weights, rate):
    """One step; returns the mean loss of the answers' tokens."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    ((losses * weights).sum() / weights.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    answers = weights == 1.0
    return losses[answers].mean().item()


def save_checkpoint(path, step, model, optimizers):
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def export(model, directory):
    """Writes the files that ship: weights in bf16, without anything of the training."""
    shipped = Qwen3ForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped.tie_weights()
    shipped.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=END_OF_TEXT, max_new_tokens=64)
    shipped.to(torch.bfloat16).save_pretrained(directory)
    # Readers older than transformers 5 look for the rotary base under its former name.
    path = directory / "config.json"
    settings = json.loads(path.read_text())
    settings["rope_theta"] = settings["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--until", type=int, help="stop (and export) at this step of the schedule")
    parser.add_argument("--checkpoint", type=Path, default=CACHE / "nano-training.pt")
    parser.add_argument("--output", type=Path, default=HERE)
    arguments = parser.parse_args()

    torch.manual_seed(generate.SEED)
    text, model = Text(), Qwen3ForCausalLM(Qwen3Config(**CONFIG))
    optimizers = optimizers_of(model)
    first_step = 0
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint)
        first_step = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    print(f"{model.num_parameters():,} parameters, from step {first_step} to {arguments.steps}", flush=True)

    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    started = saved_at = time.monotonic()
    token_count, losses = 0, []
    last_step = max(first_step, arguments.until or arguments.steps)
    for step in range(first_step, last_step):
        tokens, weights = text.batch(step)
        losses.append(train_step(model, optimizers, tokens, weights, learning_rate(step, arguments.steps)))
        token_count += tokens.numel()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            mean = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {step + 1} loss {mean:.4f} {token_count / seconds:.0f} tokens/s {seconds:.0f} s", flush=True)
        if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
            saved_at = time.monotonic()
            save_checkpoint(arguments.checkpoint, step + 1, model, optimizers)
    save_checkpoint(arguments.checkpoint, last_step, model, optimizers)
    export(model, arguments.output)


if __name__ == "__main__":
    main()
