"""Who did what, what was used, what a session did and when: by the SDK and by its `tinker` command."""

import datetime
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import tinker
from helpers import ADAM, answer, datum, plain_datum, question, result
from tinker import types

HOUR = datetime.timedelta(hours=1)


def this_hour():
    return datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)


def usage(server, since):
    """Tokens of all kinds, from the hour of `since` on, by type."""
    client = tinker.AdminClient(base_url=server.url, api_key="tml-e2e")
    response = result(client.get_billing_usage(since, since + 3 * HOUR))
    totals = {}
    for event in response.data:
        info = event.event_info
        name = info.type + ("_cached" if getattr(info, "cached", False) else "")
        count = getattr(info, "token_count", None) or getattr(info, "count", 0)
        totals[name] = totals.get(name, 0) + count
    return totals, response


def work(server, **options):
    """A session that trains, samples and saves; its id and the tokens that it trained on."""
    with server.service(**options) as service:
        training = service.create_lora_training_client(base_model="nano", rank=8, seed=1).result()
        data = [datum(question("What is 2 + 2?"), "4"), plain_datum([1, 2, 3, 4, 5])]
        for _ in range(2):
            result(training.forward_backward(data, "cross_entropy"))
            result(training.optim_step(ADAM))
        result(training.forward(data, "cross_entropy"))
        sampler = training.save_weights_and_get_sampling_client()
        answer(sampler, question("What is 2 + 2?"))
        result(training.save_state("kept"))
        session = training.model_id.split(":")[0]
        tokens = 3 * sum(datum.model_input.length for datum in data)
    return session, training.model_id, tokens


@pytest.fixture(scope="module")
def worked(start_module):
    since = this_hour()
    mark = pytest.MonkeyPatch()
    mark.setenv("TINSMITH_PRICES", "training=2,sample=10,storage=0.5")
    server = start_module("nano=models/nano")
    mark.undo()
    session, model, tokens = work(
        server, user_metadata={"suite": "admin"}, project_id="proj-1", display_name="Nightly run"
    )
    return server, since, session, model, tokens


def test_usage_is_what_was_used(worked):
    server, since, session, _, tokens = worked
    totals, response = usage(server, since)
    assert totals["training"] == tokens
    assert totals["checkpoint"] == 1
    assert totals["sampling_sample"] > 0
    prompt = len(question("What is 2 + 2?"))
    assert totals["sampling_prefill"] + totals.get("sampling_prefill_cached", 0) == prompt
    trained = [event for event in response.data if event.event_info.type == "training"]
    assert sum(event.estimated_cost_usd for event in trained) == pytest.approx(tokens * 2 / 1e6)
    assert {event.session_id for event in response.data} == {session}
    assert {event.project_id for event in response.data} == {"proj-1"}
    assert {event.base_model for event in response.data} == {"nano"}
    assert response.sessions[session].user_metadata == {"suite": "admin"}


def test_storage_is_told_by_project(worked):
    client = tinker.AdminClient(base_url=worked[0].url, api_key="tml-e2e")
    current = result(client.get_current_checkpoint_storage_usage())
    assert current.effective_rate_usd_per_gigabyte_month == 0.5
    (item,) = current.data
    assert (item.project_id, item.checkpoint_count) == ("proj-1", 1)
    assert item.size_gigabytes == pytest.approx(item.size_bytes / 1e9)
    assert result(client.get_current_checkpoint_storage_usage("other")).data == []


def test_audit_log(worked):
    server, _, session, model, _ = worked
    client = tinker.AdminClient(base_url=server.url, api_key="tml-e2e")
    entries = result(client.get_audit_log()).entries
    events = [entry.event for entry in entries]
    assert events.index("session_create") < events.index("training_run_create")
    (saved,) = result(client.get_audit_log("checkpoints")).entries
    assert (saved.event, saved.model_id) == ("checkpoint_create", model)
    assert saved.tinker_path == f"tinker://{model}/weights/kept"
    assert result(client.get_audit_log(day=datetime.date(2020, 1, 1))).entries == []


