"""`ocrd network client`, unmodified, against our server."""

import json

import pytest

import support


@pytest.fixture
def client(server, env):
    def call(*arguments, check=True):
        return support.run([support.BIN / "ocrd", "network", "client", *arguments], {**env, "OCRD_NETWORK_SERVER_ADDR_PROCESSING": server.url}, check=check)
    return call


def test_discovery(client, workers):
    assert {"ocrd-dummy", "ocrd-skimage-binarize"} <= set(json.loads(client("discovery", "processors").stdout))
    tool = json.loads(client("discovery", "processor", "ocrd-dummy").stdout)
    assert tool["executable"] == "ocrd-dummy" and "copy_files" in tool["parameters"]
    refused = client("discovery", "processor", "ocrd-nobody", check=False)
    assert refused.returncode == 1 and "ocrd-nobody" in refused.stdout


def test_processing(client, mets):
    out = client("processing", "run", "ocrd-dummy", "-m", mets, "-I", "OCR-D-IMG", "-O", "OCR-D-CLIENT", "--block").stdout
    job = out.split("Processing job id: ")[1].split()[0]
    assert "SUCCESS" in client("processing", "check-status", "-j", job).stdout
    assert "ocrd" in client("processing", "check-log", "-j", job).stdout
    assert support.groups_of(mets)["OCR-D-CLIENT"] >= 1


def test_refusals_have_a_detail_that_the_client_shows(client, mets):
    """The peer's own 422 bodies make its client die with a KeyError (network protocol 1.1)."""
    for arguments, word in ((("run", "ocrd-nobody", "-m", mets), "ocrd-nobody"),
                            (("run", "ocrd-dummy", "-m", mets, "-P", "copy_files", "3"), "copy_files"),
                            (("run", "ocrd-dummy", "-m", "/nowhere/mets.xml"), "/nowhere/mets.xml"),
                            (("check-status", "-j", "no-such-job"), "no-such-job")):
        refused = client("processing", *arguments, check=False)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert word in refused.stdout and "Traceback" not in refused.stderr, refused.stdout + refused.stderr


def test_a_malformed_request_has_a_detail_too(server, workers, env, mets):
    """OCR-D's own body of a malformed request has none, and its client dies of the missing key (network protocol 1.1, 1.2)."""
    program = f"""
import requests
from ocrd_network import client_utils
good = dict(path_to_mets={str(mets)!r}, input_file_grps=["OCR-D-IMG"], output_file_grps=["OCR-D-OUT"], parameters={{}})
for key, value in (("input_file_grps", None), ("parameters", None), ("page_id", 7)):
    try:
        client_utils.post_ps_processing_request({server.url!r}, "ocrd-dummy", {{**good, key: value}})
        raise AssertionError(key)
    except requests.HTTPError as e:
        assert e.response.status_code == 422 and key in e.detail_message, e.detail_message
        assert e.response.json()["status_code"] == 10422 and e.response.json()["data"] is None
"""
    support.run([support.BIN / "python", "-c", program], env)


def test_workflow_by_the_calls_that_the_client_makes(server, workers, env, mets, tmp_path):
    """`client workflow run` always raises (reference 8.1), so its class is called as its tests call it, page-wise too."""
    script = tmp_path / "workflow.txt"
    script.write_text("dummy -I OCR-D-IMG -O OCR-D-W1\ndummy -I OCR-D-W1 -O OCR-D-W2\n")
    program = f"""
import sys
from ocrd_network.client import Client
client = Client({server.url!r}, 60, 1)
for page_wise in (False, True):
    job = client.send_workflow_job_request({str(script)!r}, {str(mets)!r}, page_wise=page_wise)
    state = client.poll_workflow_status(job)
    print(state, client.check_workflow_status(job).json())
    assert str(state) == "SUCCESS"
"""
    support.run([support.BIN / "python", "-c", program], env)
    assert support.groups_of(mets)["OCR-D-W2"] >= 1
