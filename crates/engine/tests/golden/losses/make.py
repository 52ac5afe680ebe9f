"""Makes the files beside it: every loss as PyTorch computes it, alone and through a whole step.

    pip install torch transformers peft     (made with torch 2.15, transformers 5.23, peft 0.21)
    python make.py

terms.safetensors, in f64, for each case `LOSS/NUMBER`:

    options               the loss's constants
    logprobs, inputs      of each token: its logprob, and what else the loss reads, one column each
    loss, coefficient     its term, and the derivative of that with respect to the logprob

sequences.safetensors, in f64, for each case of a loss that sees whole datums:

    options, lengths      the loss's constants; tokens of each datum
    logprobs, inputs      as above, one datum after another
    loss, coefficient     of each datum; of each token

step.safetensors, for each case: the datums of one request on crates/model/tests/golden/qwen3/tied, with

    tokens, lengths, per_row, targets, values.<input>, options
    loss                  its sum, and the sum of its terms' sizes
    logprobs, grad.<PEFT's name>
"""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

HERE = Path(__file__).parent
TIED = HERE.parents[3] / "model/tests/golden/qwen3/tied"
VOCAB = 259
LENGTHS = [23, 1, 40]


def cross_entropy(logprobs, weights):
    return -weights * logprobs


def importance_sampling(logprobs, q, advantages):
    return -torch.exp(logprobs - q) * advantages


def ppo(logprobs, q, advantages, low, high):
    ratio = torch.exp(logprobs - q)
    return -torch.min(ratio * advantages, torch.clamp(ratio, low, high) * advantages)


def cispo(logprobs, q, advantages, low, high):
    ratio = torch.exp(logprobs - q)
    return -torch.clamp(ratio, low, high).detach() * logprobs * advantages


def dro(logprobs, q, advantages, beta):
    value = -(logprobs * advantages - 0.5 * beta * (logprobs - q) ** 2)
    # A prompt's token: not a sample, padded with zeros.
    return torch.where((advantages == 0) & (q == 0), 0.0, value)


def gspo(logprobs, q, advantages, low, high, mask):
    ratio = torch.exp((mask * (logprobs - q)).sum() / mask.sum())
    return -torch.min(ratio * advantages, torch.clamp(ratio, low, high) * advantages)


def stable_reinforce(logprobs, q, advantages, sampled, kl_coeff, high):
    weight = torch.clamp(torch.exp(logprobs - q), max=high).detach()
    value = -weight * (logprobs * advantages - 0.5 * kl_coeff * (logprobs - q) ** 2)
    return torch.where(sampled != 0, value, 0.0)


LOSSES = {
    loss.__name__: loss
    for loss in (cross_entropy, importance_sampling, ppo, cispo, dro, gspo, stable_reinforce)
}
BOUNDS = ["clip_low_threshold", "clip_high_threshold"]
INPUTS = {
    "cross_entropy": ["weights"],
    "importance_sampling": ["logprobs", "advantages"],
    "ppo": ["logprobs", "advantages", "clip_low_threshold", "clip_high_threshold"],
    "cispo": ["logprobs", "advantages", "clip_low_threshold", "clip_high_threshold"],
    "dro": ["logprobs", "advantages"],
    "gspo": ["logprobs", "advantages", *BOUNDS, "sequence_ratio_mask"],
    "stable_reinforce": ["logprobs", "advantages", "sampled"],
}

TERMS = [
    ("cross_entropy", []),
    ("importance_sampling", []),
    ("ppo", [0.8, 1.2]),
    ("ppo", [1.0, 1.2]),
    ("ppo", [0.8, 1.0]),
    ("ppo", [1.0, 1.0]),
    ("cispo", [0.0, 4.0]),
    ("cispo", [1.0, 1.2]),
    ("cispo", [0.8, 1.0]),
    ("dro", [0.05]),
    ("dro", [0.0]),
    ("dro", [2.5]),
    ("stable_reinforce", [0.0, 2.0]),
    ("stable_reinforce", [0.3, 1.0]),
    ("stable_reinforce", [2.0, 0.0]),
]


