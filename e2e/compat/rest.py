"""RestClient, and AdminClient, which took over its last methods."""

import datetime
import io
import tarfile
import urllib.request

import tinker
from tinker import types
from training import external_files
from world import BASE_MODEL, RANK, client, covers, run_of


@covers("RestClient.get_server_capabilities")
def capabilities(world, call):
    assert BASE_MODEL in [model.model_name for model in call(tinker.RestClient()).supported_models]


@covers("RestClient.get_telemetry", "AdminClient.get_telemetry")
def telemetry(world, call):
    """Session-less clients have none; those of a session share its."""
    call(admin(call.owner, world))


@covers("RestClient.get_training_run")
def training_run(world, call):
    run = call(world.rest, world.run_id)
    assert run.training_run_id == world.run_id and run.base_model == BASE_MODEL and run.lora_rank == RANK, run
    assert run.last_checkpoint is not None and not run.corrupted, run


@covers("RestClient.get_training_run_by_tinker_path")
def training_run_by_path(world, call):
    assert call(world.rest, world.state_path).training_run_id == world.run_id


@covers("RestClient.list_training_runs")
def training_runs(world, call):
    world.state_path
    world.new_run()
    first, second = (call(world.rest, limit=1, offset=offset) for offset in (0, 1))
    assert first.cursor.total_count >= 2 and len(first.training_runs) == len(second.training_runs) == 1
    assert first.training_runs[0].training_run_id != second.training_runs[0].training_run_id
    everything = call(world.rest, limit=100).training_runs
    assert world.run_id in [run.training_run_id for run in everything]


@covers("RestClient.get_weights_info_by_tinker_path")
def weights_info(world, call):
    info = call(world.rest, world.state_path)
    assert info.base_model == BASE_MODEL and info.is_lora and info.lora_rank == RANK, info


@covers("RestClient.list_checkpoints")
def checkpoints(world, call):
    paths = {world.state_path: "training", world.sampler_path: "sampler"}
    listed = {entry.tinker_path: entry for entry in call(world.rest, world.run_id).checkpoints}
    for path, kind in paths.items():
        assert listed[path].checkpoint_type == kind and listed[path].time.tzinfo is not None, listed[path]
        assert getattr(listed[path], "size_bytes", None) is None or listed[path].size_bytes > 0, listed[path]


@covers("RestClient.list_user_checkpoints")
def user_checkpoints(world, call):
    world.state_path, world.sampler_path
    page = call(world.rest, limit=1, offset=0)
    assert len(page.checkpoints) == 1 and page.cursor.total_count >= 2, page
    paths = [entry.tinker_path for entry in call(world.rest, limit=100).checkpoints]
    assert world.state_path in paths and world.sampler_path in paths, paths


def fresh_checkpoint(world):
    path = world.settle(world.training.save_state(world.name("fresh"))).path
    return path, path.split("/", 3)[3]


@covers("RestClient.delete_checkpoint")
def delete(world, call):
    _, name = fresh_checkpoint(world)
    assert name in world.checkpoints(world.run_id)
    call(world.rest, world.run_id, name)
    assert name not in world.checkpoints(world.run_id)


@covers("RestClient.delete_checkpoint_from_tinker_path")
def delete_path(world, call):
    path, name = fresh_checkpoint(world)
    call(world.rest, path)
    assert name not in world.checkpoints(world.run_id)


@covers("RestClient.publish_checkpoint_from_tinker_path")
def publish(world, call):
    path, name = fresh_checkpoint(world)
    assert not world.checkpoints(world.run_id)[name].public
    call(world.rest, path)
    call(world.rest, path)
    assert world.checkpoints(world.run_id)[name].public


@covers("RestClient.unpublish_checkpoint_from_tinker_path")
def unpublish(world, call):
    path, name = fresh_checkpoint(world)
    world.settle(world.rest.publish_checkpoint_from_tinker_path(path))
    call(world.rest, path)
    assert not world.checkpoints(world.run_id)[name].public


@covers("RestClient.set_checkpoint_ttl_from_tinker_path")
def ttl(world, call):
    path, name = fresh_checkpoint(world)
    call(world.rest, path, 7200)
    left = world.checkpoints(world.run_id)[name].expires_at - datetime.datetime.now(datetime.timezone.utc)
    assert 7000 < left.total_seconds() <= 7200, left
    call(world.rest, path, None)
    assert world.checkpoints(world.run_id)[name].expires_at is None


