"""ServiceClient."""

import tinker
from tinker import types
from world import BASE_MODEL, RANK, accepts, covers, datums, logprobs, near, run_of


@covers("ServiceClient.get_server_capabilities")
def capabilities(world, call):
    models = call(world.service).supported_models
    assert BASE_MODEL in [model.model_name for model in models], models


@covers("ServiceClient.get_telemetry")
def telemetry(world, call):
    world.training
    reporter = call(world.service)
    assert reporter is not None, "telemetry is on by default"
    reporter.log("compat", {"said": "by a client"})


@covers("ServiceClient.create_lora_training_client")
def create_run(world, call):
    run = call(world.service, BASE_MODEL, RANK, 1, user_metadata={"colour": "blue"})
    first = world.step(run).metrics["loss:sum"]
    second = world.step(run).metrics["loss:sum"]
    assert second < first, (first, second)
    run_id = run_of(world.settle(run.save_state("first")).path)
    made = world.settle(world.rest.get_training_run(run_id))
    assert made.base_model == BASE_MODEL and made.is_lora and made.lora_rank == RANK, made
    assert getattr(made, "user_metadata", {"colour": "blue"}) == {"colour": "blue"}, made


@covers("ServiceClient.create_training_client_from_state")
def from_state(world, call):
    same_weights(world, call(world.service, world.state_path))


@covers("ServiceClient.create_training_client_from_state_with_optimizer")
def from_state_with_optimizer(world, call):
    run = call(world.service, world.state_path)
    same_weights(world, run)
    # The next step of both is the same where the moments came along.
    other = world.settle(world.service.create_training_client_from_state_with_optimizer(world.state_path))
    world.step(run)
    world.step(other)
    assert world.logprobs(run) == world.logprobs(other)


def same_weights(world, run):
    assert world.logprobs(run) == world.logprobs(world.training), "other weights than those saved"


@covers("ServiceClient.create_sampling_client")
def create_sampler(world, call):
    base = call(world.service, base_model=BASE_MODEL)
    trained = call(world.service, model_path=world.sampler_path)
    scores = [world.settle(sampler.compute_logprobs(types.ModelInput.from_ints([5, 9, 17]))) for sampler in (base, trained)]
    assert scores[0] != scores[1] and len(scores[0]) == 3, scores


@covers("ServiceClient.create_rest_client")
def create_rest(world, call):
    rest = call(world.service)
    assert world.settle(rest.list_training_runs(limit=1)).cursor.limit == 1


@covers("ServiceClient.close")
def close(world, call):
    service = tinker.ServiceClient()
    world.settle(service.create_lora_training_client(BASE_MODEL, rank=RANK))
    call(service, "errored", "the loss was not a number")
    try:
        world.settle(service.create_lora_training_client(BASE_MODEL, rank=RANK))
    except RuntimeError as error:
        assert "closed" in str(error), error
    else:
        raise AssertionError("a closed client still works")


@covers("ServiceClient.get_console_url")
def console_url(world, call):
    assert world.session_id in call(world.service)


@covers("ServiceClient.copy_weights")
def copy(world, call):
    named = accepts("ServiceClient", "__init__", "project_id")
    path = call(tinker.ServiceClient(**({"project_id": "tin"} if named else {})), world.state_path)
    assert run_of(path) != world.run_id, path
    same_weights(world, world.settle(world.service.create_training_client_from_state(path)))


def negative_likelihood(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/likelihood:sum": -loss}


@covers("ServiceClient.create_custom_loss")
def custom_loss(world, call):
    handle = call(world.service, negative_likelihood, {"logprobs": 1, "weights": 1})
    custom = world.settle(world.training.forward_backward_custom(datums(), handle))
    plain = world.settle(world.training.forward(datums(), "cross_entropy"))
    # The gradients are not for the shared run.
    assert near(logprobs(custom)[0], logprobs(plain)[0])
    assert abs(custom.metrics["custom/likelihood:sum"] + plain.metrics["loss:sum"]) < 1e-3, custom.metrics