def terms(tensors, generator):
    """Random numbers, and ratios at one exactly and close by, where the bounds of some cases are."""
    def normal(count):
        return torch.randn(count, generator=generator, dtype=torch.float64)

    distances = torch.tensor([0.0, 1e-15, -1e-15, 1e-7, -1e-7, 0.15, -0.15, 5.0, -5.0, 60.0, -60.0], dtype=torch.float64)
    advantages = torch.tensor([-1.5, -0.25, 0.0, 0.5, 2.0], dtype=torch.float64)
    grid = torch.cartesian_prod(distances, advantages)
    q = torch.cat([torch.full((len(grid),), -0.25, dtype=torch.float64), -normal(200).abs(), torch.zeros(5, dtype=torch.float64)])
    logprobs = torch.cat([-0.25 + grid[:, 0], -normal(200).abs(), -normal(5).abs()])
    advantages = torch.cat([grid[:, 1], normal(200), advantages])
    for number, (name, options) in enumerate(TERMS):
        columns = [normal(len(q))] if name == "cross_entropy" else [q, advantages]
        if name == "stable_reinforce":
            columns.append((torch.arange(len(q)) % 3 != 0).double())
        variable = logprobs.clone().requires_grad_()
        # Bounds as numbers: at a bound, the gradient of torch.clamp is another one where bounds are tensors.
        loss = LOSSES[name](variable, *columns, *options)
        loss.sum().backward()
        if "clip_low_threshold" in INPUTS[name]:
            columns += [torch.full_like(q, option) for option in options]
        tensors |= {
            f"{name}/{number}.options": torch.tensor(options, dtype=torch.float64),
            f"{name}/{number}.logprobs": logprobs.clone(),
            f"{name}/{number}.inputs": torch.stack(columns, 1),
            f"{name}/{number}.loss": loss.detach(),
            f"{name}/{number}.coefficient": variable.grad,
        }


SEQUENCES = [
    # Loss, its constants. A datum's ratio is one exactly where it is on the sampler's own policy.
    ("gspo", [0.9997, 1.0004]),
    ("gspo", [0.8, 1.2]),
    ("gspo", [1.0, 1.2]),
    ("gspo", [1.0, 1.0]),
]


def sequences(tensors, generator):
    """Datums of a few tokens, some with the sampler's own logprobs, some far from those."""
    def normal(count):
        return torch.randn(count, generator=generator, dtype=torch.float64)

    for number, (name, options) in enumerate(SEQUENCES):
        lengths, rows, losses, coefficients = [], [], [], []
        for datum in range(60):
            length = 1 + datum % 7
            q = -normal(length).abs()
            distance = [0.0, 0.01, 0.3, 5.0][datum % 4]
            variable = (q + distance * normal(length)).requires_grad_()
            advantages = normal(1).expand(length).clone() if datum % 3 else normal(length)
            mask = torch.rand(length, generator=generator, dtype=torch.float64)
            mask = torch.ones(length, dtype=torch.float64) if datum % 2 else mask
            if length > 2:
                mask[0], advantages[0] = 0, 0
                mask[1] = 0
            loss = LOSSES[name](variable, q, advantages, *options, mask).sum()
            loss.backward()
            bounds = [torch.full_like(q, option) for option in options]
            lengths.append(length)
            rows.append(torch.stack([variable.detach(), q, advantages, *bounds, mask], 1))
            losses.append(loss.detach())
            coefficients.append(variable.grad)
        rows = torch.cat(rows)
        tensors |= {
            f"{name}/{number}.options": torch.tensor(options, dtype=torch.float64),
            f"{name}/{number}.lengths": torch.tensor(lengths, dtype=torch.int32),
            f"{name}/{number}.logprobs": rows[:, 0].clone(),
            f"{name}/{number}.inputs": rows[:, 1:].clone(),
            f"{name}/{number}.loss": torch.stack(losses),
            f"{name}/{number}.coefficient": torch.cat(coefficients),
        }


STEPS = [
    # Loss, its constants, candidates of each datum, bounds of each token's own.
    ("cross_entropy", [], [1, 1, 1], False),
    ("cross_entropy", [], [3, 3, 3], False),
    ("cross_entropy", [], [2, 1, 5], False),
    ("importance_sampling", [], [1, 1, 1], False),
    ("ppo", [0.8, 1.2], [1, 1, 1], False),
    ("ppo", [0.8, 1.2], [1, 1, 1], True),
    ("cispo", [0.0, 4.0], [1, 1, 1], False),
    ("cispo", [0.9, 1.1], [1, 1, 1], True),
    ("dro", [0.05], [1, 1, 1], False),
    ("dro", [0.5], [1, 1, 1], False),
    ("gspo", [0.9, 1.1], [1, 1, 1], False),
    ("gspo", [0.9, 1.1], [1, 1, 1], True),
    ("stable_reinforce", [0.2, 1.2], [1, 1, 1], False),
]