def test_sessions_are_found(worked):
    server, _, session, _, _ = worked
    client = tinker.RestClient(base_url=server.url, api_key="tml-e2e")

    def find(**filters):
        page = result(client.search_sessions(types.SessionSearchRequest(**filters)))
        return [summary.session_id for summary in page.sessions]

    page = result(client.search_sessions(types.SessionSearchRequest(session_id=session)))
    (summary,) = page.sessions
    assert summary.status.type == "client_finished"
    assert summary.status.reason.type == "success"
    assert (summary.project_id, summary.display_name) == ("proj-1", "Nightly run")
    assert summary.checkpoints_count == 1
    assert summary.checkpoint_storage_bytes > 0
    assert summary.user_metadata == {"suite": "admin"}
    finished = {"type": "client_finished", "reasons": ["success"]}
    assert find(display_name="NIGHTLY", project_ids=["proj-1"], statuses=[finished]) == [session]
    assert find(display_name="nightly", statuses=[{"type": "active"}]) == []
    assert find(user_metadata={"suite": "other"}) == []
    assert result(client.list_sessions()).sessions == [session]
    runs = result(client.list_training_runs())
    assert runs.cursor.total_count == 1


def test_a_session_moves_between_projects(worked):
    server = worked[0]
    with server.service() as service:
        training = result(service.create_lora_training_client(base_model="nano", rank=2))
        session = training.model_id.split(":")[0]
        client = tinker.RestClient(base_url=server.url, api_key="tml-e2e")
        result(client.assign_session_project(session, "proj-2"))
        assert result(client.list_training_runs(project_id="proj-2")).cursor.total_count == 1
        found = result(client.search_sessions(types.SessionSearchRequest(project_ids=["proj-2"])))
        assert [summary.status.type for summary in found.sessions] == ["active"]
        with pytest.raises(tinker.NotFoundError):
            result(client.assign_session_project("unknown", "proj-2"))


def test_a_trace_has_every_operation(worked):
    server, _, session, model, _ = worked
    client = tinker.RestClient(base_url=server.url, api_key="tml-e2e")
    url = result(client.export_session_trace(session))
    with urllib.request.urlopen(url, timeout=30) as response:
        trace = json.load(response)
    events = trace["traceEvents"]
    tracks = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(name.split(":")[1] for name in tracks.values()) == ["sample", "train"]
    begun = [(e["name"].split()[0], tracks[e["pid"]]) for e in events if e["ph"] == "b"]
    counts = {name: sum(1 for begun_name, _ in begun if begun_name == name) for name, _ in begun}
    operations = {
        "create_model": 1,
        "forward_backward": 2,
        "optim_step": 2,
        "forward": 1,
        "save_weights": 1,
        "save_weights_for_sampler": 1,
        "sample": 1,
    }
    total = sum(operations.values())
    assert counts == {**operations, "queued": total, "running": total}
    assert begun.count(("sample", model)) == 0
    for event in events:
        if event["ph"] == "e":
            start = next(
                e
                for e in events
                if e["ph"] == "b" and e["id"] == event["id"] and e["name"] == event["name"]
            )
            assert start["ts"] <= event["ts"]
    broken = url[:-1] + ("0" if url[-1] != "0" else "1")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(broken, timeout=30)
    assert refused.value.code == 403


def test_usage_survives_a_crash(start):
    server = start("nano=models/nano")
    since = this_hour()
    service = server.service()
    training = service.create_lora_training_client(base_model="nano", rank=4, seed=1)
    data = [plain_datum(list(range(10, 40)))]
    done = 0
    for _ in range(3):
        for _ in range(3):
            result(training.forward_backward(data, "cross_entropy"))
            done += 29
        result(training.optim_step(ADAM))
        server.kill()
        server.start()
    result(training.forward_backward(data, "cross_entropy"))
    assert usage(server, since)[0]["training"] == done + 29


# The command.


