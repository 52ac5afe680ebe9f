"""Waiting for samples, clients that share a sampler, and samplers that follow their run."""

import base64
import json
import pickle
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import tinker
from conftest import NANO, ROOT, WAIT_SECONDS
from helpers import datum, question, result, tokenizer
from tinker import types

STORY = "Tell me a story."


def sample(sampler, prompt, number=1, **params):
    return sampler.sample(types.ModelInput.from_ints(prompt), number, types.SamplingParams(**params))


def base(service):
    return result(service.create_sampling_client(base_model="nano"))


def tokens(future):
    return [list(sequence.tokens) for sequence in result(future).sequences]


def post(server, path, body):
    """Status and answer of a request that no SDK would send today."""
    request = urllib.request.Request(
        f"{server.url}/api/v1/{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-api-key": "tml-e2e"},
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def retrieve(server, request_id):
    status = 408
    while status == 408:
        status, answer = post(server, "retrieve_future", {"request_id": request_id})
    return status, answer


def test_samples_are_waited_for_all_at_once(service):
    sampler = base(service)
    assert service.holder.get_client_config().sample_use_retrieve_futures
    prompt = question(STORY)
    futures = [sample(sampler, prompt, 2, seed=seed, max_tokens=8) for seed in range(100)]
    drawn = [tokens(future) for future in futures]
    assert sampler._futures_poller is not None
    assert len({str(each) for each in drawn}) > 50
    assert drawn[7] == tokens(sample(sampler, prompt, 2, seed=7, max_tokens=8))


def test_a_refused_and_a_cancelled_sample_hold_nobody_up(service):
    sampler = base(service)
    cancelled = sample(sampler, question(STORY), 8, seed=1, max_tokens=500, stop=[])
    good = sample(sampler, question(STORY), seed=1, max_tokens=4)
    cancelled.future().cancel()
    with pytest.raises(tinker.BadRequestError):
        result(sample(sampler, question(STORY), max_tokens=10**6))
    assert tokens(good) == tokens(sample(sampler, question(STORY), seed=1, max_tokens=4))


def test_a_large_result_is_announced(service):
    sampler = base(service)
    prompt = types.ModelInput.from_ints((question(STORY) * 200)[:1500])
    output = result(
        sampler.sample(prompt, 1, types.SamplingParams(max_tokens=1), topk_prompt_logprobs=200)
    )
    assert len(output.topk_prompt_logprobs) == 1500 and len(output.topk_prompt_logprobs[1]) == 200


def test_samples_outlive_the_server(start):
    """kill -9 with samples under way: the SDK hears that they are lost, and sends them again."""
    server = start(f"nano={NANO}")
    service = server.service()
    sampler = base(service)
    undisturbed = tokens(sample(sampler, question(STORY), 4, seed=3, max_tokens=300, stop=[]))
    for _ in range(2):
        futures = [
            sample(sampler, question(STORY), 4, seed=3, max_tokens=300, stop=[]) for _ in range(6)
        ]
        time.sleep(0.3)
        server.kill()
        server.start()
        assert [tokens(future) for future in futures] == [undisturbed] * 6
    service.close("success")


CLONE = """
import sys
import tinker
from test_futures import STORY, question, sample, tokens

sampler = tinker.SamplingClient.from_sampler_handle(sys.argv[1], api_key="tml-e2e")
print(tokens(sample(sampler, question(STORY), 1, seed=5, max_tokens=16)), flush=True)
print(sampler._cloned_sampler_id, flush=True)
"""


def test_clones_have_numbers_of_their_own(service):
    sampler = base(service)
    expected = tokens(sample(sampler, question(STORY), 1, seed=5, max_tokens=16))
    handle = sampler.get_sampler_handle()
    assert json.loads(base64.urlsafe_b64decode(handle))["sampling_session_id"]
    command = [sys.executable, "-c", CLONE, handle]
    clone = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "e2e", timeout=WAIT_SECONDS)
    assert (clone.returncode, clone.stdout.splitlines()) == (0, [str(expected), "1"])
    pickled = pickle.loads(pickle.dumps(sampler))
    futures = [sample(each, question(STORY), seed=5, max_tokens=16) for each in (sampler, pickled)]
    assert [tokens(future) for future in futures] == [expected] * 2
    assert pickled._cloned_sampler_id == 2


