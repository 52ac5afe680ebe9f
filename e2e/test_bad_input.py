"""Rubbish, through the SDK and raw: a clear refusal within a second, and everything else goes on."""

import json
import threading
import time
import urllib.error
import urllib.request

import pytest
from helpers import datum, logprobs, plain_datum, question, result, user_error
from tinker import types


def train(training, inputs, loss="cross_entropy", tokens=(1, 2, 3), config=None):
    data = [types.Datum(model_input=types.ModelInput.from_ints(list(tokens)), loss_fn_inputs=inputs)]
    return training.forward_backward(data, loss, config)


GOOD = {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]}

CASES = [
    ("vocabulary in targets", dict(inputs={**GOOD, "target_tokens": [2, 10**6, 4]}), "target_tokens[1]"),
    ("negative target", dict(inputs={**GOOD, "target_tokens": [2, -3, 4]}), "target_tokens[1]"),
    ("vocabulary in input", dict(inputs=GOOD, tokens=(1, 10**6, 3)), "1000000"),
    ("lengths", dict(inputs={**GOOD, "target_tokens": [2, 3]}), "target_tokens"),
    ("weights' length", dict(inputs={**GOOD, "weights": [1.0]}), "weights"),
    ("NaN", dict(inputs={**GOOD, "weights": [1.0, float("nan"), 1.0]}), "weights[1]"),
    ("no targets", dict(inputs={"weights": [1.0, 1.0, 1.0]}), "target_tokens"),
    ("no advantages", dict(inputs=GOOD, loss="importance_sampling"), "importance_sampling"),
    ("empty input", dict(inputs={"target_tokens": [], "weights": []}, tokens=()), "no tokens"),
    ("context", dict(inputs={"target_tokens": [1] * 5000, "weights": [1.0] * 5000}, tokens=[1] * 5000), "5000"),
]


@pytest.fixture(scope="module")
def training(server):
    return server.service().create_lora_training_client(base_model="nano", rank=4, seed=1)


@pytest.mark.parametrize("name, arguments, place", CASES, ids=[case[0] for case in CASES])
def test_refused_with_its_place(training, name, arguments, place):
    start = time.monotonic()
    message = user_error(lambda: train(training, **arguments))
    assert time.monotonic() - start < 3
    assert place in message, message
    assert result(train(training, GOOD)).metrics["loss:sum"] > 0


def test_refused_requests_leave_no_gradient_and_are_counted(service):
    data = [plain_datum([5, 6, 7, 8])]

    def run(bad):
        training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
        good = training.forward_backward(data, "cross_entropy")
        if bad:
            user_error(lambda: train(training, {**GOOD, "weights": [1.0, float("inf"), 1.0]}))
        step = result(training.optim_step(types.AdamParams(learning_rate=1e-2)))
        result(good)
        return logprobs(result(training.forward(data, "cross_entropy"))), step.metrics or {}

    clean, _ = run(bad=False)
    disturbed, metrics = run(bad=True)
    assert clean == disturbed
    assert any("failed" in key and value == 1 for key, value in metrics.items()), metrics


def test_unknown_loss_and_model_and_learning_rate(service, training):
    assert "cross_entropy" in user_error(lambda: train(training, GOOD, loss="crossentropy"))
    message = user_error(lambda: service.create_lora_training_client(base_model="no/such-model"))
    assert "nano" in message
    message = user_error(lambda: training.optim_step(types.AdamParams(learning_rate=float("nan"))))
    assert "learning_rate" in message


@pytest.mark.parametrize("rank", [0, -1, 10**6])
def test_rank(service, rank):
    message = user_error(lambda: service.create_lora_training_client(base_model="nano", rank=rank))
    assert "rank" in message


def test_sampling_limits(service):
    sampler = service.create_sampling_client(base_model="nano")

    def draw(prompt=(1, 2, 3), number=1, **params):
        params = {"max_tokens": 4, **params}
        prompt = types.ModelInput.from_ints(list(prompt))
        return lambda: sampler.sample(prompt, number, types.SamplingParams(**params))

    assert "max_tokens" in user_error(draw(max_tokens=0))
    message = user_error(draw(max_tokens=10**7))
    assert "Prompt length plus max_tokens exceeds the model's context window" in message
    assert "temperature" in user_error(draw(temperature=-1.0))
    assert "top_p" in user_error(draw(top_p=0.0))
    assert "num_samples" in user_error(draw(number=0))
    assert "prompt" in user_error(draw(prompt=()))
    assert "1000000" in user_error(draw(prompt=(1, 10**6)))
    assert len(result(draw()()).sequences[0].tokens) <= 4


def raw(server, path, body, content_type="application/json", **headers):
    headers = {"Content-Type": content_type, "X-API-Key": "tml-e2e", **headers}
    request = urllib.request.Request(server.url + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


@pytest.mark.parametrize(
    "path, body, content_type, headers",
    [
        ("/api/v1/create_session", b"{", "application/json", {}),
        ("/api/v1/create_session", b"[]", "application/json", {}),
        ("/api/v1/create_session", b"\xff\xfe", "application/json", {}),
        ("/api/v1/create_model", b'{"session_id": 5}', "application/json", {}),
        ("/api/v1/asample", b"[" * 100_000, "application/json", {}),
        ("/api/v1/forward_backward", b"\xff" * 64, "application/x-protobuf", {}),
        ("/api/v1/forward_backward", b"not zstd", "application/x-protobuf", {"Content-Encoding": "zstd"}),
        ("/api/v1/optim_step", b'{"model_id":"x","seq_id":1e99}', "application/json", {}),
    ],
)
def test_malformed_bodies(server, path, body, content_type, headers):
    status, answer, answer_headers = raw(server, path, body, content_type, **headers)
    assert 400 <= status < 500, (status, answer)
    assert json.loads(answer)["detail"]
    assert int(answer_headers["Content-Length"]) == len(answer)
    assert "Content-Encoding" not in answer_headers


def test_unknown_ids_are_404(server):
    for path, body in [
        ("/api/v1/retrieve_future", {"request_id": "nothing"}),
        ("/api/v1/get_info", {"model_id": "a:train:0"}),
        ("/api/v1/session_heartbeat", {"session_id": "nothing"}),
        ("/api/v1/optim_step", {"model_id": "a:train:0", "seq_id": 1, "adam_params": {}}),
        ("/api/v1/asample", {"sampling_session_id": "a", "seq_id": 0, "prompt": {"chunks": []}, "sampling_params": {}}),
    ]:
        status, answer, _ = raw(server, path, json.dumps(body).encode())
        assert status == 404, (path, status, answer)


def test_a_refusal_does_not_disturb_the_step_that_others_share(server):
    data = [datum(question("Say hello."), "good bye")]
    with server.service() as good, server.service() as bad:
        training = good.create_lora_training_client(base_model="nano", rank=4, seed=1)
        clean = [logprobs(result(training.forward(data, "cross_entropy")))]
        other = bad.create_lora_training_client(base_model="nano", rank=4, seed=2)
        stop = threading.Event()

        def noise():
            while not stop.is_set():
                user_error(lambda: train(other, {**GOOD, "weights": [1.0, float("nan"), 1.0]}))

        thread = threading.Thread(target=noise)
        thread.start()
        noisy = [logprobs(result(training.forward(data, "cross_entropy"))) for _ in range(10)]
        stop.set()
        thread.join()
        assert noisy == clean * 10
