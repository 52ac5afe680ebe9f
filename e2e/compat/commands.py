"""The `tinker` command. Each command is a row; it runs in this process, with its real arguments and output."""

import datetime
import importlib
import json
import os
import pathlib
import subprocess
import sys

import tinker
from rest import fresh_checkpoint
from world import BASE_MODEL, Refused, covers


def commands():
    """The names of all commands, such as `tinker run list`, in this version."""
    group = main()
    return [] if group is None else sorted(walk(group, ["tinker"]))


def main():
    try:
        return importlib.import_module("tinker.cli.__main__").main_cli
    except (ModuleNotFoundError, AttributeError):
        return None


def walk(command, words):
    import click

    if not isinstance(command, click.Group):
        yield " ".join(words)
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        yield from walk(command.get_command(context, name), [*words, name])


def run(*arguments, stdin=None, as_json=False):
    """What a command prints; an exit code other than 0 is a failure with what it said."""
    from click.testing import CliRunner

    arguments = [*(["--format", "json"] if as_json else []), *arguments]
    result = CliRunner().invoke(main(), arguments, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        error = result.exception
        text = " ".join(filter(None, [str(getattr(error, "message", error)), getattr(error, "details", None)]))
        raise AssertionError(f"tinker {' '.join(arguments[:2])}: {text}") from error
    if "Got unexpected extra argument" in result.output:
        # Some versions call `list(…)` where `list` is their command of that name, with the items as its arguments.
        raise Refused("by the SDK itself: its command `list` hides Python's `list`")
    assert result.exit_code == 0, result.output
    return json.loads(result.output) if as_json else result.output


@covers("tinker version")
def version(world, call):
    assert tinker.__version__ in run("version")
    # Once as the program that users start.
    process = subprocess.run([sys.executable, "-m", "tinker.cli", "run", "info", "nobody:train:0"], capture_output=True, text=True)
    assert process.returncode == 1 and "nobody" in process.stderr and "Traceback" not in process.stderr, process


@covers("tinker run list")
def run_list(world, call):
    # The table cuts long ids where the terminal is narrow; the whole id is in the JSON.
    assert BASE_MODEL in (world.state_path and run("run", "list"))
    assert world.run_id in json.dumps(run("run", "list", "--limit", "100", as_json=True))


@covers("tinker run info")
def run_info(world, call):
    assert BASE_MODEL in run("run", "info", world.run_id)
    assert world.run_id in json.dumps(run("run", "info", world.run_id, as_json=True))


@covers("tinker checkpoint list")
def checkpoint_list(world, call):
    path = world.state_path
    assert path in json.dumps(run("checkpoint", "list", "--limit", "100", as_json=True))
    assert path in json.dumps(run("checkpoint", "list", "--run-id", world.run_id, as_json=True))


@covers("tinker checkpoint info")
def checkpoint_info(world, call):
    assert "training" in run("checkpoint", "info", world.state_path).lower()
    assert world.state_path in json.dumps(run("checkpoint", "info", world.state_path, as_json=True))


@covers("tinker checkpoint publish")
def checkpoint_publish(world, call):
    path, name = fresh_checkpoint(world)
    run("checkpoint", "publish", path)
    assert world.checkpoints(world.run_id)[name].public


@covers("tinker checkpoint unpublish")
def checkpoint_unpublish(world, call):
    path, name = fresh_checkpoint(world)
    run("checkpoint", "publish", path)
    run("checkpoint", "unpublish", path)
    assert not world.checkpoints(world.run_id)[name].public


@covers("tinker checkpoint set-ttl")
def checkpoint_ttl(world, call):
    path, name = fresh_checkpoint(world)
    run("checkpoint", "set-ttl", path, "--ttl", "7200")
    assert world.checkpoints(world.run_id)[name].expires_at is not None
    run("checkpoint", "set-ttl", path, "--remove")
    assert world.checkpoints(world.run_id)[name].expires_at is None


@covers("tinker checkpoint delete")
def checkpoint_delete(world, call):
    fresh = [fresh_checkpoint(world) for _ in range(2)]
    run("checkpoint", "delete", "--yes", *(path for path, _ in fresh))
    left = world.checkpoints(world.run_id)
    assert all(name not in left for _, name in fresh), left


def downloadable(world):
    """Old commands download samplers, as archives; new ones training checkpoints and external weights."""
    archives = hasattr(tinker.lib.public_interfaces.rest_client.RestClient, "get_checkpoint_archive_url")
    return world.sampler_path if archives else world.state_path


@covers("tinker checkpoint download")
def checkpoint_download(world, call):
    folder = world.folder / world.name("download")
    folder.mkdir()
    run("checkpoint", "download", downloadable(world), "--output", str(folder))
    names = {file.name: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert names.get("adapter_config.json") and names.get("adapter_model.safetensors"), names


@covers("tinker checkpoint push-hf")
def checkpoint_push(world, call):
    """The hub is a stand-in that keeps the names of what it is given."""
    import huggingface_hub

    uploaded = []

    class Hub:
        def whoami(self, **_):
            return {"name": "compat"}

        def create_repo(self, repo_id, **_):
            return repo_id

        def upload_folder(self, folder_path, **_):
            uploaded.extend(file.name for file in pathlib.Path(folder_path).rglob("*") if file.is_file())

    def missing(**_):
        raise FileNotFoundError

    kept = huggingface_hub.HfApi, huggingface_hub.hf_hub_download
    huggingface_hub.HfApi, huggingface_hub.hf_hub_download = Hub, missing
    try:
        run("checkpoint", "push-hf", downloadable(world), "--repo", "compat/adapter")
    finally:
        huggingface_hub.HfApi, huggingface_hub.hf_hub_download = kept
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(uploaded), uploaded


@covers("tinker session export-trace")
def session_trace(world, call):
    file = world.folder / world.name("trace")
    run("session", "export-trace", world.session_id, "--output", str(file))
    assert b"forward_backward" in file.read_bytes()


def days():
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return [(today + datetime.timedelta(days=step)).isoformat() for step in (-1, 1)]


@covers("tinker billing usage")
def billing_usage(world, call):
    world.sample(world.sampler)
    assert "training" in json.dumps(run("billing", "usage", *days(), as_json=True))
    file = world.folder / world.name("usage")
    run("billing", "usage", *days(), "--csv", str(file))
    assert BASE_MODEL in file.read_text()


@covers("tinker billing checkpoint-storage")
def billing_storage(world, call):
    world.state_path
    assert "checkpoint_count" in json.dumps(run("billing", "checkpoint-storage", as_json=True))


@covers("tinker model list")
def model_list(world, call):
    assert BASE_MODEL in run("model", "list") and BASE_MODEL in json.dumps(run("model", "list", as_json=True))


def log_in():
    """0.26 logs in with a browser unless it is told that a key is at hand; later ones ask for a key."""
    import click

    command = main().get_command(click.Context(main()), "auth").commands["login"]
    flags = ["--api-key"] if any("--api-key" in option.opts for option in command.params) else []
    return run("auth", "login", *flags, stdin="tml-compat\n")


@covers("tinker auth login")
def auth_login(world, call):
    assert "tml-compat" not in log_in()
    stored = json.loads((pathlib.Path.home() / ".tinker/credentials.json").read_text())
    assert "tml-compat" in json.dumps(stored)
    run("auth", "logout")


@covers("tinker auth logout")
def auth_logout(world, call):
    log_in()
    assert "Removed credential" in run("auth", "logout")


@covers("tinker auth status")
def auth_status(world, call):
    assert "accessible: yes" in run("auth", "status").lower()


@covers("tinker auth whoami")
def auth_whoami(world, call):
    environment = {**os.environ, "TINKER_BASE_URL": world.tokens_url}
    command = [sys.executable, "-m", "tinker.cli", "auth", "whoami"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0 and "User" in process.stdout, process
