"""Unmodified OCR-D Workers that the deployment starts and supervises."""

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


def test_a_malformed_message_costs_no_job_and_is_seen(supervised, mets):
    """OCR-D's Worker ends at a message that it cannot read, and nothing starts it again (reference 3.5)."""
    import pika
    before = workers_of(supervised)
    slot, victim = next(iter(before.items()))
    connection = pika.BlockingConnection(pika.URLParameters(queue_url(victim["pid"])))
    connection.channel().basic_publish("", "ocrd-dummy", b"this: is: no: message\n- at all")
    connection.close()
    eventually(lambda: (u := workers_of(supervised).get(slot)) and u["state"] == "ready" and u["pid"] != victim["pid"], 60, lambda: supervised.status())
    unit = workers_of(supervised)[slot]
    assert unit["restarts"] > victim["restarts"] and unit["last_exit"], unit
    assert unit["last_exit"] in supervised.ocrctl("status", "--state", str(supervised.state)).stdout, "ocrctl status does not tell"
    jobs = [submit(supervised, mets, f"OCR-D-AFTER{n}") for n in range(4)]
    for job in jobs:
        assert supervised.wait_job(job)["state"] == "SUCCESS", supervised.logs()
    assert supervised.request("GET", "/readyz")[0] == 200


def test_kill_all_leaves_none(supervised):
    pids = [u["pid"] for u in workers_of(supervised).values()]
    assert "0 left" in supervised.kill_all().stdout
    assert supervised.left() == {} and not any(pathlib.Path(f"/proc/{p}").exists() for p in pids)
