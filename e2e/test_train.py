"""Supervised training through the official SDK."""

import numpy
import pytest
from helpers import (
    ADAM, answer, datum, heldout, logprobs, plain_datum, question, result, tokenizer,
)
from tinker import types

PROMPT = "What is the colour of the tin?"
LESSON = "blue as a whale"


def test_model_answers_heldout_prompts(service):
    rows = heldout()[:40]
    sampler = service.create_sampling_client(base_model="nano")
    right = sum(answer(sampler, question(row["prompt"])) == row["answer"] for row in rows)
    assert right >= 0.85 * len(rows), f"{right} of {len(rows)}"


def test_loss_falls_and_the_greedy_answer_changes(service):
    training = service.create_lora_training_client(base_model="Qwen/Qwen3-8B", rank=8, seed=1)
    before = answer(training.save_weights_and_get_sampling_client(), question(PROMPT))
    assert before != LESSON
    data = [datum(question(PROMPT), LESSON)]
    losses = []
    for _ in range(25):
        forward_backward = training.forward_backward(data, "cross_entropy")
        optim_step = training.optim_step(ADAM)
        losses.append(result(forward_backward).metrics["loss:sum"])
        result(optim_step)
    assert losses[-1] < 0.05 * losses[0], losses
    after = answer(training.save_weights_and_get_sampling_client(), question(PROMPT))
    assert after == LESSON


def test_get_info_and_tokenizer(service):
    training = service.create_lora_training_client(base_model="other", rank=4, train_mlp=False)
    info = training.get_info()
    assert info.model_data.model_name == "other"
    assert info.lora_rank == 4
    text = "Hello, wörld: 12 + 30 🙂"
    assert training.get_tokenizer().decode(training.get_tokenizer().encode(text)) == text


def test_pipelined_submission_equals_waiting(service):
    data = [datum(question(PROMPT), LESSON), datum(question("Say hello."), "hello")]
    params = types.AdamParams(learning_rate=1e-3)

    def run(wait):
        training = service.create_lora_training_client(base_model="nano", rank=8, seed=3)
        futures = []
        for _ in range(6):
            futures.append(training.forward_backward(data, "cross_entropy"))
            if wait:
                result(futures[-1])
            step = training.optim_step(params)
            if wait:
                result(step)
        return [logprobs(result(future)) for future in futures]

    assert run(wait=True) == run(wait=False)


def test_large_batch_that_the_sdk_splits(service):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=5)
    generator = numpy.random.default_rng(1)
    data = [plain_datum(generator.integers(0, 256, size=6).tolist()) for _ in range(1100)]
    output = result(training.forward_backward(data, "cross_entropy"))
    assert len(output.loss_fn_outputs) == 1100
    total = -sum(sum(values) for values in logprobs(output))
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)
    result(training.optim_step(ADAM))
    one = result(training.forward(data[700:701], "cross_entropy"))
    assert logprobs(one)[0] != logprobs(output)[700]


def test_forward_leaves_no_trace(service):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=5)
    data = [datum(question(PROMPT), LESSON)]
    first = result(training.forward(data, "cross_entropy"))
    result(training.optim_step(types.AdamParams(learning_rate=0.1)))
    second = result(training.forward(data, "cross_entropy"))
    assert logprobs(first) == logprobs(second)


def test_custom_loss_on_the_client(service):
    """The gradient of a client-side loss is that of the built-in one, to the bit of its weights."""
    data = [datum(question(PROMPT), LESSON)]
    weights = data[0].loss_fn_inputs["weights"].to_torch()

    def run(step):
        training = service.create_lora_training_client(base_model="nano", rank=4, seed=9)
        output = result(step(training))
        result(training.optim_step(types.AdamParams(learning_rate=1e-2)))
        after = result(training.forward(data, "cross_entropy"))
        return output, logprobs(after)

    def loss(_data, values):
        return -(values[0] * weights).sum(), {"mean": values[0].mean().item()}

    custom, custom_after = run(lambda training: training.forward_backward_custom(data, loss))
    built_in, after = run(lambda training: training.forward_backward(data, "cross_entropy"))
    assert custom_after == after
    assert custom.metrics["loss:sum"] == pytest.approx(built_in.metrics["loss:sum"], rel=1e-5)


def test_two_tenants_of_the_engine_do_not_touch_each_other(server):
    """Interleaved runs of two clients end with the bits that each would have alone."""
    data = {0: [datum(question(PROMPT), LESSON)], 1: [datum(question("Say hello."), "good bye")]}

    def steps(training, which):
        for _ in range(4):
            output = training.forward_backward(data[which], "cross_entropy")
            training.optim_step(types.AdamParams(learning_rate=2e-3))
            yield logprobs(result(output))

    def client(which):
        service = server.service()
        return service, service.create_lora_training_client(base_model="nano", rank=4 + 4 * which, seed=which)

    alone = []
    for which in range(2):
        service, training = client(which)
        alone.append(list(steps(training, which)))
        service.close("success")
    services, trainings = zip(*(client(which) for which in range(2)))
    together = list(zip(*(steps(training, which) for which, training in enumerate(trainings))))
    for service in services:
        service.close("success")
    assert [list(column) for column in zip(*together)] == alone
