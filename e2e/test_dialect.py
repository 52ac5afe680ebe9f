"""The Tinkerbell dialect over plain HTTP: the example, the documentation's block, losses against the official SDK,
and a server that is killed in the middle."""

import ctypes
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import ROOT, WAIT_SECONDS
from helpers import datum, logprobs, question, result, tokenizer

CHAT = [{"role": "user", "content": "23 + 23 ="}, {"role": "assistant", "content": "forty six"}]


def post(server, path, body, **headers):
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def call(server, operation, **body):
    status, answer = post(server, f"/api/v1/{operation}", body)
    assert status == 200, (operation, status, answer)
    return answer


def retrieve(server, future):
    while True:
        status, answer = post(server, "/retrieve_future", {"request_id": future}, Prefer="wait")
        if status != 202:
            assert status == 200, answer
            return answer


@pytest.fixture
def model(server):
    model = call(server, "add_lora", base_model="base", rank=8, seed=3)["model_id"]
    yield model
    post(server, "/api/v1/remove_lora", {"model_id": model})


def test_example(server):
    command = [sys.executable, ROOT / "examples/async_training.py", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["sync", "async", "batched"], done.stdout
    assert lines[4].startswith("comparison") and lines[-1].startswith("sample"), done.stdout


def test_curl_block(server):
    text = (ROOT / "docs/tinkerbell.md").read_text()
    block = re.search(r"runs this block -->\n```sh\n(.*?)```", text, re.DOTALL).group(1)
    block = block.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(["sh", "-eu"], input=block, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert json.loads(done.stdout)["loss"] > 0, done


def test_loss_is_that_of_the_assistants_tokens(server, service, model):
    prompt = question(CHAT[0]["content"])
    official = datum(prompt, CHAT[1]["content"])
    training = service.create_lora_training_client(base_model="base", rank=8, seed=3)
    scored = result(training.forward([official], "cross_entropy"))
    said = len(tokenizer().encode(CHAT[1]["content"] + "<|im_end|>", add_special_tokens=False))
    answer = call(server, "forward_backward", model_id=model, data=[CHAT], loss_fn="cross_entropy")
    assert answer["loss"] == pytest.approx(scored.metrics["loss:sum"] / said, rel=1e-5)
    # JSON has the shortest digits that name a float32.
    ours = [ctypes.c_float(value).value for value in answer["loss_fn_outputs"][0]["logprobs"]["data"]]
    assert ours[: len(prompt) + said - 1] == logprobs(scored)[0], "the same bits"
    forward = call(server, "forward", model_id=model, data=[CHAT], loss_fn="cross_entropy")
    assert forward["loss"] == answer["loss"]


def test_training_changes_what_is_said(server, model):
    losses = []
    for _ in range(12):
        losses.append(call(server, "forward_backward", model_id=model, data=[CHAT])["loss"])
        call(server, "optim_step", model_id=model, learning_rate=1e-2)
    assert losses[-1] < 0.1 * losses[0], losses
    ask = {"messages": CHAT[:1], "max_tokens": 16, "temperature": 0}
    assert call(server, "sample", model_id=model, **ask)["text"] == CHAT[1]["content"]
    assert call(server, "sample", base_model="base", **ask)["text"] != CHAT[1]["content"]
    saved = call(server, "save_weights_for_sampler", model_id=model, path="learnt")["path"]
    assert call(server, "sample", model_path=saved, **ask)["text"] == CHAT[1]["content"]
    state = call(server, "save_weights", model_id=model, path="learnt")["path"]
    fresh = call(server, "add_lora", base_model="base", rank=8)["model_id"]
    call(server, "load_weights", model_id=fresh, path=state)
    assert call(server, "forward", model_id=fresh, data=[CHAT])["loss"] < 0.1 * losses[0]
    removed = call(server, "remove_lora", model_id=fresh)
    assert removed["model_id"] == fresh
    assert post(server, "/api/v1/forward", {"model_id": fresh, "data": [CHAT]})[0] == 404


def test_sampling_is_ordered_with_training(server, model):
    """A sample that is submitted between two steps is drawn from what stands between them."""
    ask = {"model_id": model, "messages": CHAT[:1], "max_tokens": 8, "temperature": 1, "seed": 5, "num_samples": 2}
    before = call(server, "asample", **ask)["request_id"]
    again = call(server, "asample", **ask)["request_id"]
    for _ in range(8):
        call(server, "forward_backward_async", model_id=model, data=[CHAT])
        call(server, "optim_step_async", model_id=model, learning_rate=1e-2)
    after = call(server, "asample", **ask)["request_id"]
    before, again, after = (retrieve(server, future) for future in (before, again, after))
    assert before["sequences"] == again["sequences"]
    assert before["sequences"] != after["sequences"]
    assert len(after["sequences"]) == 2


def test_everything_goes_on_after_a_kill(start):
    server = start()
    steps = 6

    def submit(model):
        futures = []
        for _ in range(steps):
            futures.append(call(server, "forward_backward_async", model_id=model, data=[CHAT])["request_id"])
            call(server, "optim_step_async", model_id=model, learning_rate=1e-2)
        return futures

    ask = {"messages": CHAT[:1], "max_tokens": 8, "temperature": 1, "seed": 7}
    first = call(server, "add_lora", base_model="base", rank=8, seed=9)["model_id"]
    expected = [retrieve(server, future)["loss"] for future in submit(first)]
    said = call(server, "sample", model_id=first, **ask)["sequences"]
    second = call(server, "add_lora", base_model="base", rank=8, seed=9)["model_id"]
    futures = submit(second)
    sample = call(server, "asample", model_id=second, **ask)["request_id"]
    server.kill()
    server.start()
    assert [retrieve(server, future)["loss"] for future in futures] == expected
    assert retrieve(server, sample)["sequences"] == said
    loss = call(server, "forward", model_id=second, data=[CHAT])["loss"]
    assert loss == call(server, "forward", model_id=first, data=[CHAT])["loss"]
