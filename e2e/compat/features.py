"""What the methods can be asked for: losses, sampling options, checkpoints' options, and refusals."""

import math
import pickle
import typing

import tinker
from tinker import types
from training import external_files, has_kind, sampled
from world import (
    BASE_MODEL, RANK, TOKENS, Refused, accepts, client, datum, datums, feature, field, logprobs, near, prompt, refusal,
)


def has_loss(name):
    return lambda: name in typing.get_args(types.LossFnType)


def episodes(world, sampler=None):
    """Two samples of the shared sampler; only the first has an advantage."""
    response = sampled(world, sampler or world.sampler)
    return [
        datum(
            prompt().to_ints() + list(sequence.tokens),
            logprobs=[0.0] * (prompt().length - 1) + list(sequence.logprobs),
            advantages=[0.0] * (prompt().length - 1) + [advantage] * len(sequence.tokens),
        )
        for sequence, advantage in zip(response.sequences, (1.0, 0.0))
    ], response


def learns(world, loss, data, config=None, run=None):
    """A step makes the first episode likelier."""
    run = run or world.settle(world.service.create_training_client_from_state(world.state_path))
    start = prompt().length - 1
    # Small steps: Adam goes on after a clipped loss has stopped, and would overshoot.
    first, last = (world.step(run, loss, data, config, rate=1e-3) for _ in range(2))
    assert math.isfinite(first.metrics["loss:sum"]), first.metrics
    before, after = (sum(logprobs(output)[0][start:]) for output in (first, last))
    assert after > before, (loss, before, after)


for name in ["importance_sampling", "ppo", "cispo", "gspo"]:

    def case(world, name=name):
        learns(world, name, episodes(world)[0])

    feature(f"loss `{name}`", has_loss(name))(case)


@feature("loss `dro`", has_loss("dro"))
def dro(world):
    learns(world, "dro", episodes(world)[0], {"beta": 0.05})


@feature("loss `stable_reinforce`", has_loss("stable_reinforce"))
def stable_reinforce(world):
    run = world.settle(world.service.create_training_client_from_state(world.state_path))
    sampler = world.settle(run.save_weights_and_get_sampling_client(record_stability_info=True))
    plain, response = episodes(world, sampler)
    data = []
    for made, sequence in zip(plain, response.sequences):
        inputs = {key: value for key, value in made.loss_fn_inputs.items() if key in ("target_tokens", "advantages")}
        length, start = len(sequence.tokens), prompt().length - 1
        span = types.SampledProvenanceSpan
        made = types.Datum(model_input=made.model_input, loss_fn_inputs=inputs)
        data.append(made.with_provenance(
            model_input=[
                types.PromptProvenanceSpan(sequence_id=sequence.sequence_id, offset=0, length=start + 1),
                span(sequence_id=sequence.sequence_id, offset=0, length=length - 1),
            ],
            loss_fn_inputs=[
                types.PromptProvenanceSpan(sequence_id=sequence.sequence_id, offset=1, length=start),
                span(sequence_id=sequence.sequence_id, offset=0, length=length),
            ],
        ))
    learns(world, "stable_reinforce", data, run=run)


@feature("loss inputs of several targets a token", lambda: client("AdminClient") is not None)
def several_targets(world):
    import numpy

    tokens = TOKENS[0]
    targets = numpy.array([[token, (token + 1) % 64] for token in tokens[1:]])
    weights = numpy.tile(numpy.array([0.75, 0.25], dtype=numpy.float32), (len(tokens) - 1, 1))
    made = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )
    run = world.new_run()
    assert world.step(run, data=[made]).metrics["loss:sum"] > world.step(run, data=[made]).metrics["loss:sum"]


@feature("a batch that the SDK sends in chunks")
def chunks(world):
    run = world.new_run()
    data = [datum([5 + number % 50, 9]) for number in range(1030)]
    output = world.settle(run.forward_backward(data, "cross_entropy"))
    assert len(output.loss_fn_outputs) == len(data)
    total = -sum(map(sum, logprobs(output)))
    assert abs(output.metrics["loss:sum"] - total) < 1e-3 * total, output.metrics


@feature("Adam: weight decay and gradient clipping", lambda: field("AdamParams", "grad_clip_norm"))
def adam(world):
    runs = [world.new_run() for _ in range(2)]
    params = [types.AdamParams(learning_rate=5e-3), types.AdamParams(learning_rate=5e-3, weight_decay=0.5, grad_clip_norm=0.01)]
    for run, param in zip(runs, params):
        for _ in range(2):
            world.settle(run.forward_backward(datums(), "cross_entropy"))
            world.settle(run.optim_step(param))
    assert world.logprobs(runs[0]) != world.logprobs(runs[1])


