"""Every operation by itself, traced by the official SDK, with torch's value and gradient.

Run by `cargo xtask golden`; writes operations.json beside itself. `x` [4, 3] is what the gradient is of; `a`
[4, 3], `v` [3] and `s` are floats, `n` [4] and `k` [4, 3] are integers below 3, `u` [4, 3] lies in (0, 1).
"""

import json
import math  # noqa: F401 - expressions use it
import pathlib

import torch
import torch.nn.functional as F
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

HERE = pathlib.Path(__file__).parent

UNARY = """neg abs exp exp2 expm1 log1p square sigmoid tanh sin cos tan atan sinh cosh erf erfc sign floor ceil
round trunc frac relu positive""".split()
ON_UNIT = "log log2 log10 sqrt rsqrt reciprocal asin acos logit".split()
BINARY = "add sub mul div maximum minimum fmod remainder atan2 hypot logaddexp logaddexp2 rsub".split()
COMPARISONS = "eq ne lt le gt ge greater less not_equal less_equal greater_equal logical_and logical_or".split()

EXPRESSIONS = [
    *(f"torch.{name}(x)" for name in UNARY if name != "positive"),
    *(f"torch.{name}(torch.sigmoid(x))" for name in ON_UNIT),
    *(f"torch.{name}(x, a)" for name in BINARY),
    *(f"x.{name}(v)" for name in BINARY if name not in ("rsub",)),
    *(f"torch.{name}(x, a)" for name in COMPARISONS),
    # arithmetic, operators, promotion
    "x + 1", "2 - x", "x * s", "1 / x", "x.detach() // 0.5", "x % 0.7", "-x % 3", "x ** 2", "x ** 3.0", "2.0 ** x", "u ** x",
    "x.abs() ** a", "torch.pow(x, 0)", "x + n.unsqueeze(1)", "n / 2", "n // 2", "n * 1.5", "n.float() ** 0.5",
    "x.double() * a", "x.to(torch.bfloat16) * 3.1", "x.half() + v", "(x * 100).to(torch.int8)", "x.int()", "x.bool()",
    "torch.add(x, a, alpha=0.3)", "x.sub(a, alpha=2)", "torch.div(x, a, rounding_mode='floor')",
    "torch.div(x, a, rounding_mode='trunc')", "torch.floor_divide(x.detach(), 0.3)", "torch.float_power(u, x)", "abs(x)", "+x",
    "~(x > 0) | (a > 0)", "(x > 0) ^ (a > 0)", "(n & 1) + (n | 2)", "(x > 0) & True", "torch.isclose(x, x + 1e-9)",
    "torch.lerp(x, a, 0.3)", "torch.addcmul(x, a, a, value=0.5)", "torch.addcdiv(x, a, u, value=2.0)",
    "torch.xlogy(x, u)", "torch.special.xlog1py(x, u)", "torch.special.entr(torch.sigmoid(x))",
    "torch.special.expit(x)", "torch.nan_to_num(torch.log(x * 0 - 1) + x, nan=0.5)",
    "torch.where(x > a, x, a)", "torch.where(x > 0, x * 2, 0.0)", "x.where(a > 0, a)", "torch.clamp(x, -0.5, 0.5)",
    "x.clamp(min=a)", "torch.clamp(x, max=v)", "x.clamp_min(0.1)", "x.clamp_max(0.1)", "torch.clip(x, 0.2, -0.2)",
    "torch.round(x, decimals=1)", "torch.logit(u * 0 + torch.sigmoid(x), eps=0.3)", "torch.isnan(x / 0.0)",
    "torch.rsqrt(u + x * x)", "x.reciprocal()", "torch.minimum(x, x)", "torch.fmax(x, torch.where(a > 0, a, float('nan')))", "torch.fmin(x, x)", "x.fmax(v)", "torch.maximum(x, x.detach())",
    # reductions
    "x.sum()", "x.sum(0)", "torch.sum(x, dim=1, keepdim=True)", "x.sum((0, 1))", "x.sum(dim=[-1])", "n.sum()",
    "x.sum(dtype=torch.float64)", "x.mean()", "torch.mean(x, 0)", "x.mean(-1, True)", "x.prod()", "x.prod(1)",
    "(x * (n > 0).unsqueeze(1)).prod(0)", "torch.amax(x, 0)", "x.amin((0, 1))", "x.max()", "x.max(0).values",
    "x.max(dim=1)[0]", "torch.max(x, 1, True)[0]", "torch.max(x, dim=1, keepdim=True).indices", "x.min(1).values",
    "torch.max(x, a)", "x.argmax()", "x.argmin(1)", "x.argmax(dim=0, keepdim=True)", "(x > 0).all()", "(x > 0).any(1)",
    "torch.count_nonzero(n)", "x.var()", "x.var(0)", "x.std(1)", "x.std(dim=0, unbiased=False)", "x.var(correction=0)",
    "torch.std(x, 1, keepdim=True)", "x.norm()", "torch.norm(x, dim=1)", "x.norm(1)", "torch.linalg.norm(x)",
    "torch.linalg.vector_norm(x, ord=3, dim=0)", "x.norm(float('inf'), dim=1)", "torch.logsumexp(x, 0)",
    "x.logsumexp(dim=(0, 1))", "torch.nansum(torch.where(a > 0, x, float('nan')))", "x.nanmean()", "x.median()",
    "torch.median(x, 0).values", "torch.amax(torch.round(x), 1)",
    # along a dimension
    "x.cumsum(0)", "torch.cumsum(x, dim=-1)", "n.cumsum(0)", "x.cumprod(1)", "torch.logcumsumexp(x, 0)",
    "x.cummax(0).values", "x.cummin(1)[1]", "torch.diff(x, dim=0)", "x.diff()", "torch.diff(x, n=2, dim=0)",
    "torch.softmax(x, 0)", "F.softmax(x, dim=-1)", "x.softmax(1, dtype=torch.float64)", "torch.log_softmax(x, -1)",
    "F.log_softmax(x, dim=0)", "F.softmin(x, dim=1)", "x.sort(0).values", "torch.sort(x, descending=True)[0]",
    "x.argsort(1)", "x.topk(2).values", "torch.topk(x, 2, dim=0, largest=False)[0]",
    # shapes
    "x.reshape(3, 4)", "x.view(-1)", "x.view(2, -1)", "x.reshape((6, 2))", "x.flatten()", "torch.flatten(x, 0, 1)",
    "x.ravel()", "x.unflatten(0, (2, 2))", "x[:1].squeeze(0)", "x.sum(0, keepdim=True).squeeze()", "x.unsqueeze(0)",
    "x.unsqueeze(-1)", "x.t()", "x.T", "x.mT", "x.transpose(0, 1)", "x.unsqueeze(0).permute(2, 0, 1)",
    "x.view_as(k)", "torch.movedim(x.unsqueeze(0), 0, 2)", "v.expand(4, 3) * x", "x[:, :1].expand(-1, 3)",
    "x[0].expand_as(a)", "torch.broadcast_to(x[0], (2, 3))", "x.repeat(2, 1)", "x.repeat(2, 1, 2)", "x.tile(2)",
    "x.repeat_interleave(2)", "torch.repeat_interleave(x, 3, dim=0)", "torch.flip(x, [0])", "x.flip(0, 1)",
    "torch.roll(x, 1)", "x.roll(-1, 0)", "torch.roll(x, (1, 2), (0, 1))", "torch.cat([x, a])", "torch.cat((x, a), dim=1)",
    "torch.stack([x, a], dim=1)", "torch.stack((x[0], v))", "torch.hstack([x, a])", "x.chunk(2)[1]", "x.chunk(3, dim=1)[0]",
    "torch.split(x, 3)[1]", "x.split([1, 3])[1]", "x.unbind(1)[2]", "torch.tril(x)", "x.triu(1)", "torch.tril(x, -1)",
    "x.diagonal()", "torch.diag(x[0])", "F.pad(x, (1, 2))", "F.pad(x, (-1, 1, 2, 0), value=0.5)", "x.contiguous()",
    "x.clone() * x.detach()", "x.data * x", "torch.atleast_1d(x.sum())", "x.size(0) * x", "x * x.shape[1]",
    "x * x.numel() + x.dim() + x.ndim", "x[: x.shape[0] // 2]", "x.reshape(x.shape[0] * x.shape[1])",
    # indices
    "x[0]", "x[-1]", "x[1:3]", "x[::2]", "x[:, 1]", "x[..., 0]", "x[None]", "x[:, None, 1:]", "x[1, 2]", "x[n]", "x[:, n]",
    "x[n, n]", "x[n[:2], :2]", "x[x > 0]", "x[n > 0]", "x[:, v > 0]", "x[[0, 2]]", "x[[0, 1], [1, 2]]", "x[n.unsqueeze(1), [0, 2]]",
    "x.unsqueeze(0)[:, n, n]", "x.unsqueeze(1)[n, :, n]", "x.select(1, 2)", "x.narrow(0, 1, 2)", "torch.gather(x, 1, k)",
    "x.gather(0, k)", "x.gather(1, n.unsqueeze(1))", "torch.take_along_dim(x, k, dim=1)", "torch.index_select(x, 0, n)",
    "x.take(n)", "torch.masked_select(x, a > 0)", "x.masked_fill(a > 0, float('-inf')).exp()", "x.masked_fill(a > 0, 0.5)",
    "(x > 0).nonzero()", "x.scatter(1, k[:, :1], a)", "x.scatter(1, k[:, :1], 0.7)", "a.scatter(0, k[:1], x[:1])",
    "x.scatter_add(1, k, a)", "torch.scatter_add(a, 0, k, x)", "a.index_add(0, n, x)", "x.index_fill(0, n[:2], 1.5)",
    # products
    "x @ a.T", "x @ v", "v @ x.T", "torch.matmul(x.T, a)", "torch.mm(x, a.t())", "x.mv(v)", "torch.dot(x[0], v)",
    "torch.outer(x[0], v)", "torch.bmm(x.unsqueeze(0), a.T.unsqueeze(0))", "x.unsqueeze(0) @ a.T", "torch.einsum('ij,ij->i', x, a)",
    "torch.einsum('ij,kj->ik', x, a)", "torch.einsum('ij,j', x, v)", "torch.einsum('ij->ji', x)", "torch.addmm(a @ a.T, x, a.T, beta=0.5)",
    # torch.nn.functional
    "F.relu(x)", "F.relu6(x * 5)", "F.silu(x)", "F.softsign(x)", "F.gelu(x)", "F.gelu(x, approximate='tanh')", "F.softplus(x)",
    "F.softplus(x, 2.0, 1.0)", "F.elu(x)", "F.leaky_relu(x, 0.2)", "F.hardtanh(x)", "F.threshold(x, 0.1, 7.0)", "F.logsigmoid(x)",
    "F.sigmoid(x)", "F.tanh(x)", "F.mse_loss(x, a)", "F.mse_loss(x, a, reduction='sum')", "F.l1_loss(x, a, reduction='none')",
    "F.smooth_l1_loss(x, a)", "F.smooth_l1_loss(x, a, beta=0.3)", "F.huber_loss(x, a, delta=0.4)", "F.kl_div(x, u)",
    "F.kl_div(x, a, log_target=True, reduction='batchmean')", "F.kl_div(x, u, reduction='sum')",
    "F.binary_cross_entropy(torch.sigmoid(x), u)", "F.binary_cross_entropy(torch.sigmoid(x), u, weight=u, reduction='sum')",
    "F.binary_cross_entropy_with_logits(x, u)", "F.binary_cross_entropy_with_logits(x, u, pos_weight=v.abs())",
    "F.nll_loss(x, n)", "F.nll_loss(x, n, weight=v.abs())", "F.nll_loss(x, n, ignore_index=1, reduction='sum')",
    "F.cross_entropy(x, n)", "F.cross_entropy(x, n, reduction='none')", "F.cross_entropy(x, n, label_smoothing=0.2)",
    "F.cross_entropy(x, n, weight=v.abs(), label_smoothing=0.2, ignore_index=2)", "F.cross_entropy(x, u)",
    "F.cross_entropy(x, u, label_smoothing=0.1)", "F.cross_entropy(x[0], n[0])",
    "F.margin_ranking_loss(x, a, torch.sign(u - 0.5), margin=0.2)", "F.hinge_embedding_loss(x, torch.sign(a))",
    "F.soft_margin_loss(x, torch.sign(a))", "F.gaussian_nll_loss(x, a, u)", "F.gaussian_nll_loss(a, u, x.exp(), full=True)",
    "F.poisson_nll_loss(x, u)", "F.cosine_similarity(x, a)", "torch.cosine_similarity(x, a, dim=0)", "F.pairwise_distance(x, a)",
    "F.normalize(x, dim=1)", "F.normalize(x, p=1.0, dim=0)", "F.one_hot(n, 3) * x", "F.one_hot(n) * x",
    # new tensors
    "torch.zeros_like(x) + x", "torch.ones_like(x, dtype=torch.float64) * x", "torch.full_like(x, 0.3) * x", "x.new_zeros(4, 1) + x",
    "x.new_ones((3,)) * x", "x.new_full((3,), 2.5) * x", "torch.zeros(x.shape[1]) + x", "torch.ones(x.shape) * x",
    "torch.full((x.shape[1],), 2.0) * x", "torch.arange(x.shape[1]) * x", "torch.arange(1, x.shape[1] + 1) * x",
    "torch.arange(0, x.shape[1], dtype=x.dtype, device=x.device) * x", "torch.linspace(0, 1, x.shape[1]) * x", "torch.eye(x.shape[1]) + x[0]",
    "x.type_as(a)", "x.to(x.device)", "x.to(torch.float64)", "x.to(a)", "x.type(torch.float64)",
    "x.float() * n.long().unsqueeze(1)",
    # numbers
    "x * math.sqrt(x.shape[0])", "x / math.log(x.shape[0])", "x * math.exp(s)", "x * math.pow(x.shape[0], 2)", "x * (x.shape[0] - 1) / (x.shape[1] + 1)",
    "x * (-x.shape[0] // 3) % (x.shape[1] ** 2)", "x * math.ceil(s)",
]


