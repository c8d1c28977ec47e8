"""Unmodified OCR-D Workers on a host without an agent, beside a host with one: started over SSH, looked after by nobody."""

import getpass
import os
import signal

import pytest

import harness
import support
from support import eventually


@pytest.fixture(scope="module")
def two_hosts(folder, env):
    """Its own RabbitMQ, a database of its own, one supervised ocrd-dummy, two that are not."""
    if support.FerretDb.external():
        pytest.skip("OCRCTL_MONGO_URL names the database of the run, this deployment needs another")
    (folder / "agentless").mkdir()
    sshd = harness.SshHost(folder / "agentless" / "ssh")
    ferret = support.FerretDb(folder / "agentless-ferretdb")
    hosts = f"""
  - name: here
    connection: local
    workers:
      - {{name: ocrd-dummy}}
  - name: far
    address: 127.0.0.1
    port: {sshd.port}
    username: {getpass.getuser()}
    path_to_privkey: {sshd.key}
    host_key: {sshd.fingerprint}
    reach: direct
    agent: false
    state: {folder}/agentless/remote
    env: {{PATH: '{env["PATH"]}'}}
    workers:
      - {{name: ocrd-dummy, number_of_instance: 2}}
"""
    one = support.OcrdDeployment(folder / "agentless" / "deployment", None, ferret, hosts=hosts, name="agentless")
    try:
        one.deploy(env=env)
        yield one
        assert "0 left on 2 hosts" in one.kill_all().stdout
        assert one.left() == {}
    finally:
        one.destroy()
        ferret.stop()
        sshd.stop()


def far(deployment):
    """{slot: unit} of the host without an agent."""
    return {u["entry"]: u for h in (deployment.status() or {}).get("hosts", []) if h["host"] == "far" for u in h["units"]}


def all_ready(deployment):
    units = far(deployment)
    return len(units) == 2 and all(u["state"] == "ready" for u in units.values()) and units


def slots_of(deployment, answer):
    return {deployment.request("GET", f"/v1/jobs/{j}")[1].get("slot") for ids in answer["processing_job_ids"].values() for j in ids}


def test_a_workflow_runs_on_both_hosts(two_hosts, mets):
    eventually(lambda: all_ready(two_hosts), 20, lambda: two_hosts.status())
    answer = two_hosts.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-S1\ndummy -I OCR-D-S1 -O OCR-D-S2", page_wise=True)
    assert two_hosts.wait_workflow(answer["job_id"], 60) == "SUCCESS", two_hosts.logs()
    assert support.groups_of(mets)["OCR-D-S2"] == len(support.pages_of(mets))
    assert {slot.split("/")[0] for slot in slots_of(two_hosts, answer)} == {"here", "far"}


def test_one_that_is_killed_in_the_middle_costs_no_job_and_comes_back_with_deploy(two_hosts, mets, env):
    before = eventually(lambda: all_ready(two_hosts), 20, lambda: two_hosts.status())
    slot, victim = next(iter(before.items()))
    answer = two_hosts.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-K1\ndummy -I OCR-D-K1 -O OCR-D-K2", page_wise=True)
    eventually(lambda: slot in slots_of(two_hosts, answer), 60, lambda: two_hosts.logs())
    os.kill(victim["pid"], signal.SIGKILL)
    assert two_hosts.wait_workflow(answer["job_id"], 120) == "SUCCESS", two_hosts.logs()
    assert support.groups_of(mets)["OCR-D-K2"] == len(support.pages_of(mets))
    eventually(lambda: far(two_hosts)[slot]["state"] == "failed", 20, lambda: two_hosts.status())
    two_hosts.deploy(env=env)
    # The server reads what a start told a moment after it.
    after = eventually(lambda: (u := all_ready(two_hosts)) and u[slot]["pid"] != victim["pid"] and u, 20, lambda: two_hosts.status())
    assert {s for s in after if after[s]["pid"] != before[s]["pid"]} == {slot}