@feature("optimizer `dimuon`", lambda: hasattr(types, "DimuonOptimizerConfig"))
def dimuon(world):
    refusal(lambda: world.new_run(optimizer=types.DimuonOptimizerConfig()))


@feature("sampling: stop strings, stop tokens, top-k and top-p")
def stops(world):
    free = list(world.sample(world.sampler).sequences[0].tokens)
    stopped = world.sample(world.sampler, stop=[free[2]]).sequences[0]
    assert stopped.stop_reason == "stop" and list(stopped.tokens) == free[: free.index(free[2]) + 1], stopped
    text = world.settle(world.training.get_tokenizer()).decode(free[1:2])
    assert world.sample(world.sampler, stop=text).sequences[0].stop_reason == "stop", text
    narrow = world.sample(world.sampler, count=2, temperature=1.0, top_k=1, seed=5)
    assert {tuple(sequence.tokens) for sequence in narrow.sequences} == {tuple(free)}, narrow
    assert len(world.sample(world.sampler, temperature=1.0, top_p=0.5).sequences[0].tokens) >= 1


@feature("sampling: logprobs of the prompt and of its likeliest tokens")
def prompt_scores(world):
    params = types.SamplingParams(max_tokens=1, temperature=0.0)
    response = world.settle(world.sampler.sample(prompt(), 1, params, True, 3))
    assert len(response.prompt_logprobs) == len(response.topk_prompt_logprobs) == prompt().length, response
    for scored, ranked in list(zip(response.prompt_logprobs, response.topk_prompt_logprobs))[1:]:
        assert len(ranked) == 3 and ranked[0][1] >= ranked[2][1] and ranked[0][1] >= scored - 1e-5, ranked


def sample_takes(parameter):
    return lambda: accepts("SamplingClient", "sample", parameter)


@feature("sampling: likeliest tokens of the sample", sample_takes("topk_sample_logprobs"))
def sample_scores(world):
    params = types.SamplingParams(max_tokens=4, temperature=0.0)
    [sequence] = world.settle(world.sampler.sample(prompt(), 1, params, topk_sample_logprobs=2)).sequences
    for token, ranked in zip(sequence.tokens, sequence.topk_logprobs):
        assert ranked[0][0] == token and len(ranked) == 2, ranked


@feature("sampling: logprobs of given tokens at the prompt's positions", sample_takes("target_prompt_logprobs"))
def targets(world):
    import numpy

    tokens = prompt().to_ints()
    wanted = types.TensorData.from_numpy(numpy.array([[token] for token in tokens[1:]], dtype=numpy.int64))
    params = types.SamplingParams(max_tokens=1)
    response = world.settle(world.sampler.sample(prompt(), 1, params, True, target_prompt_logprobs=wanted))
    given = [float(value) for value in response.target_prompt_logprobs.data]
    assert near(given, response.prompt_logprobs[1:]), given


@feature("sampling: alternatives to the prompt's tokens", sample_takes("prompt_alt_tokens_k"))
def alternatives(world):
    params = types.SamplingParams(max_tokens=1)
    response = world.settle(world.sampler.sample(prompt(), 1, params, prompt_alt_tokens_k=2))
    assert response.prompt_alt_tokens is not None


@feature("sampling: only the prompt's last logprobs", sample_takes("prompt_logprobs_last_n"))
def last_scores(world):
    params = types.SamplingParams(max_tokens=1)
    response = world.settle(world.sampler.sample(prompt(), 1, params, True, prompt_logprobs_last_n=2))
    assert [value is None for value in response.prompt_logprobs] == [True] * 3 + [False] * 2, response


@feature("sampling: many requests at once")
def many(world):
    futures = [
        world.sampler.sample(prompt(), 1, types.SamplingParams(max_tokens=4, seed=number)) for number in range(24)
    ]
    assert all(len(world.settle(future).sequences[0].tokens) <= 4 for future in futures)


@feature("a sampling client that was pickled", sample_takes("topk_sample_logprobs"))
def pickled(world):
    other = pickle.loads(pickle.dumps(world.sampler))
    left, right = world.sample(other), world.sample(world.sampler)
    assert list(left.sequences[0].tokens) == list(right.sequences[0].tokens)