def function(expression):
    source = f"""
def operation(logprobs, a, v, s, n, k, u):
    x = logprobs
    y = {expression}
    z = y.float().flatten().cumsum(0)
    return z.square().mean() + x.sum(), {{"custom/last:sum": z[-1]}}
"""
    scope = {"torch": torch, "F": F, "math": math}
    exec(source, scope)  # noqa: S102 - the expressions are the ones above
    return scope["operation"]


def golden(expression, values):
    ranks = {"logprobs": 2, "a": 2, "v": 1, "s": 0, "n": 1, "k": 2, "u": 2}
    handle = trace_loss(function(expression), ranks, "session")
    x = values["logprobs"].clone().requires_grad_(True)
    loss, metrics = handle.graph(x, *list(values.values())[1:])
    loss.backward()
    return {
        "name": expression,
        "nodes": [
            {key: part for key, part in node.items() if part}
            for node in encode_graph(handle).model_dump()["nodes"][len(ranks) :]
        ],
        "loss": number(loss.item()),
        "last": number(metrics["custom/last:sum"].item()),
        "gradient": [number(g) for g in x.grad.reshape(-1).tolist()],
    }


def number(value):
    return value if math.isfinite(value) else str(value)


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(3)
    values = {
        "logprobs": torch.randn((4, 3), generator=generator),
        "a": torch.randn((4, 3), generator=generator),
        "v": torch.randn((3,), generator=generator),
        "s": torch.rand((), generator=generator) + 0.5,
        "n": torch.randint(0, 3, (4,), generator=generator),
        "k": torch.randint(0, 3, (4, 3), generator=generator),
        "u": torch.rand((4, 3), generator=generator) * 0.9 + 0.05,
    }
    inputs = [
        {
            "name": name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "data": value.reshape(-1).tolist(),
        }
        for name, value in values.items()
    ]
    cases = [json.dumps(golden(expression, values)) for expression in EXPRESSIONS]
    text = '{"inputs": ' + json.dumps(inputs) + ',\n"cases": [\n' + ",\n".join(cases) + "\n]}\n"
    (HERE / "operations.json").write_text(text)


if __name__ == "__main__":
    main()
