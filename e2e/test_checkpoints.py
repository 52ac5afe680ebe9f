"""Checkpoints in every form: exports, links, archives, copies, lists, and the SDK's own command line."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

import pytest
from conftest import NANO, WAIT_SECONDS
from helpers import ADAM, GREEDY, answer, datum, question, result, user_error
from tinker import types

PROMPT = question("What is the capital of France?")
AGE = "age1m60dkltm0hqmf56mv8pweep4xulcxs7gtduxwnddl3lpgmug9d8s0dmj33"
SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN me@home"
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
OLD_SDK = "0.33.1"
JSON = {"Content-Type": "application/json"}


def step(client, text="Paris."):
    result(client.forward_backward([datum(PROMPT, text)], "cross_entropy"))
    result(client.optim_step(ADAM))


def trained(service):
    client = service.create_lora_training_client("nano", rank=4, seed=1)
    step(client)
    return client


def fetch(url, body=None, **headers):
    """Status, headers and body, as a program without a key gets them."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def old_sdk():
    """The folder of an SDK that still has archives, installed beside the others' once."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = cache / "tinsmith/sdk" / OLD_SDK
    if not folder.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*install, f"tinker=={OLD_SDK}"], check=True)
    return folder


def python(server, *arguments, sdk=None, cwd=None):
    """Runs Python with the SDK of a version, as a client of the server; its output."""
    environment = {**os.environ, "TINKER_BASE_URL": server.url, "TINKER_API_KEY": "tml-e2e"}
    if sdk:
        environment["PYTHONPATH"] = str(sdk)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, text=True, capture_output=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(server, *arguments, sdk=None, cwd=None):
    """A `tinker` command's JSON."""
    out = python(server, "-m", "tinker.cli", "--format", "json", *arguments, sdk=sdk, cwd=cwd)
    return json.loads(out) if out.strip().startswith(("{", "[")) else out


def test_exports_are_downloaded_without_a_key(service):
    client = trained(service)
    saved = result(client.save_weights_external("out"))
    assert saved.path.endswith("/external_weights/out")
    rest = service.create_rest_client()
    reply = result(rest.get_external_weights_urls(saved.path))
    assert set(reply.urls) == ADAPTER
    assert reply.expires.tzinfo is not None
    files = {name: fetch(url) for name, url in reply.urls.items()}
    assert all(status == 200 for status, _, _ in files.values())
    run = types.ParsedCheckpointTinkerPath.from_tinker_path(saved.path).training_run_id
    (entry,) = result(rest.list_checkpoints(run)).checkpoints
    assert sum(len(body) for _, _, body in files.values()) == entry.size_bytes
    _, headers, body = files["adapter_model.safetensors"]
    assert int(headers["Content-Length"]) == len(body)
    assert json.loads(files["adapter_config.json"][2])["r"] == 4

    # A download goes on where it broke off.
    url = reply.urls["adapter_model.safetensors"]
    status, part_headers, part = fetch(url, Range="bytes=1000-", **{"If-Range": headers["ETag"]})
    assert (status, part) == (206, body[1000:])
    assert part_headers["Content-Range"] == f"bytes 1000-{len(body) - 1}/{len(body)}"
    assert fetch(url, Range=f"bytes={len(body)}-")[0] == 416
    # A link is good for its own file only.
    assert fetch(url.replace("adapter_model.safetensors", "adapter_config.json"))[0] == 403
    assert "already" in user_error(lambda: client.save_weights_external("out"))
    result(rest.delete_checkpoint_from_tinker_path(saved.path))
    assert fetch(url)[0] == 404


def test_exports_are_encrypted_to_recipients(service):
    client = trained(service)
    saved = result(client.save_weights_external("sealed", age_encryption_recipients=[AGE, SSH]))
    reply = result(service.create_rest_client().get_external_weights_urls(saved.path))
    assert set(reply.urls) == {name + ".age" for name in ADAPTER}
    for url in reply.urls.values():
        _, _, body = fetch(url)
        assert body.startswith(b"age-encryption.org/v1\n-> X25519 ") and b"\n-> ssh-ed25519 " in body
        assert b"lora_A" not in body and b"peft_type" not in body
    for recipients, place in [([AGE, "age1nobody"], "[1]"), ([], "empty"), ([AGE] * 11, "10")]:
        refusal = user_error(lambda: client.save_weights_external("bad", age_encryption_recipients=recipients))
        assert "age_encryption_recipients" in refusal and place in refusal, refusal
    # The run goes on.
    step(client)


