"""Raw HTTP from clients that are broken, impatient or hostile; and servers that are stopped in between."""

import concurrent.futures
import json
import shutil
import socket
import time

from conftest import NANO, WAIT_SECONDS
from test_bad_input import raw

STEP = {"adam_params": {"learning_rate": 1e-3}}
DATUM = {
    "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
    "loss_fn_inputs": {"target_tokens": {"data": [2, 3, 4], "dtype": "int64", "shape": [3]}},
}


def post(server, path, body):
    status, answer, _ = raw(server, f"/api/v1/{path}", json.dumps(body).encode())
    return status, json.loads(answer)


def create_run(server):
    session = post(server, "create_session", {"tags": [], "sdk_version": "0.38.0"})[1]["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "nano", "lora_config": {"rank": 4, "seed": 1}}
    return post(server, "create_model", body)[1]["model_id"]


def step(server, run, number):
    return post(server, "optim_step", {"model_id": run, "seq_id": number, **STEP})


def train(server, run, number, copies=1):
    batch = {"data": [DATUM] * copies, "loss_fn": "cross_entropy"}
    return post(server, "forward_backward", {"model_id": run, "seq_id": number, "forward_backward_input": batch})


def wait(server, submitted):
    status, answer = submitted
    assert status == 200, answer
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        body = json.dumps({"request_id": answer["request_id"]}).encode()
        status, result = retrieve(server, body)
        if status != 408:
            assert status == 200, result
            return result
    raise AssertionError(f"{answer} never finished")


def retrieve(server, body):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=40)
    with connection:
        head = f"POST /api/v1/retrieve_future HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_refused_number_is_used_up(server):
    run = create_run(server)
    refused = [
        ("optim_step", {"adam_params": {"beta1": "x"}}),
        ("load_weights", {"path": "tinker://a/weights/b", "load_optimizer": True}),
        ("save_weights", {"path": 5}),
        ("forward_backward", {"forward_backward_input": {"data": [{}], "loss_fn": "cross_entropy"}}),
    ]
    for number, (path, body) in enumerate(refused, start=1):
        status, answer = post(server, path, {"model_id": run, "seq_id": number, **body})
        assert status == 400, answer
    start = time.monotonic()
    assert "error" not in wait(server, step(server, run, len(refused) + 1))
    assert time.monotonic() - start < 5


def test_numbers_beyond_32_bits_are_refused_and_harm_nobody(server):
    run = create_run(server)
    for number in (2**31, 2**63 - 1, 0, -1):
        assert step(server, run, number)[0] == 400
    assert "error" not in wait(server, step(server, run, 1))


def test_repeated_requests_have_one_effect(server):
    run = create_run(server)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for number in range(1, 21):
            send = train if number % 2 else step
            answers = list(pool.map(lambda _: send(server, run, number), range(5)))
            assert all(answer == answers[0] for answer in answers), answers
    metrics = wait(server, step(server, run, 21))["metrics"]
    assert metrics["optim_steps:max"] == 11
    assert post(server, "optim_step", {"model_id": run, "seq_id": 1, **STEP})[0] == 422


def test_silent_and_broken_connections_disturb_nobody(server):
    starts = [b"", b"GET / HT", b"POST /api/v1/create_session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"]
    sockets = []
    for number in range(300):
        sockets.append(socket.create_connection(("127.0.0.1", server.port)))
        sockets[-1].sendall(starts[number % len(starts)])
        if number % 2:
            sockets[-1].shutdown(socket.SHUT_WR)
    run = create_run(server)
    start = time.monotonic()
    assert "error" not in wait(server, step(server, run, 1))
    assert time.monotonic() - start < 5
    for connection in sockets:
        connection.close()


def test_stop_under_load_is_clean_and_quick(start):
    server = start(f"nano={NANO}")
    run = create_run(server)
    submitted = [train(server, run, number, copies=200) for number in range(1, 31)]
    begin = time.monotonic()
    assert server.stop() == 0, "".join(server.log)
    assert time.monotonic() - begin < 10
    server.start()
    assert all("error" not in wait(server, each) for each in submitted)


def test_a_model_that_is_gone_is_named_and_its_runs_go_on_when_it_is_back(start, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(NANO, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (changed / "model.safetensors").write_bytes(weights)

    server = start(f"nano={NANO}")
    run = create_run(server)
    wait(server, train(server, run, 1))
    server.kill()
    server.models = (f"nano={changed}",)
    server.start()
    status, answer = step(server, run, 2)
    assert status == 400 and "nano" in answer["detail"], answer
    assert "error" not in wait(server, step(server, create_run(server), 1))
    server.kill()
    server.models = (f"nano={NANO}",)
    server.start()
    # Number 2 was refused, and with that used up.
    result = wait(server, step(server, run, 3))
    assert result["metrics"]["optim_steps:max"] == 1, result
