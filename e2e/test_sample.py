"""Sampling through the official SDK."""

import math
import time
import urllib.request

import pytest
from conftest import NANO, WAIT_SECONDS
from helpers import GREEDY, logprobs, question, result, tokenizer
from tinker import types


@pytest.fixture(scope="module")
def sampler(server):
    return server.service().create_sampling_client(base_model="nano")


def sample(sampler, prompt, number=1, **params):
    return sampler.sample(types.ModelInput.from_ints(prompt), number, types.SamplingParams(**params))


def test_seeded_samples_repeat_and_differ_by_seed(sampler):
    prompt = question("Tell me a story.")
    draw = lambda seed: result(sample(sampler, prompt, seed=seed, max_tokens=24)).sequences[0].tokens
    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 1


def test_64_concurrent_samples_equal_one_at_a_time(sampler):
    prompts = [question(f"What is {i} plus {i % 7}?") for i in range(64)]
    params = lambda i: dict(seed=i, max_tokens=12 + i % 9, temperature=1.0, top_p=0.95)
    together = [sample(sampler, prompt, **params(i)) for i, prompt in enumerate(prompts)]
    together = [result(future).sequences[0] for future in together]
    for i, prompt in enumerate(prompts):
        alone = result(sample(sampler, prompt, **params(i))).sequences[0]
        assert alone.tokens == together[i].tokens
        assert alone.logprobs == together[i].logprobs


def test_sampler_and_trainer_agree_to_the_bit(service):
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=2)
    sampler = training.save_weights_and_get_sampling_client()
    prompt = question("Tell me a story.")
    sequence = result(sample(sampler, prompt, seed=3, max_tokens=40)).sequences[0]
    tokens = prompt + list(sequence.tokens)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )
    trained = logprobs(result(training.forward([datum], "cross_entropy")))[0]
    assert trained[len(prompt) - 1 :] == list(sequence.logprobs)
    scored = result(sampler.compute_logprobs(types.ModelInput.from_ints(tokens)))
    assert scored[0] is None or math.isnan(scored[0])
    assert scored[1:] == trained


def test_stops(sampler):
    prompt = question("What is 2 plus 2?")
    full = result(sample(sampler, prompt, max_tokens=32, temperature=0.0)).sequences[0]
    assert full.stop_reason == "stop"
    assert full.tokens[-1] == tokenizer().eos_token_id
    text = tokenizer().decode(full.tokens[:-1])
    assert len(text) >= 1
    stop = text[-1]
    for value in (stop, [stop]):
        cut = result(sample(sampler, prompt, max_tokens=32, temperature=0.0, stop=value)).sequences[0]
        assert cut.stop_reason == "stop"
        assert cut.tokens == full.tokens[: len(cut.tokens)]
        assert tokenizer().decode(cut.tokens).endswith(stop)
    first = full.tokens[0]
    by_token = result(sample(sampler, prompt, max_tokens=32, temperature=0.0, stop=[first])).sequences[0]
    assert list(by_token.tokens) == [first] and by_token.stop_reason == "stop"
    endless = result(sample(sampler, prompt, max_tokens=20, temperature=0.0, stop=[])).sequences[0]
    assert len(endless.tokens) == 20 and endless.stop_reason == "length"


def test_several_samples_of_one_prompt(sampler):
    output = result(sample(sampler, question("Tell me a story."), 4, seed=11, max_tokens=16))
    assert len(output.sequences) == 4
    assert len({tuple(sequence.tokens) for sequence in output.sequences}) > 1
    for sequence in output.sequences:
        assert len(sequence.tokens) == len(sequence.logprobs)


def test_greedy_takes_the_likeliest_token(sampler):
    prompt = question("What is 3 plus 4?")
    output = result(sampler.sample(types.ModelInput.from_ints(prompt), 2, GREEDY))
    assert output.sequences[0].tokens == output.sequences[1].tokens


def test_the_next_turn_finds_the_one_before(sampler):
    prompt = question("Tell me a story about a lighthouse and the people who keep it alight in winter.")
    first = result(sample(sampler, prompt, seed=1, max_tokens=64, stop=[])).sequences[0].tokens
    turn = prompt + list(first) + question("And then?")
    again = result(sample(sampler, turn, 2, seed=1, max_tokens=8))
    # Blocks of 32 tokens; the last token drawn was never fed back.
    assert again.prompt_cache_hit_tokens == (len(prompt) + len(first) - 1) // 32 * 32
    assert [s.tokens for s in again.sequences] == [
        s.tokens for s in result(sample(sampler, turn, 2, seed=1, max_tokens=8)).sequences
    ]


def metric(server, name):
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    values = [line.split()[-1] for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(value) for value in values)


def wait_until(condition):
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_cancelled_sample_stops_and_frees_its_memory(start):
    server = start(f"nano={NANO}")
    sampler = server.service().create_sampling_client(base_model="nano")
    future = sample(sampler, question("Tell me a story."), 256, seed=1, max_tokens=1500, stop=[])
    wait_until(lambda: metric(server, "tinsmith_engine_kv_blocks_used") > 0)
    future.future().cancel()
    wait_until(lambda: metric(server, "tinsmith_engine_kv_blocks_used") == 0)
    assert metric(server, "tinsmith_cancelled_samples_total") == 1
    assert metric(server, "tinsmith_engine_decode_tokens_total") < 256 * 1500
    assert result(sample(sampler, question("Hello!"), max_tokens=4)).sequences
