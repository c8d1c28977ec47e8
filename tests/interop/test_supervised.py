"""Unmodified OCR-D Workers that the deployment starts and supervises."""

import json
import os
import pathlib
import signal

import pytest

import support
from support import eventually

HOSTS = """
  - name: here
    connection: local
    workers:
      - {name: ocrd-dummy, number_of_instance: 2}
"""


@pytest.fixture(scope="module")
def supervised(folder, env):
    """Its own RabbitMQ, a database of its own, two supervised ocrd-dummy."""
    if support.FerretDb.external():
        pytest.skip("OCRCTL_MONGO_URL names the database of the run, this deployment needs another")
    ferret = support.FerretDb(folder / "supervised-ferretdb")
    one = support.OcrdDeployment(folder / "supervised", None, ferret, use_tcp_mets=False, hosts=HOSTS, name="supervised")
    try:
        one.deploy(env=env)
        yield one
        one.destroy()
        assert one.left() == {}
    finally:
        one.destroy()
        ferret.stop()


def workers_of(deployment):
    """{slot: unit} of its foreign Workers."""
    return {u["entry"]: u for kind in ("worker", "foreign-worker") for u in deployment.units(kind) if "ocrd-dummy" in u["entry"]}


def queue_url(pid):
    arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return arguments[arguments.index("--queue") + 1]


def submit(deployment, mets, group, parameters=None):
    status, job = deployment.request("POST", "/processor/run/ocrd-dummy", {
        "path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": [group], "parameters": parameters or {}})
    assert status == 200, job
    return job["job_id"]


def test_each_has_a_place_of_its_own_and_a_workflow_runs(supervised, mets):
    units = workers_of(supervised)
    assert len(units) == 2 and len({queue_url(u["pid"]) for u in units.values()}) == 2
    answer = supervised.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-S1\ndummy -I OCR-D-S1 -O OCR-D-S2", page_wise=True)
    assert supervised.wait_workflow(answer["job_id"], 60) == "SUCCESS", supervised.logs()
    assert support.groups_of(mets)["OCR-D-S2"] == len(support.pages_of(mets))
    jobs = [j for ids in answer["processing_job_ids"].values() for j in ids]
    assert {supervised.request("GET", f"/processor/job/{j}")[1].get("slot") for j in jobs} <= set(units)


def test_one_that_is_killed_is_started_again(supervised, mets):
    before = workers_of(supervised)
    slot, victim = next(iter(before.items()))
    os.kill(victim["pid"], signal.SIGKILL)
    eventually(lambda: (u := workers_of(supervised).get(slot)) and u["state"] == "ready" and u["pid"] != victim["pid"], 60, lambda: supervised.status())
    assert supervised.wait_job(submit(supervised, mets, "OCR-D-KILLED"))["state"] == "SUCCESS", supervised.logs()


GOOD = {"job_id": "no-such-job", "processor_name": "ocrd-dummy", "created_time": 1700000000, "input_file_grps": ["OCR-D-IMG"],
        "output_file_grps": ["OCR-D-NEVER"], "path_to_mets": "/nowhere/mets.xml", "parameters": {}}


@pytest.mark.parametrize("body", [
    b"this: is: no: message\n- at all",
    json.dumps(GOOD).encode(),
    json.dumps({k: v for k, v in GOOD.items() if k != "path_to_mets"} | {"workspace_id": "no-such-workspace"}).encode(),
    json.dumps(GOOD | {"callback_url": "https://127.0.0.1/x"}).encode(),
    json.dumps(GOOD | {"page_id": None}).encode(),
], ids=["no YAML", "unknown job id", "by workspace id", "https callback", "a null"])
def test_a_malformed_message_costs_no_job_and_is_seen(body, supervised, mets):
    """OCR-D's Worker ends at a message that it cannot read or whose Job it does not find, and nothing starts it again (reference 3.5)."""
    import pika
    before = workers_of(supervised)
    slot, victim = next(iter(before.items()))
    connection = pika.BlockingConnection(pika.URLParameters(queue_url(victim["pid"])))
    connection.channel().basic_publish("", "ocrd-dummy", body)
    connection.close()
    eventually(lambda: (u := workers_of(supervised).get(slot)) and u["state"] == "ready" and u["pid"] != victim["pid"], 60, lambda: supervised.status())
    unit = workers_of(supervised)[slot]
    assert unit["restarts"] > victim["restarts"] and unit["last_exit"], unit
    assert unit["last_exit"] in supervised.ocrctl("status", "--state", str(supervised.state)).stdout, "ocrctl status does not tell"
    jobs = [submit(supervised, mets, f"OCR-D-AFTER{n}") for n in range(4)]
    for job in jobs:
        assert supervised.wait_job(job)["state"] == "SUCCESS", supervised.logs()
    assert supervised.request("GET", "/readyz")[0] == 200


def test_a_killed_broker_ends_no_worker_for_good(supervised, mets):
    """OCR-D's Workers end with the connection, and its server answers every submission with 500 from then on (reference 3.5, 3.6)."""
    before = workers_of(supervised)
    broker = supervised.units("queue")[0]["pid"]
    answer = supervised.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-K1\ndummy -I OCR-D-K1 -O OCR-D-K2", page_wise=True)
    os.kill(broker, signal.SIGKILL)
    accepted = submit(supervised, mets, "OCR-D-K3")
    assert supervised.wait_workflow(answer["job_id"], 120) == "SUCCESS", supervised.logs()
    assert supervised.wait_job(accepted, 120)["state"] == "SUCCESS", supervised.logs()
    eventually(lambda: {s: u["state"] for s, u in workers_of(supervised).items()} == {s: "ready" for s in before}, 60, lambda: supervised.status())
    assert support.groups_of(mets)["OCR-D-K2"] == len(support.pages_of(mets))


def test_kill_all_leaves_none(supervised):
    pids = [u["pid"] for u in workers_of(supervised).values()]
    assert "0 left" in supervised.kill_all().stdout
    assert supervised.left() == {} and not any(pathlib.Path(f"/proc/{p}").exists() for p in pids)