def scored(model, tokens, targets):
    logits = model(input_ids=tokens[None]).logits[0].float()
    return torch.log_softmax(logits, -1).gather(-1, targets)


def away(logprobs, q, bounds, margin=1e-3):
    """The q's, moved where rounding could put the ratio on the other side of a bound."""
    for bound in bounds:
        near = (torch.exp(logprobs - q) - bound).abs() < margin
        q = torch.where(near, q + 5 * margin, q)
    return q


def step(tensors, model, matrices, generator, number, case):
    name, options, candidates, own_bounds = case
    place = f"{name}/{number}"
    model.zero_grad()
    total, size, all_logprobs, all_tokens, all_targets = 0.0, 0.0, [], [], []
    values = {}
    for length, per_row in zip(LENGTHS, candidates):
        tokens = torch.randint(VOCAB, (length,), generator=generator)
        targets = torch.randint(VOCAB, (length, per_row), generator=generator)
        logprobs = scored(model, tokens, targets)
        plain = logprobs.detach()
        if name == "cross_entropy":
            weights = torch.randn(targets.shape, generator=generator)
            weights[: length // 3] = 0
            weights[-1, -1] = 0
            columns = [weights]
        else:
            advantages = torch.randn(targets.shape, generator=generator)
            q = plain + 0.4 * torch.randn(targets.shape, generator=generator)
            low, high = (torch.full_like(q, bound) for bound in (options if len(options) == 2 else [0.0, 9.0]))
            mask = (advantages != 0).float()
            mask[: length // 3] = 0
            if own_bounds:
                mask *= 0.1 + torch.rand(targets.shape, generator=generator)
                low = low - 0.3 * torch.rand(targets.shape, generator=generator)
                high = high + 0.3 * torch.rand(targets.shape, generator=generator)
            if name == "gspo":
                ratio = torch.exp((mask * (plain - q)).sum() / mask.sum())
                q = torch.where(((ratio - torch.stack([low, high])).abs() < 1e-3).any(), q + 5e-3, q)
            else:
                q = away(plain, q, [low, high])
            advantages[: length // 3] = 0
            q[: length // 3] = 0
            columns = [q, advantages]
            if "clip_low_threshold" in INPUTS[name]:
                columns += [low, high]
            if name in ("gspo", "stable_reinforce"):
                columns.append(mask)
        constants = [] if "clip_low_threshold" in INPUTS[name] else options
        loss = LOSSES[name](logprobs, *columns, *constants)
        loss.sum().backward()
        total += loss.sum().item()
        size += loss.abs().sum().item()
        all_logprobs.append(plain.flatten())
        all_tokens.append(tokens)
        all_targets.append(targets.flatten())
        for key, column in zip(INPUTS[name], columns):
            if own_bounds or key not in (*BOUNDS, "sequence_ratio_mask"):
                values.setdefault(key, []).append(column.flatten())
    tensors |= {
        f"{place}.options": torch.tensor(options, dtype=torch.float64),
        f"{place}.lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        f"{place}.per_row": torch.tensor(candidates, dtype=torch.int32),
        f"{place}.tokens": torch.cat(all_tokens).to(torch.int32),
        f"{place}.targets": torch.cat(all_targets).to(torch.int32),
        f"{place}.logprobs": torch.cat(all_logprobs),
        f"{place}.loss": torch.tensor([total, size], dtype=torch.float64),
    }
    tensors |= {f"{place}.values.{key}": torch.cat(parts) for key, parts in values.items()}
    tensors |= {f"{place}.grad.{key}": value.grad.clone() for key, value in matrices.items()}
    print(f"{place}: loss {total:.6f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    terms(tensors, generator)
    save_file(tensors, HERE / "terms.safetensors")
    tensors = {}
    sequences(tensors, torch.Generator().manual_seed(1))
    save_file(tensors, HERE / "sequences.safetensors")

    base = Qwen3ForCausalLM.from_pretrained(TIED, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, TIED / "adapter", is_trainable=True)
    matrices = {key.replace(".default", ""): value for key, value in model.named_parameters() if "lora_" in key}
    tensors = {}
    for number, case in enumerate(STEPS):
        step(tensors, model, matrices, generator, number, case)
    save_file(tensors, HERE / "step.safetensors")