@covers("RestClient.get_checkpoint_archive_url")
def archive(world, call):
    run_id, name = world.sampler_path.removeprefix("tinker://").split("/", 1)
    adapter_archive(call(world.rest, run_id, name))


@covers("RestClient.get_checkpoint_archive_url_from_tinker_path")
def archive_of_path(world, call):
    adapter_archive(call(world.rest, world.sampler_path))


def adapter_archive(found):
    assert found.expires is not None, found
    with urllib.request.urlopen(found.url, timeout=20) as response:
        archive = tarfile.open(fileobj=io.BytesIO(response.read()))
    names = [name.split("/")[-1] for name in archive.getnames()]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names), names


@covers("RestClient.get_external_weights_urls")
def external_urls(world, call):
    path = world.settle(world.training.save_weights_external(world.name("external"))).path
    files = external_files(world, path)
    assert set(call(world.rest, path).urls) == set(files) and files["adapter_config.json"], sorted(files)


@covers("RestClient.copy_weights")
def copy(world, call):
    path = call(world.rest, world.state_path, "tin", ttl_seconds=3600)
    assert run_of(path) != world.run_id and "/weights/" in path, path
    [checkpoint] = world.checkpoints(run_of(path)).values()
    assert checkpoint.expires_at is not None, checkpoint


@covers("RestClient.list_sessions")
def sessions(world, call):
    world.training
    assert world.session_id in call(world.rest, limit=100).sessions
    assert len(call(world.rest, limit=1, offset=0).sessions) == 1


@covers("RestClient.get_session")
def session(world, call):
    found = call(world.rest, world.session_id)
    assert world.run_id in found.training_run_ids, found
    assert getattr(found, "user_metadata", None) in (None, {"made": "by compat"}), found


@covers("RestClient.get_sampler")
def sampler(world, call):
    world.sampler
    found = world.settle(world.rest.get_session(world.session_id)).sampler_ids
    models = [call(world.rest, sampler_id) for sampler_id in found]
    assert world.sampler_path in [model.model_path for model in models], models
    assert {model.base_model for model in models} == {BASE_MODEL}, models


@covers("RestClient.assign_session_project")
def assign_project(world, call):
    call(world.rest, world.session_id, "tin")


@covers("RestClient.export_session_trace")
def export_trace(world, call):
    with urllib.request.urlopen(call(world.rest, world.session_id), timeout=20) as response:
        trace = response.read()
    assert len(trace) > 100 and b"forward_backward" in trace, trace[:200]


@covers("RestClient.search_sessions")
def search(world, call):
    request = types.SessionSearchRequest(session_id=world.session_id)
    [found] = call(world.rest, request).sessions
    assert found.session_id == world.session_id and found.status.type == "active", found
    request = types.SessionSearchRequest(user_metadata={"made": "by nobody"})
    assert not call(world.rest, request).sessions


@covers("RestClient.whoami")
def whoami(world, call):
    # It reads the token that the key is exchanged for.
    rest = tinker.ServiceClient(base_url=world.tokens_url).create_rest_client()
    identity = call(rest)
    assert identity.user_urn, identity


def admin(owner, world):
    """The client whose method is driven: of the session, or one that needs none."""
    return world.rest if owner == "RestClient" else client(owner)()


@covers("RestClient.get_audit_log", "AdminClient.get_audit_log")
def audit(world, call):
    path, _ = fresh_checkpoint(world)
    entries = call(admin(call.owner, world)).entries
    assert path in str(entries), [entry.event for entry in entries][:20]
    day = datetime.date(2020, 1, 1)
    assert not call(admin(call.owner, world), "checkpoints", day).entries


@covers("RestClient.get_billing_usage", "AdminClient.get_billing_usage")
def billing(world, call):
    world.sample(world.sampler)
    now = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
    span = [now - datetime.timedelta(hours=2), now + datetime.timedelta(hours=2)]
    events = call(admin(call.owner, world), *span).data
    trained = [event for event in events if event.event_info.type == "training"]
    assert sum(event.event_info.token_count for event in trained) > 0, events
    assert {event.base_model for event in trained} == {BASE_MODEL}, trained


@covers("RestClient.get_current_checkpoint_storage_usage", "AdminClient.get_current_checkpoint_storage_usage")
def storage(world, call):
    world.state_path
    [item, *_] = call(admin(call.owner, world)).data
    assert item.checkpoint_count > 0 and item.size_bytes > 0, item
