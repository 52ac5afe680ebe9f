"""TrainingClient."""

import importlib
import math
import tempfile
import urllib.request

from tinker import types
from world import BASE_MODEL, RANK, accepts, covers, datums, logprobs, near, prompt, run_of


@covers("TrainingClient.forward_backward")
def forward_backward(world, call):
    run = world.new_run()
    losses = []
    for _ in range(3):
        output = call(run, datums(), "cross_entropy")
        assert [len(values) for values in logprobs(output)] == [7, 5]
        losses.append(output.metrics["loss:sum"])
        assert abs(losses[-1] + sum(map(sum, logprobs(output)))) < 1e-3, output.metrics
        world.settle(run.optim_step(types.AdamParams(learning_rate=5e-3)))
    assert losses[2] < losses[1] < losses[0] and math.isfinite(losses[0]), losses


@covers("TrainingClient.forward")
def forward(world, call):
    first, second = (call(world.training, datums(), "cross_entropy") for _ in range(2))
    assert logprobs(first) == logprobs(second)
    run = world.settle(world.service.create_training_client_from_state(world.state_path))
    call(run, datums(), "cross_entropy")
    world.settle(run.optim_step(types.AdamParams(learning_rate=0.1)))
    assert world.logprobs(run) == logprobs(first), "forward alone left a gradient"


@covers("TrainingClient.optim_step")
def optim_step(world, call):
    run = world.new_run()
    before = world.settle(run.forward_backward(datums(), "cross_entropy")).metrics["loss:sum"]
    response = call(run, types.AdamParams(learning_rate=5e-3))
    assert type(response).__name__ == "OptimStepResponse", response
    assert world.settle(run.forward(datums(), "cross_entropy")).metrics["loss:sum"] < before


@covers("TrainingClient.forward_backward_custom")
def custom(world, call):
    def loss(data, logprobs):
        assert len(data) == len(logprobs) == 2
        total = -sum(values.sum() for values in logprobs)
        return total, {"nats": float(total)}

    ours, theirs = world.new_run(), world.new_run()
    for _ in range(2):
        output = call(ours, datums(), loss)
        plain = world.settle(theirs.forward_backward(datums(), "cross_entropy"))
        assert abs(output.metrics["nats"] - plain.metrics["loss:sum"]) < 1e-3, output.metrics
        for run in (ours, theirs):
            world.settle(run.optim_step(types.AdamParams(learning_rate=5e-3)))
    assert near(world.logprobs(ours)[0], world.logprobs(theirs)[0], 2e-3), "another gradient than cross_entropy's"


@covers("TrainingClient.get_info")
def info(world, call):
    found = call(world.training)
    assert found.model_data.model_name == BASE_MODEL, found
    assert getattr(found, "lora_rank", None) in (RANK, None) and getattr(found, "is_lora", True), found


@covers("TrainingClient.get_tokenizer")
def tokenizer(world, call):
    found = call(world.training)
    text = "Tin melts at 232 degrees."
    assert found.decode(found.encode(text, add_special_tokens=False)) == text


@covers("TrainingClient.get_telemetry")
def telemetry(world, call):
    assert call(world.training) is not None


@covers("TrainingClient.on_queue_state_change")
def queue_state(world, call):
    """The observer that the SDK calls while it waits; it only logs."""
    state = importlib.import_module("tinker.lib.api_future_impl").QueueState
    takes_reason = accepts("TrainingClient", "on_queue_state_change", "queue_state_reason")
    call(world.training, state.PAUSED_CAPACITY, *(["a test"] if takes_reason else []))


@covers("TrainingClient.get_console_url")
def console_url(world, call):
    assert world.session_id in call(world.training)


@covers("TrainingClient.save_state")
def save_state(world, call):
    name = world.name("state")
    path = call(world.training, name).path
    assert path.endswith(f"/weights/{name}"), path
    checkpoint = world.checkpoints(run_of(path))[f"weights/{name}"]
    assert checkpoint.checkpoint_type == "training" and checkpoint.tinker_path == path, checkpoint


@covers("TrainingClient.load_state")
def load_state(world, call):
    run = world.new_run(seed=99)
    assert world.logprobs(run) != [] and type(call(run, world.state_path)).__name__ == "LoadWeightsResponse"
    assert world.logprobs(run) == world.logprobs(world.training)


@covers("TrainingClient.load_state_with_optimizer")
def load_state_with_optimizer(world, call):
    run, other = world.new_run(seed=98), world.new_run(seed=97)
    call(run, world.state_path)
    world.settle(other.load_state(world.state_path))
    assert world.logprobs(run) == world.logprobs(other) == world.logprobs(world.training)
    world.step(run)
    world.step(other)
    assert world.logprobs(run) != world.logprobs(other), "the moments were not loaded"


@covers("TrainingClient.save_weights_for_sampler")
def save_for_sampler(world, call):
    name = world.name("sampler")
    path = call(world.training, name).path
    assert path.endswith(f"/sampler_weights/{name}"), path
    checkpoint = world.checkpoints(run_of(path))[f"sampler_weights/{name}"]
    assert checkpoint.checkpoint_type == "sampler", checkpoint
    samples_as_trained(world, world.settle(world.service.create_sampling_client(model_path=path)))


@covers("TrainingClient.save_weights_and_get_sampling_client")
def save_and_sample(world, call):
    samples_as_trained(world, call(world.training))


@covers("TrainingClient.save_weights_and_get_sampling_client_submit")
def save_and_sample_submit(world, call):
    samples_as_trained(world, call(world.training))


@covers("TrainingClient.create_sampling_client")
def create_sampler(world, call):
    samples_as_trained(world, call(world.training, world.sampler_path))


def samples_as_trained(world, sampler):
    """The sampler's logprobs of a text are the trainer's, and it samples what they make likeliest."""
    tokens = list(datums()[0].model_input.to_ints())
    scores = world.settle(sampler.compute_logprobs(types.ModelInput.from_ints(tokens)))
    assert scores[0] is None and near(scores[1:], world.logprobs(world.training)[0][:-1]), scores
    sequence = world.sample(sampler).sequences[0]
    assert 1 <= len(sequence.tokens) <= 8 and len(sequence.logprobs) == len(sequence.tokens), sequence
    assert list(sequence.tokens) == list(world.sample(world.sampler).sequences[0].tokens)


@covers("TrainingClient.save_weights_external")
def save_external(world, call):
    name = world.name("external")
    path = call(world.training, name, ttl_seconds=3600).path
    assert path.endswith(f"/external_weights/{name}"), path
    files = external_files(world, path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files), sorted(files)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(files["adapter_model.safetensors"])
        file.flush()
        from safetensors.numpy import load_file

        shapes = [tensor.shape for tensor in load_file(file.name).values()]
    assert shapes and all(RANK in shape for shape in shapes), shapes


def external_files(world, path):
    """Every file of an external checkpoint, by its relative name, as a plain client downloads it."""
    found = world.settle(world.rest.get_external_weights_urls(path))
    assert found.expires.tzinfo is not None, found
    files = {}
    for name, url in found.urls.items():
        with urllib.request.urlopen(url, timeout=20) as response:
            files[name] = response.read()
            assert len(files[name]) == int(response.headers["Content-Length"])
    return files


def has_kind():
    return accepts("TrainingClient", "save_weights_and_get_sampling_client", "kind")


def sampled(world, sampler):
    """One sample with its tokens, for the losses of reinforcement learning."""
    return world.settle(sampler.sample(prompt(), 2, types.SamplingParams(max_tokens=6, seed=3)))
