"""Losses as people write them, traced by the official SDK, with torch's loss, metrics and gradient.

Run by `cargo xtask golden`; writes losses.json beside itself.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from tinker.lib.public_interfaces.custom_loss import encode_graph, run_loss_handle, trace_loss
from tinker import types

HERE = pathlib.Path(__file__).parent
VOCABULARY = 50


def cross_entropy(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/tokens:sum": weights.sum(), "custom/nll:mean": loss / weights.sum()}


def importance_sampling(logprobs, sampled, advantages):
    ratio = torch.exp(logprobs - sampled)
    return -(ratio * advantages).sum(), {"custom/ratio:mean": ratio.mean()}


def ppo(logprobs, sampled, advantages, mask):
    ratio = (logprobs - sampled).exp()
    clipped = ratio.clamp(0.8, 1.2)
    loss = -(torch.minimum(ratio * advantages, clipped * advantages) * mask).sum()
    outside = ((ratio != clipped) & (mask > 0)).float().sum()
    return loss, {"custom/clipped:sum": outside}


def ppo_dual_clip(logprobs, sampled, advantages, mask):
    ratio = torch.exp(torch.clamp(logprobs - sampled, -20.0, 20.0))
    surrogate = torch.min(ratio * advantages, torch.clip(ratio, 0.8, 1.28) * advantages)
    dual = torch.where(advantages < 0, torch.max(surrogate, 3.0 * advantages), surrogate)
    return -(dual * mask).sum() / mask.sum().clamp(min=1.0), {"custom/dual:mean": dual.mean()}


def ppo_kl_penalty(logprobs, sampled, advantages, reference, mask):
    ratio = torch.exp(logprobs - sampled)
    gap = reference - logprobs
    k3 = gap.exp() - gap - 1
    loss = -((ratio * advantages - 0.05 * k3) * mask).sum()
    return loss, {"custom/kl/k3:mean": (k3 * mask).sum() / mask.sum()}


def cispo(logprobs, sampled, advantages, mask):
    ratio = torch.exp(logprobs - sampled).detach()
    weight = torch.clamp(ratio, max=1.3)
    return -(weight * advantages * logprobs * mask).sum(), {"custom/weight:mean": weight.mean()}


def gspo(logprobs, sampled, advantages, mask):
    length = mask.sum()
    log_ratio = ((logprobs - sampled) * mask).sum() / length
    sequence = log_ratio.detach() + logprobs - logprobs.detach()
    ratio = torch.exp(sequence)
    loss = -(torch.min(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages) * mask).sum()
    return loss / length, {"custom/sequence_ratio:mean": torch.exp(log_ratio)}


def reinforce_baseline(logprobs, advantages, mask):
    baseline = (advantages * mask).sum() / mask.sum()
    spread = ((advantages - baseline).square() * mask).sum().div(mask.sum()).sqrt()
    normal = (advantages - baseline) / (spread + 1e-6)
    return -(logprobs * normal * mask).sum(), {"custom/spread:mean": spread}


def discounted_returns(logprobs, rewards, mask):
    steps = torch.arange(logprobs.shape[0], dtype=torch.float32)
    discount = 0.95**steps
    returns = torch.flip(torch.cumsum(torch.flip(rewards * discount, [0]), dim=0), [0]) / discount
    returns = (returns - returns.mean()) / (returns.std() + 1e-8)
    return -(logprobs * returns * mask).sum(), {"custom/return:mean": returns[0]}


def dpo_segments(logprobs, reference, chosen, beta):
    gap = logprobs - reference
    margin = (gap * chosen).sum() - (gap * (1 - chosen)).sum()
    loss = -F.logsigmoid(beta * margin)
    return loss, {"custom/margin:mean": margin, "custom/correct:mean": (margin > 0).float()}


def ipo_segments(logprobs, reference, chosen):
    gap = logprobs - reference
    good = (gap * chosen).sum() / chosen.sum()
    bad = (gap * (1.0 - chosen)).sum() / (1.0 - chosen).sum()
    return (good - bad - 1 / (2 * 0.1)) ** 2, {"custom/margin:mean": good - bad}


def kto(logprobs, reference, label, mask):
    gap = ((logprobs - reference) * mask).sum()
    sign = 2.0 * label - 1.0
    return 1 - torch.sigmoid(0.1 * sign * gap), {"custom/gap:sum": gap}


def orpo(logprobs, chosen):
    good = (logprobs * chosen).sum() / chosen.sum()
    bad = (logprobs * (1 - chosen)).sum() / (1 - chosen).sum()
    odds = (good - bad) - (torch.log1p(-torch.exp(good)) - torch.log1p(-torch.exp(bad)))
    return -good - 0.25 * F.logsigmoid(odds), {"custom/odds:mean": odds}


def simpo_pairwise(logprobs, chosen):
    scores = torch.stack([(logprobs * chosen).sum(), (logprobs * (1 - chosen)).sum()])
    lengths = torch.stack([chosen.sum(), (1 - chosen).sum()])
    mean = 2.0 * scores / lengths
    return F.softplus(-(mean[0] - mean[1] - 0.5)), {"custom/gap:mean": mean[0] - mean[1]}


def pairwise_ranking(logprobs, scores):
    model = logprobs.unsqueeze(1) - logprobs.unsqueeze(0)
    wanted = (scores.unsqueeze(1) > scores.unsqueeze(0)).float()
    loss = (F.softplus(-model) * wanted).sum() / wanted.sum().clamp(min=1)
    return loss, {"custom/pairs:sum": wanted.sum()}


def margin_ranking(logprobs, scores):
    best = torch.argmax(scores)
    good = logprobs[best]
    loss = F.margin_ranking_loss(good.expand(logprobs.shape[0]), logprobs, torch.ones_like(logprobs), margin=0.5)
    return loss, {"custom/best:mean": good}


def entropy_regularised(logprobs, weights):
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).sum(dim=-1)
    loss = -(logprobs * weights).sum() - 0.01 * entropy.sum()
    return loss, {"custom/entropy:mean": entropy.mean()}


def focal(logprobs, weights):
    p = torch.exp(logprobs)
    return -((1 - p) ** 2.0 * logprobs * weights).sum(), {"custom/p:mean": p.mean()}


def label_smoothing(logprobs, weights):
    k = logprobs.size(-1)
    smooth = 0.9 * logprobs[:, 0] + 0.1 * logprobs.sum(-1) / k
    return -(smooth * weights[:, 0]).sum(), {}


def topk_distillation(logprobs, teacher):
    student = F.log_softmax(logprobs, dim=-1)
    target = F.softmax(teacher / 2.0, dim=-1)
    loss = F.kl_div(student, target, reduction="batchmean")
    agree = (student.argmax(-1) == target.argmax(-1)).float().mean()
    return loss, {"custom/agree:mean": agree}


def reverse_kl_distillation(logprobs, teacher, mask):
    student = logprobs.log_softmax(-1)
    target = torch.log_softmax(teacher, dim=1)
    kl = torch.sum(student.exp() * (student - target), dim=1)
    return (kl * mask).sum() / mask.sum(), {"custom/kl:mean": kl.max()}


def jensen_shannon(logprobs, teacher):
    p, q = torch.softmax(logprobs, -1), torch.softmax(teacher, -1)
    m = torch.log(0.5 * (p + q))
    js = 0.5 * (F.kl_div(m, p, reduction="none") + F.kl_div(m, q, reduction="none")).sum(-1)
    return js.sum(), {"custom/js:mean": js.mean()}


def contrastive(logprobs, labels):
    logits = logprobs / 0.1
    return F.cross_entropy(logits, labels, label_smoothing=0.05), {
        "custom/accuracy:mean": (logits.argmax(dim=1) == labels).float().mean()
    }


def unlikelihood(logprobs, weights):
    bad = torch.log(torch.clamp(1.0 - torch.exp(logprobs), min=1e-5))
    return -(torch.where(weights > 0, logprobs, bad)).sum(), {}


def minimum_risk(logprobs, scores):
    share = torch.softmax(logprobs.sum(-1) * 0.5, dim=0)
    risk = (share * (1 - scores)).sum()
    return risk, {"custom/risk:sum": risk}


def huber_value(logprobs, returns, mask):
    values = torch.tanh(logprobs)
    loss = (F.huber_loss(values, returns, reduction="none", delta=0.5) * mask).sum()
    return loss, {"custom/explained:mean": 1 - torch.var(returns - values) / torch.var(returns)}


def truncated_importance(logprobs, sampled, advantages):
    ratio = torch.exp((logprobs - sampled).double()).float()
    keep = (ratio > 0.2) & (ratio < 5.0)
    weight = torch.where(keep, ratio.clamp(max=2.0), torch.zeros_like(ratio)).detach()
    return -(weight * logprobs * advantages).sum(), {"custom/kept:mean": keep.float().mean()}


def token_top_half(logprobs, weights):
    hard = torch.topk(-logprobs, 3).values
    threshold = hard[-1].detach()
    mask = (-logprobs >= threshold).to(logprobs.dtype)
    return -(logprobs * weights * mask).sum() / mask.sum(), {"custom/hard:mean": hard.mean()}


def sequence_level_baseline(logprobs, advantages, mask):
    n = mask.sum()
    total = torch.einsum("t,t->", logprobs, mask)
    scale = math.sqrt(logprobs.shape[0])
    return -(total / n) * (advantages @ mask) / scale, {"custom/length:sum": n}


def soft_clip(logprobs, sampled, advantages):
    gap = torch.logaddexp(logprobs - sampled, torch.zeros_like(logprobs))
    weight = torch.pow(1.0 + gap, -0.5)
    return -(weight * advantages).sum() + 1e-3 * torch.norm(logprobs), {}


def position_gathered(logprobs, positions):
    chosen = torch.gather(logprobs, 0, positions)
    spread = torch.zeros_like(logprobs).scatter_add(0, positions, chosen)
    return -(chosen.mean() + (spread**2).sum() * 0.1), {"custom/chosen:sum": chosen.sum()}


def scalar_temperature(logprobs, temperature, weights):
    return -(torch.log_softmax(logprobs / temperature, dim=-1) * weights).sum(), {
        "custom/temperature:mean": temperature
    }


FLOAT, MASK, TOKENS, POSITIVE = "float", "mask", "int", "positive"
KINDS = {
    "weights": POSITIVE, "mask": MASK, "chosen": MASK, "labels": TOKENS, "positions": TOKENS,
    "beta": POSITIVE, "temperature": POSITIVE, "label": MASK,
}
LOSSES = [
    (cross_entropy, "11"), (importance_sampling, "111"), (ppo, "1111"), (ppo_dual_clip, "1111"),
    (ppo_kl_penalty, "11111"), (cispo, "1111"), (gspo, "1111"), (reinforce_baseline, "111"),
    (discounted_returns, "111"), (dpo_segments, "1110"), (ipo_segments, "111"), (kto, "1101"),
    (orpo, "11"), (simpo_pairwise, "11"), (pairwise_ranking, "11"), (margin_ranking, "11"),
    (entropy_regularised, "22"), (focal, "11"), (label_smoothing, "22"), (topk_distillation, "22"),
    (reverse_kl_distillation, "221"), (jensen_shannon, "22"), (contrastive, "21"),
    (unlikelihood, "11"), (minimum_risk, "21"), (huber_value, "111"),
    (truncated_importance, "111"), (token_top_half, "11"), (sequence_level_baseline, "111"),
    (soft_clip, "111"), (position_gathered, "11"), (scalar_temperature, "202"),
]


def value(name, rank, length, width, generator):
    shape = [[], [length], [length, width]][rank]
    kind = KINDS.get(name, FLOAT)
    if name in ("logprobs", "sampled", "reference", "teacher"):
        return -torch.rand(shape, generator=generator) * 2 - 0.05
    if kind == MASK:
        mask = torch.ones(shape)
        if rank == 1:
            mask[: length // 2] = 0.0
        return mask
    if kind == TOKENS:
        return torch.randint(0, min(length, width), shape, generator=generator)
    if kind == POSITIVE:
        return torch.rand(shape, generator=generator) + 0.1
    return torch.randn(shape, generator=generator)


def tensor(value):
    flat = [float(x) for x in value.reshape(-1).tolist()]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "data": flat}


def golden(function, ranks):
    names = list(function.__code__.co_varnames[: function.__code__.co_argcount])
    declared = {name: int(rank) for name, rank in zip(names, ranks, strict=True)}
    handle = trace_loss(function, declared, "session")
    generator = torch.Generator().manual_seed(sum(map(ord, function.__name__)))
    cases = []
    for length, width in [(6, 4), (9, 3)]:
        values = [value(name, declared[name], length, width, generator) for name in names]
        logprobs = values[0].clone().requires_grad_(True)
        loss, metrics = handle.graph(logprobs, *values[1:])
        loss.backward()
        cases.append({
            "inputs": [tensor(value) for value in values],
            "loss": loss.item(),
            "metrics": {name: float(metric) for name, metric in metrics.items()},
            "gradient": logprobs.grad.reshape(-1).tolist(),
        })
    return {
        "name": function.__name__,
        "inputs": [{"name": name, "rank": declared[name]} for name in names],
        "graph": encode_graph(handle).model_dump(),
        "cases": cases,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses = [json.dumps(golden(function, ranks)) for function, ranks in LOSSES]
    (HERE / "losses.json").write_text("[\n" + ",\n".join(losses) + "\n]\n")