@feature("sampling from a training checkpoint")
def from_training_checkpoint(world):
    sampler = world.settle(world.service.create_sampling_client(model_path=world.state_path))
    assert list(world.sample(sampler).sequences[0].tokens) == list(world.sample(world.sampler).sequences[0].tokens)


@feature("saving: `kind=\"inflight\"`, weights that move under a sampling client", has_kind)
def inflight(world):
    run = world.new_run()
    sampler = world.settle(run.save_weights_and_get_sampling_client(kind="inflight"))
    before = world.settle(sampler.compute_logprobs(prompt()))
    for _ in range(2):
        world.step(run)
    world.settle(run.save_weights_and_get_sampling_client(kind="inflight"))
    assert world.settle(sampler.compute_logprobs(prompt())) != before


@feature("saving: `ttl_seconds`", lambda: accepts("TrainingClient", "save_state", "ttl_seconds"))
def ttl(world):
    name = world.name("ttl")
    world.settle(world.training.save_state(name, ttl_seconds=3600))
    checkpoint = world.checkpoints(world.run_id)[f"weights/{name}"]
    assert getattr(checkpoint, "expires_at", True) is not None, checkpoint


@feature("saving: `overwrite`", lambda: accepts("TrainingClient", "save_state", "overwrite"))
def overwrite(world):
    name, run = world.name("over"), world.new_run()
    first = world.settle(run.save_state(name)).path
    world.step(run)
    assert world.settle(run.save_state(name, overwrite=True)).path == first
    other = world.settle(world.service.create_training_client_from_state(first))
    assert world.logprobs(other) == world.logprobs(run)


@feature("saving: `user_metadata`", lambda: accepts("TrainingClient", "save_state", "user_metadata"))
def metadata(world):
    name = world.name("noted")
    world.settle(world.training.save_state(name, user_metadata={"step": "3"}))
    assert world.checkpoints(world.run_id)[f"weights/{name}"].user_metadata == {"step": "3"}


RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


def has_external():
    return accepts("TrainingClient", "save_weights_external", "age_encryption_recipients")


@feature("external weights for an `age` recipient", has_external)
def encrypted(world):
    future = world.training.save_weights_external(world.name("secret"), age_encryption_recipients=[RECIPIENT])
    files = external_files(world, world.settle(future).path)
    assert files and all(name.endswith(".age") for name in files), sorted(files)
    assert all(data.startswith(b"age-encryption.org/v1") for data in files.values())


@feature("a token for another account's weights", lambda: accepts("TrainingClient", "load_state", "weights_access_token"))
def access_token(world):
    run = world.new_run(seed=96)
    world.settle(run.load_state(world.state_path, weights_access_token="tml-compat"))
    assert world.logprobs(run) == world.logprobs(world.training)


@feature("a session that a `with` block finishes", lambda: hasattr(client("ServiceClient"), "__exit__"))
def with_block(world):
    with tinker.ServiceClient() as service:
        world.settle(service.create_lora_training_client(BASE_MODEL, rank=RANK))


@feature("a clear refusal: a base model that is not served")
def no_model(world):
    refused(world, lambda: world.settle(world.service.create_lora_training_client("no/such-model", rank=RANK)))


@feature("a clear refusal: a token outside the vocabulary")
def bad_token(world):
    refused(world, lambda: world.settle(world.training.forward([datum([5, 9, 99_999_999])], "cross_entropy")))


@feature("a clear refusal: a checkpoint that is not there")
def no_checkpoint(world):
    path = world.state_path + "-gone"
    refused(world, lambda: world.settle(world.service.create_sampling_client(model_path=path)))


@feature("a clear refusal: an image for a model of text")
def image(world):
    sizes = {"expected_tokens": 4} if field("ImageChunk", "expected_tokens") else {"tokens": 4, "height": 2, "width": 2}
    chunk = types.ImageChunk(data=b"\x89PNG\r\n\x1a\n", format="png", **sizes)
    model_input = types.ModelInput(chunks=[*prompt().chunks, chunk])
    params = types.SamplingParams(max_tokens=1)
    refused(world, lambda: world.settle(world.sampler.sample(model_input, 1, params)))


def refused(world, action):
    """A mistake: that it is refused, with a message, is what works."""
    try:
        refusal(action)
    except Refused as error:
        assert len(str(error)) > 20, error
    world.step(world.new_run())