def learn(training, text, steps=6):
    for _ in range(steps):
        training.forward_backward([datum(question(STORY), text)], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=2e-2))


def greedy(sampler):
    drawn = tokens(sample(sampler, question(STORY), max_tokens=8, temperature=0.0))[0]
    return tokenizer().decode([token for token in drawn if token != tokenizer().eos_token_id])


def test_samplers_in_flight_follow_their_run(start):
    server = start(f"nano={NANO}")
    service = server.service()
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    save = lambda **kind: result(training.save_weights_and_get_sampling_client(**kind))
    first, fixed = save(kind="inflight"), save()
    before = greedy(first)
    assert greedy(fixed) == before
    learn(training, "blue as a whale")
    assert greedy(first) == before, "training alone moves nothing"
    second = save(kind="inflight")
    after = greedy(second)
    assert after != before
    assert greedy(first) == after, "all of them move"
    assert greedy(fixed) == before, "a snapshot stays"
    # What was computed for one is not given to another.
    reused = result(sample(second, question(STORY) * 4, max_tokens=1))
    other = result(sample(save(kind="inflight"), question(STORY) * 4, max_tokens=1))
    again = result(sample(second, question(STORY) * 4, max_tokens=1))
    assert (reused.prompt_cache_hit_tokens, other.prompt_cache_hit_tokens) == (0, 0)
    assert again.prompt_cache_hit_tokens > 0
    # A generation under way goes on with the new weights.
    futures = [sample(first, question(STORY), 8, seed=1, max_tokens=400, stop=[]) for _ in range(2)]
    learn(training, "good bye", 2)
    third = save(kind="inflight")
    newest = greedy(third)
    assert all(len(sequence) == 400 for future in futures for sequence in tokens(future))
    assert greedy(first) == greedy(second) == newest

    server.kill()
    server.start()
    assert [greedy(each) for each in (first, second, third)] == [newest] * 3
    assert greedy(fixed) == before
    learn(training, "blue as a whale", 2)
    fourth = save(kind="inflight")
    assert greedy(first) == greedy(fourth)
    service.close("success")


def test_many_samplers_in_flight(service):
    """A client of every step, as training loops make them, with more steps than samplers fit."""
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=3)
    samplers = []
    for _ in range(24):
        learn(training, "blue as a whale", 1)
        samplers.append(training.save_weights_and_get_sampling_client(kind="inflight"))
    newest = greedy(samplers[-1])
    assert [greedy(sampler) for sampler in samplers] == [newest] * 24


def test_weights_to_train_from_can_be_sampled_from(service):
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    learn(training, "blue as a whale", 3)
    path = result(training.save_state("state")).path
    by_weights = service.create_sampling_client(model_path=path)
    assert greedy(by_weights) == greedy(training.save_weights_and_get_sampling_client())


def test_samples_without_a_sampler(server, service):
    """SDKs up to 0.2.2 knew no sessions."""
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=7)
    learn(training, "blue as a whale", 3)
    path = result(training.save_weights_for_sampler("named")).path
    prompt = {"chunks": [{"tokens": question(STORY)}]}
    body = {"prompt": prompt, "sampling_params": {"max_tokens": 8, "temperature": 0.0, "seed": 1}}
    for source, sampler in [
        ({"base_model": "nano"}, base(service)),
        ({"model_path": path}, service.create_sampling_client(model_path=path)),
    ]:
        for _ in range(2):
            status, future = post(server, "asample", {**body, **source})
            assert status == 200 and len(future["sample_sequence_ids"]) == 1, future
            status, answer = retrieve(server, future["request_id"])
            expected = tokens(sample(sampler, question(STORY), max_tokens=8, temperature=0.0))
            assert [sequence["tokens"] for sequence in answer["sequences"]] == expected
    status, answer = post(server, "asample", body)
    assert status == 400 and "base_model" in answer["detail"]
    status, answer = post(server, "asample", {**body, "model_path": "tinker://a/weights/b"})
    assert status == 404
