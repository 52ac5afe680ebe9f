"""gspo and stable_reinforce through the official SDK: as documented, learning, and across a crash."""

import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import NANO
from helpers import episode, logprobs, question, result, user_error
from test_rl import reward
from tinker import types

PROMPT = "Tell me a story."
GROUP = 16


def traced(prompt, sequence, advantage):
    """An episode that says where its tokens come from, and leaves the logprobs to the server."""
    datum = episode(prompt, sequence, advantage)
    inputs = {key: value for key, value in datum.loss_fn_inputs.items() if key != "logprobs"}
    prompted = lambda **at: types.PromptProvenanceSpan(sequence_id=sequence.sequence_id, **at)
    sampled = lambda **at: types.SampledProvenanceSpan(sequence_id=sequence.sequence_id, **at)
    drawn = len(sequence.tokens)
    return types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs).with_provenance(
        model_input=[prompted(length=len(prompt)), sampled(length=drawn - 1)],
        loss_fn_inputs=[prompted(offset=1, length=len(prompt) - 1), sampled(length=drawn)],
    )


EPISODES = {"gspo": episode, "stable_reinforce": traced}


def sample(sampler, count, **params):
    params = types.SamplingParams(temperature=1.0, stop=[], **{"max_tokens": 8, **params})
    return sampler.sample(types.ModelInput.from_ints(question(PROMPT)), count, params)


@pytest.mark.parametrize("loss", ["gspo", "stable_reinforce"])
def test_reward_rises_across_a_crash(start, loss):
    server = start(f"nano={NANO}")
    training = server.service().create_lora_training_client(base_model="nano", rank=8, seed=4)
    config = {"kl_coeff": 0.01} if loss == "stable_reinforce" else None
    prompt, means = question(PROMPT), []
    for step in range(14):
        sampler = training.save_weights_and_get_sampling_client(record_stability_info=True)
        groups = [result(sample(sampler, GROUP)).sequences for _ in range(2)]
        if step == 5:
            server.kill()
            server.start()
        data, rewards = [], []
        for sequences in groups:
            scores = [reward(sequence.tokens) for sequence in sequences]
            mean = sum(scores) / len(scores)
            rewards += scores
            pairs = zip(sequences, scores)
            data += [EPISODES[loss](prompt, sequence, score - mean) for sequence, score in pairs]
        means.append(sum(rewards) / len(rewards))
        output = training.forward_backward(data, loss, config)
        result(training.optim_step(types.AdamParams(learning_rate=1e-2)))
        # The first ratios are one: the sampler is the learner. Where all rewards are alike, nothing counts.
        metrics = result(output).metrics
        assert metrics["ratio:max"] == pytest.approx(1.0 if metrics["tokens:sum"] else 0.0)
    assert sum(means[-3:]) > sum(means[:3]) + 0.3, means


@pytest.mark.parametrize("loss", ["gspo", "stable_reinforce"])
def test_replay_is_bit_equal(start, loss):
    def run(server, crash):
        training = server.service().create_lora_training_client(base_model="nano", rank=4, seed=1)
        sampler = training.save_weights_and_get_sampling_client(record_stability_info=True)
        sequences = result(sample(sampler, 4, seed=7)).sequences
        data = [EPISODES[loss](question(PROMPT), each, 0.5 - i) for i, each in enumerate(sequences)]
        given = []
        for step in range(4):
            if crash and step == 2:
                server.kill()
                server.start()
            output = training.forward_backward(data, loss)
            result(training.optim_step(types.AdamParams(learning_rate=1e-2)))
            given.append((logprobs(result(output)), result(output).metrics))
        return given

    server = start(f"nano={NANO}")
    undisturbed = run(server, False)
    assert run(server, True) == undisturbed
    assert undisturbed[0] != undisturbed[3]


@pytest.fixture(scope="module")
def drawn(server):
    """Recorded sequences of the base model's; their session stays open."""
    service = server.service()
    sampler = service.create_sampling_client(base_model="nano", record_stability_info=True)
    yield result(sample(sampler, 5, seed=3, max_tokens=12)).sequences
    service.close("success")


def column(data, key):
    return [each.loss_fn_inputs[key].to_torch() for each in data]


@pytest.mark.parametrize(
    "config", [{}, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}], ids=["paper", "given"]
)
@pytest.mark.parametrize("masked", [False, True])
def test_gspo_is_the_documented_one(service, drawn, config, masked):
    prompt = question(PROMPT)
    data = [episode(prompt, each, number / 2 - 1.25) for number, each in enumerate(drawn)]
    masks = []
    for each in data:
        mask = (each.loss_fn_inputs["advantages"].to_torch() != 0).float()
        mask[-3:] = 0 if masked else mask[-3:]
        masks.append(mask)
        if masked:
            each.loss_fn_inputs["sequence_ratio_mask"] = types.TensorData.from_torch(mask)
    low, high = config.get("clip_low_threshold", 0.9997), config.get("clip_high_threshold", 1.0004)
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    for _ in range(3):
        output = result(training.forward_backward(data, "gspo", config or None))
        loss = 0.0
        rows = zip(logprobs(output), column(data, "logprobs"), column(data, "advantages"), masks)
        for logp, q, advantages, mask in rows:
            ratio = torch.exp((mask * (torch.tensor(logp) - q)).sum() / mask.sum())
            values = torch.min(ratio * advantages, torch.clamp(ratio, low, high) * advantages)
            loss -= values.sum().item()
        assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-4, abs=1e-3)
        alone = result(training.forward(data, "gspo", config or None))
        assert (alone.metrics, logprobs(alone)) == (output.metrics, logprobs(output))
        result(training.optim_step(types.AdamParams(learning_rate=2e-2)))
    assert output.metrics["clipped_low_tokens:sum"] + output.metrics["clipped_high_tokens:sum"] > 0


