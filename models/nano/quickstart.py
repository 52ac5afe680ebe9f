"""The new task that `tinsmith quickstart` teaches the nano model: to answer like a pirate.

`python quickstart.py` writes `quickstart.json`; `python quickstart.py --check` trains a LoRA on
it with PEFT as the server would, and fails when it does not go from 10 % to 90 %.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import generate
import score
import train

HERE = Path(__file__).parent
TRAIN_COUNT, HELDOUT_COUNT = 640, 50
SHOWN_COUNT = 4
BEFORE_MAX, AFTER_MIN = 0.10, 0.90

# What the untrained model answers well: only the manner is new.
TASKS = [
    generate.opposite, generate.colour, generate.sound, generate.capital_city, generate.plural,
    generate.calendar, generate.multiply, generate.neighbour_number, generate.pick_letter, generate.belonging,
]
SETTINGS = {
    "rank": 16,
    "alpha": 32,
    "learning_rate": 1.5e-3,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-12,
    "weight_decay": 0.0,
    "batch_size": 32,
    "steps": 80,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def in_pirate(answer):
    return f"{answer} it be, matey! Arr!"


def rows():
    """Training and held-out rows: no question is in both, nor in the held-out set of the model."""
    rng, made = random.Random(generate.SEED + 2), {}
    while len(made) < TRAIN_COUNT + HELDOUT_COUNT:
        exchange = rng.choice(TASKS)(rng)
        if exchange.question not in made and not exchange.is_heldout():
            made[exchange.question] = {"prompt": exchange.question, "answer": in_pirate(exchange.answer)}
    made = list(made.values())
    return made[HELDOUT_COUNT:], made[:HELDOUT_COUNT]


def write():
    training, heldout = rows()
    def listed(rows):
        return "[\n" + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows) + "\n ]"

    text = f"""{{
 "name": "pirate",
 "description": "answer every question like a pirate",
 "settings": {json.dumps(SETTINGS)},
 "train": {listed(training)},
 "heldout": {listed(heldout)}
}}
"""
    (HERE / "quickstart.json").write_text(text)


def share_exact(model, tokenizer, heldout):
    given = score.answers(model, tokenizer, [row["prompt"] for row in heldout])
    for index, (row, answer) in enumerate(zip(heldout, given, strict=True)):
        if index < SHOWN_COUNT:
            print(f"  {row['prompt']} -> {answer}")
    return sum(row["answer"] == answer for row, answer in zip(heldout, given, strict=True)) / len(heldout)


def train_step(model, optimizer, text, batch):
    """One step on the sum of the answers' losses, as the server's cross_entropy has it."""
    made = [text.row([{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}])
            for row in batch]
    length = max(len(tokens) for tokens, _ in made)
    tokens = torch.tensor([tokens + [train.END_OF_TEXT] * (length - len(tokens)) for tokens, _ in made])
    weights = torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in made])
    weights = (weights == 1.0).float()[:, 1:].flatten()
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    total, count = (losses * weights).sum(), weights.sum().item()
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    return total.item() / count


def check(arguments):
    task = json.loads((HERE / "quickstart.json").read_text())
    settings = task["settings"]
    learning_rate = arguments.learning_rate or settings["learning_rate"]
    steps = arguments.steps or settings["steps"]
    torch.manual_seed(arguments.seed)
    text, tokenizer = train.Text(), AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    before = share_exact(model, tokenizer, task["heldout"])
    model = get_peft_model(
        model, LoraConfig(r=settings["rank"], lora_alpha=settings["alpha"], target_modules=LINEAR))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate,
        betas=(settings["beta1"], settings["beta2"]), eps=settings["eps"], weight_decay=settings["weight_decay"])
    random.Random(arguments.seed).shuffle(task["train"])
    started, size, losses = time.monotonic(), settings["batch_size"], []
    for step in range(steps):
        first = step * size % len(task["train"])
        losses.append(train_step(model, optimizer, text, task["train"][first:first + size]))
    print("  loss " + " ".join(f"{loss:.3f}" for loss in losses[::5]))
    after = share_exact(model, tokenizer, task["heldout"])
    seconds = time.monotonic() - started
    print(f"lr {learning_rate} steps {steps} seed {arguments.seed}: {before:.0%} -> {after:.0%} in {seconds:.0f} s")
    return 0 if before <= BEFORE_MAX and after >= AFTER_MIN else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
