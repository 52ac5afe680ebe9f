"""Checkpoints and crashes through the official SDK."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import tinker
from conftest import NANO, ROOT
from helpers import answer, datum, logprobs, question, result
from tinker import types

PARAMS = types.AdamParams(learning_rate=2e-3)
DATA = [("Say hello.", "good bye"), ("What is the colour of the tin?", "blue as a whale")]


def data():
    return [datum(question(prompt), text) for prompt, text in DATA]


def train(training, steps):
    outputs = []
    for _ in range(steps):
        output = training.forward_backward(data(), "cross_entropy")
        training.optim_step(PARAMS)
        outputs.append(output)
    return [logprobs(result(output)) for output in outputs]


@pytest.fixture(scope="module")
def undisturbed(server):
    """Logprobs of eight steps of a run that nothing interrupts."""
    with server.service() as service:
        training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
        return train(training, 8)


def test_resumed_run_is_bit_equal(server, undisturbed):
    service = server.service()
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    assert train(training, 4) == undisturbed[:4]
    path = result(training.save_state("half")).path
    service.close("success")
    with server.service() as service:
        resumed = service.create_training_client_from_state_with_optimizer(path)
        assert train(resumed, 4) == undisturbed[4:]
        fresh = service.create_training_client_from_state(path)
        steps = train(fresh, 2)
        assert steps[0] == undisturbed[4] and steps[1] != undisturbed[5]
        resumed = service.create_lora_training_client(base_model="nano", rank=8, seed=99)
        result(resumed.load_state_with_optimizer(path))
        assert train(resumed, 4) == undisturbed[4:]


CLIENT = """
import sys
from helpers import result
from test_state import tinker, train

training = tinker.ServiceClient(base_url=sys.argv[1], api_key="tml-e2e").create_lora_training_client(
    base_model="nano", rank=8, seed=7
).result()
train(training, 4)
print(result(training.save_state("killed")).path, flush=True)
while True:
    train(training, 1)
"""


def test_a_killed_client_is_resumed_by_another(server, undisturbed):
    command = [sys.executable, "-c", CLIENT, server.url]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "e2e")
    path = client.stdout.readline().strip()
    client.kill()
    client.wait(30)
    with server.service() as service:
        resumed = service.create_training_client_from_state_with_optimizer(path)
        assert train(resumed, 4) == undisturbed[4:]


def test_pending_gradients_belong_to_a_run_and_not_to_its_checkpoint(service):
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    result(training.forward_backward(data(), "cross_entropy"))
    path = result(training.save_state("pending")).path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    before = logprobs(result(resumed.forward(data(), "cross_entropy")))
    result(resumed.optim_step(types.AdamParams(learning_rate=0.1)))
    assert logprobs(result(resumed.forward(data(), "cross_entropy"))) == before


def test_named_sampler_weights_and_listing(server, service):
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    train(training, 2)
    path = result(training.save_weights_for_sampler("final")).path
    result(training.save_state("state"))
    named = service.create_sampling_client(model_path=path)
    unnamed = training.save_weights_and_get_sampling_client()
    prompt = question("Tell me a story.")
    assert answer(named, prompt) == answer(unnamed, prompt)
    rest = tinker.RestClient(base_url=server.url, api_key="tml-e2e")
    run = path.removeprefix("tinker://").split("/")[0]
    listed = result(rest.list_checkpoints(run)).checkpoints
    assert sorted(checkpoint.checkpoint_id for checkpoint in listed) == [
        "sampler_weights/final",
        "weights/state",
    ]
    assert any(entry.training_run_id == run for entry in result(rest.list_training_runs()).training_runs)
    result(rest.delete_checkpoint(run, "weights/state"))
    listed = result(rest.list_checkpoints(run)).checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in listed] == ["sampler_weights/final"]


def test_kill_9_in_the_middle(start, undisturbed):
    """The SDK just goes on after three kills, and the run ends with the undisturbed bits."""
    server = start(f"nano={NANO}")
    service = server.service()
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    done = threading.Event()

    def killer():
        for pause in (0.3, 0.5, 0.2):
            time.sleep(pause)
            server.kill()
            server.start()
        done.set()

    thread = threading.Thread(target=killer)
    thread.start()
    steps = train(training, 8)
    thread.join()
    assert steps == undisturbed
    # The run goes on after the last kill too, on weights and moments that survived it.
    assert logprobs(result(training.forward(data(), "cross_entropy"))) != steps[-1]
    service.close("success")


def test_graceful_stop_leaves_nothing_to_lose(start, undisturbed):
    server = start(f"nano={NANO}")
    service = server.service()
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    assert train(training, 4) == undisturbed[:4]
    result(training.forward_backward(data(), "cross_entropy"))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    server.start()
    training.optim_step(PARAMS)
    assert train(training, 3) == undisturbed[5:]
    service.close("success")
