"""A configuration in OCR-D's form, not a key of ours in it: services that run already, a host by SSH with two native ocrd-dummy."""

import getpass
import os
import pathlib
import shutil

import pytest

import support
from support import eventually

ADDRESS = "127.0.0.9"  # OCR-D knows no other port than 22: one of our own on an address of loopback

CONFIG = """internal_callback_url: {url}
use_tcp_mets: true
process_queue:
  address: localhost
  port: {queue}
  skip_deployment: true
  credentials:
    username: network_test
    password: network_test
  ssh: {{username: {user}, path_to_privkey: {key}}}
database:
  address: localhost
  port: {database}
  skip_deployment: true
hosts:
  - address: {address}
    username: {user}
    path_to_privkey: {key}
    workers:
      - name: ocrd-dummy
        number_of_instance: 2
        deploy_type: native
"""


@pytest.fixture
def services(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can listen on port 22")
    if support.FerretDb.external():
        pytest.skip("OCRCTL_MONGO_URL names the database of the run, this deployment needs another")
    if support.answers(8080) or support.answers(22) or not pathlib.Path("/usr/sbin/sshd").exists():
        pytest.skip("port 8080 or 22 is in use, or there is no sshd: the file would have to be changed")
    place = folder / "ocrd-config"
    rabbit, ferret = support.RabbitMq(place / "rabbitmq"), support.FerretDb(place / "ferretdb")
    # As with OCR-D's Deployer, the login shell's profile decides what is in PATH.
    (place / "home").mkdir()
    (place / "home" / ".profile").write_text(f"export PATH={support.BIN}:$PATH\n")
    sshd = support.harness.SshHost(place / "ssh", ADDRESS, 22, f"SetEnv HOME={place}/home\n")
    known = pathlib.Path.home() / ".ssh" / "known_hosts"
    had_folder = known.parent.exists()
    before = known.read_bytes() if known.exists() else None
    yield place, rabbit, ferret, sshd
    if before is not None:
        known.write_bytes(before)
    elif known.exists():
        known.unlink()
        if not had_folder:
            known.parent.rmdir()
    for service in (sshd, rabbit, ferret):
        service.stop()


def test_it_deploys_as_it_is_after_trust(services, env, mets):
    place, rabbit, ferret, sshd = services
    one = support.harness.Deployment(place, [], name="o" + os.urandom(3).hex())  # also the name of the file, without .yml
    one.config = place / f"{one.name}.yml"
    one.port, one.url = 8080, "http://127.0.0.1:8080"
    text = CONFIG.format(url="http://localhost:8080", queue=rabbit.port, database=ferret.port, address=ADDRESS, user=getpass.getuser(), key=sshd.key)
    one.config.write_text(text)
    remote = pathlib.Path("/var/lib/ocrctl") / one.name
    try:
        refused = one.deploy(check=False)
        assert refused.returncode == 3 and f"ocrctl trust {ADDRESS}" in refused.stdout + refused.stderr, refused.stdout + refused.stderr
        one.ocrctl("trust", ADDRESS, "--config", str(one.config), "--fingerprint", sshd.fingerprint)
        out = one.deploy().stdout
        assert one.config.read_text() == text
        units = one.units("foreign-worker")
        assert [(u["host"], u["processor"], u["state"]) for u in units] == [(ADDRESS, "ocrd-dummy", "ready")] * 2, out
        assert rabbit.consumers("ocrd-dummy") == 2, "one queue, as OCR-D's Workers have it"
        answer = one.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-D1\ndummy -I OCR-D-D1 -O OCR-D-D2", page_wise=True)
        assert one.wait_workflow(answer["job_id"], 120) == "SUCCESS", one.logs()
        assert support.groups_of(mets)["OCR-D-D2"] == len(support.pages_of(mets))
        pids = [u["pid"] for u in units]
        assert "0 left" in one.kill_all("--purge").stdout
        assert one.left() == {} and not any(pathlib.Path(f"/proc/{p}").exists() for p in pids)
        assert rabbit.node.alive() and ferret.program.alive(), "what it did not start it does not end"
        assert eventually(lambda: rabbit.consumers("ocrd-dummy") in (0, None) or None, 20, "a consumer was left")
        assert not remote.exists()
    finally:
        one.destroy()
        shutil.rmtree(remote, ignore_errors=True)
        if remote.parent.exists() and not any(remote.parent.iterdir()):
            remote.parent.rmdir()
