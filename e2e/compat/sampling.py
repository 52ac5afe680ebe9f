"""SamplingClient."""

import importlib

import tinker
from tinker import types
from world import BASE_MODEL, accepts, covers, near, prompt


@covers("SamplingClient.sample")
def sample(world, call):
    params = types.SamplingParams(max_tokens=6, temperature=1.0, seed=7)
    first = call(world.sampler, prompt(), 3, params)
    second = call(world.sampler, prompt(), 3, params)
    assert len(first.sequences) == 3
    for left, right in zip(first.sequences, second.sequences):
        assert list(left.tokens) == list(right.tokens) and len(left.logprobs) == len(left.tokens)
        assert left.stop_reason in ("length", "stop") and all(value <= 0 for value in left.logprobs)
    assert len({tuple(sequence.tokens) for sequence in first.sequences}) > 1, "three samples are alike"


@covers("SamplingClient.compute_logprobs")
def compute_logprobs(world, call):
    scores = call(world.sampler, prompt())
    tokens = prompt().to_ints()
    data = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )
    trained = world.settle(world.training.forward([data], "cross_entropy")).loss_fn_outputs[0]["logprobs"]
    assert scores[0] is None and near(scores[1:], list(trained.data)), scores


@covers("SamplingClient.create")
def create(world, call):
    world.training
    sampler = call(tinker.SamplingClient, world.service.holder, base_model=BASE_MODEL)
    assert len(world.sample(sampler).sequences) == 1


@covers("SamplingClient.get_base_model")
def base_model(world, call):
    assert call(world.sampler) == BASE_MODEL


@covers("SamplingClient.get_tokenizer")
def tokenizer(world, call):
    found = call(world.sampler)
    assert found.decode(found.encode("blue tin", add_special_tokens=False)) == "blue tin"


@covers("SamplingClient.get_telemetry")
def telemetry(world, call):
    assert call(world.sampler) is not None


@covers("SamplingClient.on_queue_state_change")
def queue_state(world, call):
    """The observer that the SDK calls while it waits; it only logs."""
    state = importlib.import_module("tinker.lib.api_future_impl").QueueState.PAUSED_RATE_LIMIT
    takes_reason = accepts("SamplingClient", "on_queue_state_change", "queue_state_reason")
    call(world.sampler, state, *(["a test"] if takes_reason else []))


@covers("SamplingClient.get_sampler_handle")
def handle(world, call):
    found = call(world.sampler)
    other = world.settle(tinker.SamplingClient.from_sampler_handle(found))
    same(world, other)


@covers("SamplingClient.from_sampler_handle")
def from_handle(world, call):
    same(world, call(tinker.SamplingClient, world.sampler.get_sampler_handle()))


def same(world, sampler):
    """It samples what the shared sampler samples."""
    left, right = world.sample(sampler), world.sample(world.sampler)
    assert list(left.sequences[0].tokens) == list(right.sequences[0].tokens)