def test_links_hold_after_a_crash(start):
    server = start(f"nano={NANO}")
    with server.service() as service:
        saved = result(trained(service).save_weights_external("out"))
        urls = result(service.create_rest_client().get_external_weights_urls(saved.path)).urls
        before = {name: fetch(url)[2] for name, url in urls.items()}
        server.kill()
        server.start()
        assert {name: fetch(url)[2] for name, url in urls.items()} == before


def test_copies_share_their_source(server, service):
    client = trained(service)
    source = result(client.save_state("source", user_metadata={"note": "x"})).path
    sampler = result(client.save_weights_for_sampler("source")).path
    rest = service.create_rest_client()
    copy = result(rest.copy_weights(source, "project-a", ttl_seconds=7200))
    sampler_copy = result(rest.copy_weights(sampler, "project-a"))
    assert copy.endswith("/weights/source") and sampler_copy.endswith("/sampler_weights/source")
    assert copy != source

    run = types.ParsedCheckpointTinkerPath.from_tinker_path(copy).training_run_id
    entry = result(rest.list_checkpoints(run)).checkpoints[0]
    assert entry.expires_at is not None and entry.user_metadata == {"note": "x"}
    before = answer(service.create_sampling_client(model_path=sampler), PROMPT, GREEDY)
    for path in (source, sampler):
        result(rest.delete_checkpoint_from_tinker_path(path))
    assert answer(service.create_sampling_client(model_path=sampler_copy), PROMPT, GREEDY) == before
    again = service.create_training_client_from_state_with_optimizer(copy)
    step(again)
    # The copy's own run is no run to train.
    body = {"model_id": run, "seq_id": 1, "adam_params": {"learning_rate": 1e-3}}
    status, _, refusal = fetch(f"{server.url}/api/v1/optim_step", body, **JSON)
    assert status == 400 and b"cannot be trained" in refusal


def test_tokens_open_checkpoints(service):
    source = result(trained(service).save_state("shared")).path
    token = "tml-somebody-elses"
    client = service.create_training_client_from_state(source, weights_access_token=token)
    step(client)
    result(client.load_state(source, weights_access_token=token))
    copy = service.create_rest_client().copy_weights(source, "p", weights_access_token=token)
    assert result(copy).endswith("/weights/shared")


def test_names_times_and_publishing(service):
    client = trained(service)
    rest = service.create_rest_client()
    path = result(client.save_state("a", ttl_seconds=3600, user_metadata={"v": "1"})).path
    run = types.ParsedCheckpointTinkerPath.from_tinker_path(path).training_run_id
    assert "already" in user_error(lambda: client.save_state("a"))
    step(client)
    result(client.save_state("a", overwrite=True))
    (entry,) = result(rest.list_checkpoints(run)).checkpoints
    assert (entry.user_metadata, entry.expires_at) == (None, None)
    for seconds in (3599, 10 * 365 * 24 * 3600 + 1):
        assert "ttl_seconds" in user_error(lambda: client.save_state("b", ttl_seconds=seconds))
        assert "ttl_seconds" in user_error(
            lambda: rest.set_checkpoint_ttl_from_tinker_path(path, seconds)
        )
    result(rest.set_checkpoint_ttl_from_tinker_path(path, 3600))
    assert result(rest.list_checkpoints(run)).checkpoints[0].expires_at is not None
    result(rest.set_checkpoint_ttl_from_tinker_path(path, None))
    assert result(rest.list_checkpoints(run)).checkpoints[0].expires_at is None
    for publish, public in [
        (rest.publish_checkpoint_from_tinker_path, True),
        (rest.unpublish_checkpoint_from_tinker_path, False),
    ]:
        for _ in range(2):
            result(publish(path))
            assert result(rest.list_checkpoints(run)).checkpoints[0].public is public


