"""Losses that are traced here and run on the server."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers import ADAM, logprobs, plain_datum, result, user_error
from tinker import types

# Steps in proportion to the gradient: its last bits, which differ from torch's, are not blown up. Where the
# kernels round to bf16, a last bit may still become its last bit.
AFTER_STEPS = 5e-3
SMOOTH = types.AdamParams(learning_rate=0.02, eps=1.0)
RANKS = {"logprobs": 1, "sampled": 1, "advantages": 1, "mask": 1}


def ppo_with_entropy(logprobs, sampled, advantages, mask):
    ratio = torch.exp(logprobs - sampled)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    entropy = -(logprobs.exp() * logprobs * mask).sum()
    loss = -(surrogate * mask).sum() / mask.sum() - 0.01 * entropy
    return loss, {
        "custom/entropy:sum": entropy,
        "custom/ratio:mean": (ratio * mask).sum() / mask.sum(),
        "custom/clipped:sum": (ratio != ratio.clamp(0.8, 1.2)).float().sum(),
    }


def preference(logprobs, sampled, advantages, mask):
    gap = logprobs - sampled.detach()
    chosen = (advantages > 0).float() * mask
    rejected = (advantages <= 0).float() * mask
    margin = (gap * chosen).sum() / chosen.sum().clamp(min=1) - (gap * rejected).sum() / rejected.sum().clamp(min=1)
    return -F.logsigmoid(2.0 * margin), {"custom/margin:mean": margin}


def returns_to_go(logprobs, sampled, advantages, mask):
    returns = torch.flip(torch.cumsum(torch.flip(advantages * mask, [0]), dim=0), [0])
    weight = torch.softmax(sampled, dim=-1) * logprobs.shape[0]
    return -(weight * logprobs * returns)[:-1].sum(), {"custom/first:mean": returns[0]}


def data(count=3):
    generator = torch.Generator().manual_seed(7)
    datums = []
    for i in range(count):
        tokens = torch.randint(5, 200, (6 + 3 * i,), generator=generator).tolist()
        length = len(tokens) - 1
        datums.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(tokens[:-1]),
                loss_fn_inputs={
                    "target_tokens": types.TensorData.from_torch(torch.tensor(tokens[1:])),
                    "sampled": types.TensorData.from_torch(-5 * torch.rand(length, generator=generator)),
                    "advantages": types.TensorData.from_torch(torch.randn(length, generator=generator)),
                    "mask": types.TensorData.from_torch(torch.ones(length)),
                },
            )
        )
    return datums


def trained(service, handle, datums, steps=2):
    """Metrics of each step, and the logprobs that the steps lead to."""
    training = service.create_lora_training_client("nano", rank=8, seed=3)
    metrics = []
    for _ in range(steps):
        output = training.forward_backward_custom(datums, handle)
        step = training.optim_step(SMOOTH)
        metrics.append(result(output).metrics)
        result(step)
    plain = [plain_datum([*d.model_input.to_ints(), 1]) for d in datums]
    return metrics, logprobs(result(training.forward(plain, "cross_entropy")))


@pytest.mark.parametrize("loss", [ppo_with_entropy, preference, returns_to_go])
def test_server_and_client_agree(service, loss):
    handle = result(service.create_custom_loss(loss, RANKS))
    assert handle.loss_id
    here = dataclasses.replace(handle, loss_id=None)
    on_server, after = trained(service, handle, data())
    on_client, expected = trained(service, here, data())
    for step, (ours, theirs) in enumerate(zip(on_server, on_client, strict=True)):
        names = {name for name in theirs if name.startswith("custom/")} | {"loss:sum"}
        assert names <= set(ours) and len(names) > 1
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=AFTER_STEPS if step else 1e-5, abs=1e-6), name
    for ours, theirs in zip(after, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=AFTER_STEPS, abs=0.03)


def test_it_learns(service):
    def nll(logprobs, weights):
        loss = -(logprobs * weights).sum()
        return loss, {"custom/nll:sum": loss}

    handle = result(service.create_custom_loss(nll, {"logprobs": 1, "weights": 1}))
    training = service.create_lora_training_client("nano", rank=8, seed=1)
    datums = [plain_datum([5, 9, 77, 31, 8, 9]), plain_datum([8, 8, 4, 100])]
    losses = []
    for _ in range(8):
        metrics = result(training.forward_backward_custom(datums, handle)).metrics
        result(training.optim_step(ADAM))
        assert metrics["custom/nll:sum"] == pytest.approx(metrics["loss:sum"])
        losses.append(metrics["loss:sum"])
    assert losses[-1] < 0.7 * losses[0], losses
    built_in = result(training.forward(datums, "cross_entropy"))
    alone = result(training.forward(datums, "custom", {"loss_id": handle.loss_id}))
    assert alone.metrics["loss:sum"] == pytest.approx(built_in.metrics["loss:sum"], rel=1e-5)
    assert logprobs(alone) == logprobs(built_in)


def test_candidates_and_scalars(service):
    def distillation(logprobs, teacher, temperature):
        student = torch.log_softmax(logprobs, dim=-1)
        target = torch.softmax(teacher / temperature, dim=-1)
        kl = F.kl_div(student, target, reduction="none").sum(-1)
        return kl.mean(), {"custom/agree:mean": (student.argmax(-1) == target.argmax(-1)).float().mean()}

    ranks = {"logprobs": 2, "teacher": 2, "temperature": 0}
    handle = result(service.create_custom_loss(distillation, ranks))
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(torch.tensor([[6, 9], [7, 10], [8, 11]])),
            "teacher": types.TensorData.from_torch(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]])),
            "temperature": types.TensorData.from_torch(torch.tensor(2.0)),
        },
    )
    on_server, after = trained(service, handle, [datum])
    on_client, expected = trained(service, dataclasses.replace(handle, loss_id=None), [datum])
    for name in ("loss:sum", "custom/agree:mean"):
        assert on_server[0][name] == pytest.approx(on_client[0][name], rel=1e-5)
    assert after[0] == pytest.approx(expected[0], rel=AFTER_STEPS, abs=0.03)
    assert on_server[1]["loss:sum"] < on_server[0]["loss:sum"]


def test_what_is_not_listed_is_refused_by_name(service):
    def bessel(logprobs):
        return torch.special.i0(logprobs).sum(), {}

    def noisy(logprobs):
        return (logprobs + torch.randn_like(logprobs)).sum(), {}

    def in_place(logprobs):
        return logprobs.exp().mul_(2.0).sum(), {}

    for loss, name in ((bessel, "special_i0"), (noisy, "randn_like"), (in_place, "mul_")):
        assert name in user_error(lambda loss=loss: service.create_custom_loss(loss, {"logprobs": 1}))


def test_mistakes_fail_their_request_alone(service):
    def divided(logprobs, mask):
        return (logprobs * mask).sum() / (logprobs.detach() - logprobs.detach()).sum(), {}

    def indexed(logprobs, mask):
        return (logprobs * mask)[100], {}

    training = service.create_lora_training_client("nano", rank=8)
    ranks = {"logprobs": 1, "mask": 1}
    handles = [result(service.create_custom_loss(loss, ranks)) for loss in (divided, indexed)]
    bad = [
        (lambda: training.forward_backward(data(), "custom", {"loss_id": "unknown"}), "unknown"),
        (lambda: training.forward_backward(data(), "custom"), "loss_id"),
        (lambda: training.forward_backward_custom(data(), handles[0]), "finite"),
        (lambda: training.forward_backward_custom(data(), handles[1]), "100"),
    ]
    for call, word in bad:
        assert word in user_error(call)
    # Nothing of them is in the gradient, and the run goes on.
    before = result(training.forward([plain_datum([5, 6, 7])], "cross_entropy"))
    result(training.optim_step(ADAM))
    after = result(training.forward([plain_datum([5, 6, 7])], "cross_entropy"))
    assert logprobs(after) == logprobs(before)


def test_a_restart_changes_nothing(start):
    def run(kill):
        server = start()
        service = server.service()
        handle = result(service.create_custom_loss(ppo_with_entropy, RANKS))
        training = service.create_lora_training_client("nano", rank=8, seed=11)
        metrics = []
        for step in range(4):
            output = training.forward_backward_custom(data(), handle)
            if kill and step == 2:
                result(output)
                server.kill()
                server.start()
            result(training.optim_step(ADAM))
            metrics.append(result(output).metrics)
        return metrics

    assert run(kill=True) == run(kill=False)


def test_a_loss_belongs_to_its_session(server):
    with server.service() as one, server.service() as two:
        handle = result(one.create_custom_loss(preference, RANKS))
        training = two.create_lora_training_client("nano", rank=8)
        with pytest.raises(ValueError, match="session"):
            training.forward_backward_custom(data(), handle)
        message = user_error(lambda: training.forward_backward(data(), "custom", {"loss_id": handle.loss_id}))
        assert "custom loss" in message