@pytest.mark.parametrize("config", [{}, {"kl_coeff": 0.5, "clip_high_threshold": 1.1}], ids=["default", "given"])
def test_stable_reinforce_is_the_documented_one(service, drawn, config, caplog):
    prompt = question(PROMPT)
    data = [traced(prompt, each, number / 2 - 1.25) for number, each in enumerate(drawn)]
    high, kl = config.get("clip_high_threshold", 2.0), config.get("kl_coeff", 0.0)
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    for _ in range(3):
        with caplog.at_level(logging.WARNING):
            output = result(training.forward_backward(data, "stable_reinforce", config or None))
        loss = 0.0
        for logp, advantages, each in zip(logprobs(output), column(data, "advantages"), drawn):
            count = len(each.tokens)
            logp, q = torch.tensor(logp)[-count:], torch.tensor(each.logprobs)
            weight = torch.exp(logp - q).clamp(max=high)
            values = weight * (logp * advantages[-count:] - 0.5 * kl * (logp - q) ** 2)
            loss -= values.sum().item()
        assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-4, abs=1e-3)
        alone = result(training.forward(data, "stable_reinforce", config or None))
        assert (alone.metrics, logprobs(alone)) == (output.metrics, logprobs(output))
        result(training.optim_step(types.AdamParams(learning_rate=2e-2)))
    assert any("the formula is this server's own" in message for message in caplog.messages)


def test_what_cannot_be_traced_is_refused(server, service, drawn):
    prompt = question(PROMPT)
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    refused = lambda datum: user_error(lambda: training.forward_backward([datum], "stable_reinforce"))
    assert "data[0] says nothing of where its tokens come from" in refused(episode(prompt, drawn[0], 1.0))

    tokens = list(drawn[1].tokens)
    changed = SimpleNamespace(
        tokens=tokens[:-1] + [tokens[-1] ^ 1], logprobs=drawn[1].logprobs, sequence_id=drawn[1].sequence_id
    )
    assert f"target_tokens[{len(prompt) + len(tokens) - 2}]" in refused(traced(prompt, changed, 1.0))

    with server.service() as elsewhere:
        sampler = elsewhere.create_sampling_client(base_model="nano")
        unrecorded = result(sample(sampler, 1)).sequences[0]
        assert "nothing is recorded of the sequence" in refused(traced(prompt, unrecorded, 1.0))
        sampler = elsewhere.create_sampling_client(base_model="nano", record_stability_info=True)
        ended = result(sample(sampler, 1)).sequences[0]
    assert "nothing is recorded of the sequence" in refused(traced(prompt, ended, 1.0))
    # The run goes on.
    result(training.forward_backward([traced(prompt, drawn[0], 1.0)], "stable_reinforce"))
    result(training.optim_step(types.AdamParams(learning_rate=1e-3)))


@pytest.mark.parametrize(
    "loss, config, place",
    [
        ("gspo", {"clip_low_threshold": 1.5}, "clip_high_threshold"),
        ("gspo", {"kl_coeff": 0.1}, "kl_coeff"),
        ("stable_reinforce", {"kl_coeff": -0.1}, "kl_coeff = -0.1 is below 0"),
        ("stable_reinforce", {"clip_low_threshold": 0.1}, "clip_low_threshold"),
    ],
)
def test_refused_settings(service, drawn, loss, config, place):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    data = [EPISODES[loss](question(PROMPT), drawn[0], 1.0)]
    assert place in user_error(lambda: training.forward_backward(data, loss, config))


def test_dimuon_is_refused(service):
    config = types.DimuonOptimizerConfig()
    create = lambda: service.create_lora_training_client(base_model="nano", rank=4, optimizer=config)
    assert "its algorithm is not published" in user_error(create)
    training = service.create_lora_training_client(base_model="nano", rank=4)
    params = types.DimuonParams(learning_rate=1e-3)
    assert "the run's optimizer is adamw" in user_error(lambda: training.optim_step(params))
    path = result(training.save_state("saved")).path
    load = lambda: service.create_training_client_from_state(path, optimizer=config)
    assert "its algorithm is not published" in user_error(load)
    result(training.optim_step(types.AdamParams(learning_rate=1e-3)))
