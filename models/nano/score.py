"""Scores the nano model on its 200 held-out prompts, greedily, with the files that ship.

Prints every wrong answer and `N of 200 exact`; fails below 180. Run `python score.py`.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
PASS_COUNT = 180
MAX_NEW_TOKENS = 48


def answers(model, tokenizer, prompts):
    """Greedy answers to user messages, each asked alone at position 0; equal lengths share a batch."""
    by_length = defaultdict(list)
    for index, prompt in enumerate(prompts):
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        by_length[len(ids)].append((index, ids))
    given = [""] * len(prompts)
    for length, rows in by_length.items():
        ids = torch.tensor([ids for _, ids in rows])
        with torch.no_grad():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        for (index, _), row in zip(rows, output, strict=True):
            given[index] = tokenizer.decode(row[length:], skip_special_tokens=True)
    return given


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (HERE / "heldout.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    given = answers(model, tokenizer, [row["prompt"] for row in rows])
    exact, asked = Counter(), Counter()
    for row, answer in zip(rows, given, strict=True):
        asked[row["task"]] += 1
        if answer == row["answer"]:
            exact[row["task"]] += 1
        else:
            print(f"{row['task']}: {row['prompt']!r} should be {row['answer']!r}, was {answer!r}")
    print(" ".join(f"{task} {exact[task]}/{count}" for task, count in asked.items()))
    print(f"{exact.total()} of {len(rows)} exact")
    return 0 if exact.total() >= PASS_COUNT else 1


if __name__ == "__main__":
    sys.exit(main())
