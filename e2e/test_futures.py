"""Waiting for samples, and clients that share a sampler."""

import base64
import json
import pickle
import subprocess
import sys
import time

import pytest
import tinker
from conftest import NANO, ROOT, WAIT_SECONDS
from helpers import question, result
from tinker import types

STORY = "Tell me a story."


def sample(sampler, prompt, number=1, **params):
    return sampler.sample(types.ModelInput.from_ints(prompt), number, types.SamplingParams(**params))


def base(service):
    return result(service.create_sampling_client(base_model="nano"))


def tokens(future):
    return [list(sequence.tokens) for sequence in result(future).sequences]


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
    clones = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "e2e")
        for _ in range(2)
    ]
    lines = [clone.communicate(timeout=WAIT_SECONDS)[0].splitlines() for clone in clones]
    assert [clone.returncode for clone in clones] == [0, 0]
    assert [line[0] for line in lines] == [str(expected)] * 2
    assert sorted(line[1] for line in lines) == ["1", "2"]
    pickled = pickle.loads(pickle.dumps(sampler))
    futures = [sample(each, question(STORY), seed=5, max_tokens=16) for each in (sampler, pickled)]
    assert [tokens(future) for future in futures] == [expected] * 2
    assert pickled._cloned_sampler_id == 3
