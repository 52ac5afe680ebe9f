"""Every loss through the official SDK, and targets of several candidates in each form that it sends."""

import pytest
import torch
from helpers import ADAM, datum, episode, logprobs, question, result, user_error
from tinker import TensorData, types

PROMPT = "What is the colour of the tin?"


def ratio_loss(name, logp, q, advantages, config):
    """The documented formula, by PyTorch."""
    ratio = torch.exp(logp - q)
    if name == "importance_sampling":
        return -(ratio * advantages).sum()
    if name == "dro":
        padding = (advantages == 0) & (q == 0)
        values = logp * advantages - 0.5 * config.get("beta", 0.05) * (logp - q) ** 2
        return -torch.where(padding, 0.0, values).sum()
    defaults = {"ppo": (0.8, 1.2), "cispo": (0.0, 4.0)}[name]
    low = config.get("clip_low_threshold", defaults[0])
    high = config.get("clip_high_threshold", defaults[1])
    clipped = torch.clamp(ratio, low, high)
    if name == "ppo":
        return -torch.min(ratio * advantages, clipped * advantages).sum()
    return -(clipped * logp * advantages).sum()


@pytest.fixture(scope="module")
def samples(server):
    """Datums of the base model's own samples, with advantages of both signs."""
    with server.service() as service:
        sampler = service.create_sampling_client(base_model="nano")
        prompt = question("Tell me a story.")
        params = types.SamplingParams(max_tokens=12, temperature=1.0, stop=[], seed=3)
        sequences = result(sampler.sample(types.ModelInput.from_ints(prompt), 6, params)).sequences
        numbered = enumerate(sequences)
        return [episode(prompt, sequence, number / 2 - 1.25) for number, sequence in numbered]


@pytest.mark.parametrize(
    "name, config",
    [
        ("importance_sampling", {}),
        ("ppo", {}),
        ("ppo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.02}),
        ("cispo", {}),
        ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("dro", {}),
        ("dro", {"beta": 0.5}),
    ],
)
def test_loss_is_the_documented_one(service, samples, name, config):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    column = lambda key: torch.cat([each.loss_fn_inputs[key].to_torch() for each in samples])
    for step in range(3):
        output = result(training.forward_backward(samples, name, config or None))
        result(training.optim_step(types.AdamParams(learning_rate=2e-2)))
        logp = torch.tensor(sum(logprobs(output), []))
        expected = ratio_loss(name, logp, column("logprobs"), column("advantages"), config)
        assert output.metrics["loss:sum"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-3)
        if step == 0 and name != "dro":
            assert output.metrics["ratio:max"] == 1.0
    if "clip_low_threshold" in config:
        assert output.metrics["clipped_low_tokens:sum"] + output.metrics["clipped_high_tokens:sum"] > 0


def soft(targets, weights):
    """A datum with K candidates a token, by hand."""
    tokens = question(PROMPT)[: targets.shape[0]]
    inputs = {"target_tokens": targets} | ({} if weights is None else {"weights": weights})
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def forms(targets, weights):
    """The same candidates in each form: the SDK makes sparse what is mostly zero and a torch tensor."""
    dense_targets, dense_weights = TensorData.from_torch(targets), TensorData.from_torch(weights)
    data = [
        soft(targets, weights),
        soft(targets, dense_weights),
        soft(dense_targets, weights),
        soft(dense_targets, dense_weights),
    ]
    sparse = [
        [each.loss_fn_inputs[key].sparse_crow_indices is not None for key in ("target_tokens", "weights")]
        for each in data
    ]
    assert sparse == [[True, True], [True, False], [False, True], [False, False]]
    return data


def candidates():
    targets, weights = torch.zeros(9, 6, dtype=torch.int64), torch.zeros(9, 6)
    targets[4:7, :3] = torch.tensor([[65, 66, 67], [97, 98, 99], [32, 33, 34]])
    weights[4:7, :3] = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [-1.0, 1.0, 2.0]])
    return targets, weights


