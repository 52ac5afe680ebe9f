"""Every regularizer on two datums of four logprobs, or of two tokens with two candidates, with torch's gradient.

Run by `cargo xtask golden`; writes regularizers.json beside itself.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
LOGPROBS = [[-0.7, -1.2, -0.1, -2.3], [-0.4, -0.9, -1.9, -0.6]]
REFERENCE = torch.tensor([[-0.5, -1.0, -1.5, -2.0], [-1.5, -0.25, -0.75, -0.5]], dtype=torch.float64)
MASK = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def masked_mean(x):
    return (x * MASK).sum() / MASK.expand_as(x).sum()


def entropy(x, temperature=1.0, normalize=False):
    x = F.log_softmax(x / temperature, dim=-1) if temperature != 1.0 else x
    h = torch.special.entr(x.exp()).sum(-1)
    return (h / torch.log(torch.tensor(x.shape[-1], dtype=x.dtype)) if normalize else h).mean()


def kl(p, q):
    return F.kl_div(q, p, reduction="none", log_target=True)


def orthogonal(rows, mode, normalize):
    if normalize:
        rows = F.normalize(rows, dim=-1)
    gram = rows @ rows.T
    eye = torch.eye(len(gram), dtype=gram.dtype)
    off = (gram * (1 - eye)).square().sum()
    return {
        "soft": off,
        "hard": torch.linalg.matrix_norm(gram - eye) ** 2,
        "spectral": off + (torch.trace(gram) - len(gram)) ** 2,
    }[mode]


def cubes(x):
    return x[0].pow(3).sum() + x[1].square().sum()


def steepness(x, target):
    # A graph of the gradient, so that it can be differentiated again.
    point = x if x.requires_grad else x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(cubes(point), point, create_graph=True)
    return (torch.linalg.vector_norm(gradient) - target) ** 2


VECTORS = {
    "l1": lambda x: torch.linalg.vector_norm(x, ord=1),
    "l1 of probabilities, mean": lambda x: x.exp().abs().mean(),
    "l1, masked": lambda x: masked_mean(x.abs()),
    "l2": lambda x: torch.linalg.vector_norm(x) ** 2,
    "l2 around the mean": lambda x: torch.var(x, unbiased=False),
    "l2 at -1, clipped, masked": lambda x: masked_mean((x + 1).clamp(-0.5, 0.5).square()),
    "elastic net": lambda x: 0.3 * x.abs().sum() + 0.7 * x.square().sum(),
    "entropy of targets": lambda x: torch.special.entr(x.exp()).mean(),
    "entropy, sought, masked": lambda x: -masked_mean(torch.special.entr(x.exp())),
    "kl, forward": lambda x: kl(x, REFERENCE).mean(),
    "kl, reverse": lambda x: kl(REFERENCE, x).mean(),
    "kl, symmetric": lambda x: (kl(x, REFERENCE) + kl(REFERENCE, x)).mean() / 2,
    "consistency, squared": lambda x: F.mse_loss(x, REFERENCE),
    "consistency, absolute": lambda x: F.l1_loss(x, REFERENCE),
    "consistency, cosine": lambda x: (1 - F.cosine_similarity(x, REFERENCE, dim=-1)).mean(),
    "consistency, neighbours": lambda x: F.mse_loss(x[0], x[1], reduction="sum"),
    "orthogonality, soft": lambda x: orthogonal(x, "soft", True),
    "orthogonality, hard": lambda x: orthogonal(x, "hard", False),
    "orthogonality, spectral, columns": lambda x: orthogonal(x.T, "spectral", False),
    "gradient penalty": lambda x: steepness(x, 1.0),
    "gradient penalty, between": lambda x: steepness(x * 0.3 + REFERENCE * 0.7, 0.5),
}
CANDIDATES = {
    "entropy of candidates": lambda x: entropy(x),
    "entropy, hot, normalized": lambda x: entropy(x, 2.0, True),
    "kl of candidates": lambda x: kl(x, REFERENCE.view_as(x)).sum(-1).mean(),
    "consistency, kl": lambda x: ((x.exp() - REFERENCE.view_as(x).exp()) * (x - REFERENCE.view_as(x))).sum(-1).mean() / 2,
    "orthogonality of candidates": lambda x: sum(orthogonal(datum, "hard", True) for datum in x),
}


def golden(name, penalty, shape):
    x = torch.tensor(LOGPROBS, dtype=torch.float64).view(2, *shape).requires_grad_()
    value = penalty(x)
    value.backward()
    return {"name": name, "candidates": len(shape) == 2, "value": value.item(), "gradient": x.grad.flatten().tolist()}


cases = [golden(name, penalty, (4,)) for name, penalty in VECTORS.items()]
cases += [golden(name, penalty, (2, 2)) for name, penalty in CANDIDATES.items()]
(HERE / "regularizers.json").write_text(json.dumps(cases, indent=1) + "\n")