def test_lists_are_paged(start):
    server = start(f"nano={NANO}")
    with server.service() as service:
        client = trained(service)
        for number in range(5):
            result(client.save_state(f"s{number}"))
        rest = service.create_rest_client()
        names = []
        for offset in (0, 2, 4):
            page = result(rest.list_user_checkpoints(limit=2, offset=offset))
            assert page.cursor.total_count == 5
            names += [entry.checkpoint_id for entry in page.checkpoints]
        assert names == [f"weights/s{number}" for number in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("version", ["0.38.0", OLD_SDK])
def test_command_line(server, service, tmp_path, version):
    sdk = old_sdk() if version == OLD_SDK else None
    client = trained(service)
    paths = {
        "weights": result(client.save_state("w")).path,
        "sampler_weights": result(client.save_weights_for_sampler("s")).path,
        "external_weights": result(client.save_weights_external("e")).path,
    }
    run = types.ParsedCheckpointTinkerPath.from_tinker_path(paths["weights"]).training_run_id

    def tinker(*arguments):
        return command(server, *arguments, sdk=sdk, cwd=tmp_path)

    listed = {entry["tinker_path"] for entry in tinker("checkpoint", "list", "--run-id", run)["checkpoints"]}
    assert listed == set(paths.values())
    assert listed <= {
        entry["tinker_path"] for entry in tinker("checkpoint", "list", "--limit", "0")["checkpoints"]
    }
    assert run in json.dumps(tinker("run", "list"))
    assert run in json.dumps(tinker("run", "info", run))
    info = tinker("checkpoint", "info", paths["weights"])
    assert (info["tinker_path"], info["lora_rank"]) == (paths["weights"], 4)
    tinker("checkpoint", "publish", paths["weights"])
    tinker("checkpoint", "unpublish", paths["weights"])
    tinker("checkpoint", "set-ttl", paths["weights"], "--ttl", "7200")
    tinker("checkpoint", "set-ttl", paths["weights"], "--remove")
    # The new command exports what it downloads, and refuses sampler weights; the old one takes archives.
    kinds = ["weights", "sampler_weights", "external_weights"] if sdk else ["weights", "external_weights"]
    for kind in kinds:
        tinker("checkpoint", "download", paths[kind], "--output", kind)
        found = {path.name for path in (tmp_path / kind).rglob("*") if path.is_file()}
        expected = ADAPTER | ({"checkpoint_complete"} if sdk else set())
        assert expected <= found, (kind, found)
    tinker("checkpoint", "delete", paths["external_weights"], "--yes")
    tinker("checkpoint", "delete", "--run-id", run, "--yes")
    assert result(service.create_rest_client().list_checkpoints(run)).checkpoints == []


def test_archives_of_old_sdks(server, service, tmp_path):
    client = trained(service)
    state = result(client.save_state("w")).path
    external = result(client.save_weights_external("e")).path
    urls = result(service.create_rest_client().get_external_weights_urls(external)).urls
    script = (
        "import sys, tinker\n"
        "rest = tinker.ServiceClient().create_rest_client()\n"
        "reply = rest.get_checkpoint_archive_url_from_tinker_path(sys.argv[1]).result()\n"
        "print(reply.url, reply.expires)\n"
        "service = tinker.ServiceClient()\n"
        "print(service.copy_weights(sys.argv[1]).result())\n"
    )
    path = tmp_path / "old_client.py"
    path.write_text(script)
    first, copy = python(server, str(path), state, sdk=old_sdk()).strip().splitlines()[-2:]
    status, _, body = fetch(first.split()[0])
    assert status == 200
    (tmp_path / "a.tar").write_bytes(body)
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
        assert set(names) == ADAPTER | {"optimizer.safetensors", "checkpoint_complete"}
        weights = archive.extractfile("adapter_model.safetensors").read()
    assert weights == fetch(urls["adapter_model.safetensors"])[2]
    assert copy.startswith("tinker://") and copy.endswith("/weights/w")