def test_dense_and_sparse_in_one_batch(service):
    targets, weights = candidates()
    data = forms(targets, weights)
    plain = datum(question(PROMPT), "blue")
    narrow = soft(targets[:, :1], weights[:, :1])
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    output = result(training.forward_backward([*data, plain, narrow], "cross_entropy"))
    outputs = [entry["logprobs"].to_torch() for entry in output.loss_fn_outputs]
    assert [list(each.shape) for each in outputs] == [[9, 6]] * 4 + [[len(outputs[4])], [9, 1]]
    assert all(torch.equal(each, outputs[0]) for each in outputs[1:4])
    assert torch.equal(outputs[5], outputs[0][:, :1])
    loss = -4 * (outputs[0] * weights).sum() - (outputs[5] * weights[:, :1]).sum()
    loss -= (outputs[4] * plain.loss_fn_inputs["weights"].to_torch()).sum()
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-4)
    # Without weights, what a sparse tensor does not list has none.
    bare = result(training.forward([soft(targets, None)], "cross_entropy"))
    listed = outputs[0][targets != 0].sum()
    assert bare.metrics["loss:sum"] == pytest.approx(-listed.item(), rel=1e-4)


def test_each_form_gives_the_same_gradient(service):
    targets, weights = candidates()

    def after(step, each):
        training = service.create_lora_training_client(base_model="nano", rank=4, seed=2)
        output = result(step(training, each))
        result(training.optim_step(ADAM))
        return output, logprobs(result(training.forward([forms(targets, weights)[3]], "cross_entropy")))

    built_in = lambda training, each: training.forward_backward([each], "cross_entropy")

    def custom(training, each):
        loss = lambda _data, values: (-(values[0] * weights).sum(), {"rows": float(len(values[0]))})
        return training.forward_backward_custom([each], loss)

    data = forms(targets, weights)
    output, expected = after(built_in, data[0])
    for each in data[1:]:
        assert after(built_in, each)[1] == expected
    own, own_after = after(custom, data[1])
    assert own_after == expected
    assert own.metrics["loss:sum"] == pytest.approx(output.metrics["loss:sum"], rel=1e-5)


def sparse(values, crow, col, shape=(3, 2), dtype="int64"):
    return TensorData(
        data=values, dtype=dtype, shape=list(shape), sparse_crow_indices=crow, sparse_col_indices=col
    )


@pytest.mark.parametrize(
    "targets, place",
    [
        (sparse([4, 5], [0, 2, 1, 2], [0, 1]), "sparse_crow_indices"),
        (sparse([4, 5], [0, 2], [0, 1]), "sparse_crow_indices"),
        (sparse([4, 5], [0, 1, 1, 2], [0, 2]), "sparse_col_indices"),
        (sparse([4, 5], [0, 2, 2, 2], [1, 1]), "twice"),
        (sparse([4], [0, 2, 2, 2], [0, 1]), "target_tokens has 1 values"),
        (sparse([4, 5], [0, 1, 1, 2], [0, 1], (3, 1 << 40)), "target_tokens"),
        (sparse([4, 10**6], [0, 1, 1, 2], [0, 1]), "1000000"),
        (sparse([], [0] * 5, [], (4, 2)), "[4, 2]"),
    ],
)
def test_malformed_sparse_targets(service, targets, place):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    message = user_error(lambda: training.forward_backward([soft_of_three(targets)], "cross_entropy"))
    assert place in message and "data[0].loss_fn_inputs.target_tokens" in message, message


def soft_of_three(targets):
    return types.Datum(
        model_input=types.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs={"target_tokens": targets}
    )


@pytest.mark.parametrize(
    "loss, config, place",
    [
        ("ppo", {"beta": 0.1}, "clip_low_threshold"),
        ("ppo", {"clip_low_threshold": 1.5}, "clip_high_threshold"),
        ("cispo", {"clip_low_threshold": 2.0, "clip_high_threshold": 1.0}, "clip_high_threshold"),
        ("dro", {"beta": -1.0}, "beta"),
        ("dro", {"beta": float("nan")}, "beta"),
        ("cross_entropy", {"weights": 1.0}, "cross_entropy"),
        ("mse", {}, "importance_sampling, ppo, cispo, dro, gspo, stable_reinforce"),
    ],
)
def test_refused_settings(service, samples, loss, config, place):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    assert place in user_error(lambda: training.forward_backward(samples[:1], loss, config))
