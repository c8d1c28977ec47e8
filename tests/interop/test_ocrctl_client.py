"""`ocrctl client` against our server and against OCR-D's own: it uses OCR-D's routes alone."""

import json
import os
import urllib.request

import pytest

import support
from support import BINARY, Program, eventually, free_port


class OcrdServer:
    """`ocrd network processing-server`, with the services of the run."""

    def __init__(self, folder, rabbit, ferret, env):
        folder.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "ps_config.yml"
        config.write_text(f"""
internal_callback_url: {self.url}
use_tcp_mets: true
process_queue: {{address: 127.0.0.1, port: {rabbit.port}, credentials: {{username: {rabbit.user}, password: {rabbit.password}}}, skip_deployment: true}}
database: {{address: 127.0.0.1, port: {ferret.url.rsplit(":", 1)[1].split("/")[0]}, skip_deployment: true}}
hosts: []
""")
        self.program = Program([support.BIN / "ocrd", "network", "processing-server", "-a", f"127.0.0.1:{self.port}", config], folder / "server.log",
                               {**env, "OCRD_NETWORK_SOCKETS_ROOT_DIR": str(folder)}, cwd=folder)
        eventually(self.answers, 60, self.program.text)

    def answers(self):
        try:
            return urllib.request.urlopen(self.url, timeout=2).status == 200
        except OSError:
            assert self.program.alive(), self.program.text()
            return False


@pytest.fixture(scope="module")
def ocrd_server(folder, rabbit, ferret, env, workers):
    server = OcrdServer(folder / "ocrd-server", rabbit, ferret, env)
    yield server
    server.program.stop()


@pytest.fixture(params=["ours", "ocrd"])
def peer(request):
    """(who, URL)"""
    return request.param, request.getfixturevalue("server" if request.param == "ours" else "ocrd_server").url


def call(*arguments, check=True, env=None, limit=120):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OCRCTL_SERVER", "OCRD_"))}
    return support.run([BINARY, "client", *arguments], {**clean, **(env or {})}, limit=limit, check=check)


def test_discovery(peer):
    who, url = peer
    listed = json.loads(call("discovery", "processors", "--address", url).stdout)
    assert isinstance(listed, list)
    if who == "ours":  # OCR-D's server asks RabbitMQ's management plugin on a fixed port, and lists nothing without it
        assert {"ocrd-dummy", "ocrd-skimage-binarize"} <= set(listed)
    tool = json.loads(call("discovery", "processor", "ocrd-dummy", env={"OCRD_NETWORK_SERVER_ADDR_PROCESSING": url}).stdout)
    assert tool["executable"] == "ocrd-dummy"
    refused = call("discovery", "processor", "ocrd-nobody", "--address", url, check=False)
    assert refused.returncode == 1 and "ocrd-nobody" in refused.stderr and url in refused.stderr


def test_processing_run_follows_the_job_and_its_exit_code_tells(peer, mets):
    _, url = peer
    done = call("processing", "run", "ocrd-dummy", "--address", url, "-m", mets, "-I", "OCR-D-IMG", "-O", "OCR-D-OURS", "-P", "copy_files", "true", "-b", "--print-state",
                check=False)
    assert "Processing job id: " in done.stdout, done
    job = done.stdout.split("Processing job id: ")[1].split()[0]
    state = done.stdout.split("Processing job status: ")[1].split()[0]
    assert (state == "SUCCESS") == (done.returncode == 0), done.stdout + done.stderr
    if peer[0] == "ours":
        assert state == "SUCCESS", done.stderr
    assert call("processing", "check-status", "-j", job, "--address", url).stdout == f"Processing job status: {state}\n"
    assert call("processing", "check-log", "-j", job, "--address", url).stdout
    # OCR-D's `processing run -b` exits with 0 when the Job failed.
    failed = call("processing", "run", "ocrd-dummy", "--address", url, "-m", mets, "-I", "NO-SUCH-GROUP", "-O", "OCR-D-NO", "-b", check=False)
    assert failed.returncode == 1 and failed.stderr


def test_workflow_run_with_tasks_and_with_a_file(peer, mets, tmp_path):
    """OCR-D's `client workflow run` always raises, and its `check-status -v` prints no content."""
    who, url = peer
    done = call("workflow", "run", "--address", url, "-m", mets, "-b", "dummy -I OCR-D-IMG -O OCR-D-T1", "dummy -I OCR-D-T1 -O OCR-D-T2", check=False)
    job = done.stdout.split("Workflow job id: ")[1].split()[0]
    state = done.stdout.split("Workflow job status: ")[1].split()[0]
    assert (state == "SUCCESS") == (done.returncode == 0), done.stdout + done.stderr
    if who == "ours":
        assert state == "SUCCESS", done.stderr
    shown = call("workflow", "check-status", "-v", "-j", job, "--address", url).stdout
    first, _, content = shown.partition("\n")
    assert first == f"Workflow job status: {state}"
    assert sum(v for k, v in json.loads(content)["ocrd-dummy"].items()) == 2
    script = tmp_path / "steps.txt"
    script.write_text("dummy -I OCR-D-IMG -O OCR-D-F1\n")
    done = call("workflow", "run", "--address", url, "-m", mets, "-w", script, "--page-wise", "-b", check=False)
    assert (done.returncode == 0) == ("SUCCESS" in done.stdout), done.stdout + done.stderr
    if who == "ours":
        assert done.returncode == 0, done.stderr
        assert support.groups_of(mets)["OCR-D-F1"] == len(support.pages_of(mets))


def test_wrong_use_is_told_before_anything_is_sent(mets):
    for arguments in (("workflow", "run", "--address", "http://127.0.0.1:9", "-m", mets), ("workflow", "run", "--address", "ftp://x", "-m", mets, "dummy -I A -O B"),
                      ("workflow", "run", "--address", "http://127.0.0.1:9", "-m", mets, "dummy -I A --no-such-option")):
        refused = call(*arguments, check=False)
        assert refused.returncode == 2 and refused.stderr, refused
    refused = call("discovery", "processors", "--address", "http://127.0.0.1:9", check=False)
    assert refused.returncode == 1 and "127.0.0.1:9" in refused.stderr