def command(server, home, *arguments, key="tml-e2e", stdin=None):
    """What `tinker …` prints; it must not fail."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TINKER_")
    }
    environment |= {"TINKER_BASE_URL": server.url, "HOME": str(home), "TINKER_TELEMETRY": "0", "COLUMNS": "400"}
    if key is not None:
        environment["TINKER_API_KEY"] = key
    done = subprocess.run(
        [sys.executable, "-m", "tinker.cli", *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands_about_usage(worked, tmp_path):
    server, since, session, model, tokens = worked
    window = [f"{hour:%Y-%m-%dT%H:%M:%SZ}" for hour in (since, since + 3 * HOUR)]
    told = json.loads(command(server, tmp_path, "-f", "json", "billing", "usage", *window))
    trained = [row for row in told["data"] if row["event_info"]["type"] == "training"]
    assert sum(row["event_info"]["token_count"] for row in trained) == tokens
    assert "training" in command(server, tmp_path, "billing", "usage", *window)
    assert session in command(server, tmp_path, "billing", "usage", *window, "--csv", "-")
    storage = json.loads(command(server, tmp_path, "-f", "json", "billing", "checkpoint-storage"))
    assert storage["data"][0]["project_id"] == "proj-1"
    assert "proj-1" in command(server, tmp_path, "billing", "checkpoint-storage")


def test_commands_about_runs_and_sessions(worked, tmp_path):
    server, _, session, model, _ = worked
    assert model in command(server, tmp_path, "run", "list", "--limit", "0")
    assert "kept" in command(server, tmp_path, "run", "info", model)
    path = tmp_path / "trace.pftrace"
    command(server, tmp_path, "session", "export-trace", session, "--output", str(path))
    assert json.loads(path.read_text())["otherData"]["session_id"] == session
    url = command(server, tmp_path, "session", "export-trace", session, "--url-only")
    assert url.startswith(server.url)


def test_commands_about_keys(worked, tmp_path):
    server = worked[0]
    assert "accessible: yes" in command(server, tmp_path, "auth", "status")
    login = command(server, tmp_path, "auth", "login", key=None, stdin="tml-pasted\n")
    assert "Logged in as local@localhost (local)" in login
    assert "accessible: yes" in command(server, tmp_path, "auth", "status", key=None)
    assert "Removed credential" in command(server, tmp_path, "auth", "logout", key=None)


def test_tokens_stand_for_keys(start, tmp_path, monkeypatch):
    monkeypatch.setenv("TINSMITH_JWT_AUTH", "true")
    server = start("nano=models/nano")
    whoami = result(tinker.RestClient(base_url=server.url, api_key="tml-e2e").whoami())
    assert whoami.user_urn == "tml:organization_user:local"
    assert whoami.org_urn == "tml:organization:local"
    assert whoami.email == "local@localhost"
    assert "local@localhost" in command(server, tmp_path, "auth", "whoami")
    with server.service() as service:
        training = service.create_lora_training_client(base_model="nano", rank=2)
        result(training.forward_backward([plain_datum([1, 2, 3])], "cross_entropy"))
        # A token holds over a restart.
        server.kill()
        server.start()
        result(training.forward_backward([plain_datum([1, 2, 3])], "cross_entropy"))
    request = urllib.request.Request(
        server.url + "/api/v1/sessions", headers={"X-API-Key": "eyJhbGciOiJub25lIn0.e30."}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 401
    assert 'error="invalid_token"' in refused.value.headers["WWW-Authenticate"]


def test_a_report_is_logged_without_keys(worked):
    server = worked[0]
    event = {
        "event": "GENERIC_EVENT",
        "event_name": "poll-failed",
        "severity": "ERROR",
        "event_data": {"request_headers": {"x-api-key": "tml-secret"}, "note": "tml-hidden eyJa.b.c"},
    }
    body = json.dumps({"events": [event], "sdk_version": "0.38.0", "session_id": "s"}).encode()
    request = urllib.request.Request(
        server.url + "/api/v1/telemetry", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response) == {"status": "accepted"}
    deadline = time.monotonic() + 30
    while "poll-failed" not in (log := "".join(server.log)):
        assert time.monotonic() < deadline, log
    assert "tml-secret" not in log
    assert "tml-hidden" not in log
    assert "eyJa" not in log
