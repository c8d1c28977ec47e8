"""What the end-to-end tests stand on: a deployment in a temporary folder, SSH hosts on loopback, a look at the
processes that does not rely on ocrctl's own word. Python's standard library only."""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = os.environ.get("OCRCTL_BINARY") or str(ROOT / "build" / "release" / "cmd" / "ocrctl")
SLOW = float(os.environ.get("OCRCTL_TEST_SLOWNESS", "1"))  # the sanitizer build takes longer for everything
BUILTIN = ["dummy", "binarize", "deskew", "segment", "recognize", "export"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def eventually(condition, limit, what):
    """The first true value of condition() within limit seconds; fails with `what` otherwise."""
    end = time.monotonic() + limit * SLOW
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit * SLOW:.0f} s: {what() if callable(what) else what}")
        time.sleep(0.02)


def processes(deployment=None, state=None):
    """{pid: (command line, environment)} of live processes that carry our marks; zombies do not count."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environ = pathlib.Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            command = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = pathlib.Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if status == "Z":
            continue
        variables = dict(v.decode(errors="replace").split("=", 1) for v in environ if b"=" in v)
        marked = deployment is not None and variables.get("OCRCTL_DEPLOYMENT") == deployment
        named = state is not None and str(state) in command and int(entry) != os.getpid()
        if marked or named:
            found[int(entry)] = (command.strip(), variables)
    return found


class OtherNetwork:
    """A network namespace with a cable to this one: what runs there reaches nothing that listens on our loopback."""

    def __init__(self):
        n = int.from_bytes(os.urandom(2), "big")
        self.here, self.there = (f"10.{200 + n % 50}.{n // 256}.{k}" for k in (1, 2))
        self.cable = f"oc{n:x}"
        self.process = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            if self.process.stdout.readline() != "up\n":
                raise OSError("no network namespace")
            ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)
            ip("link", "add", self.cable, "type", "veth", "peer", "name", "far", "netns", str(self.process.pid))
            ip("address", "add", f"{self.here}/30", "dev", self.cable)
            ip("link", "set", self.cable, "up")
            for words in (["ip", "address", "add", f"{self.there}/30", "dev", "far"], ["ip", "link", "set", "far", "up"]):
                subprocess.run(self.inside(words), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.stop()
            raise

    @staticmethod
    def possible():
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nsenter"):
            return False
        try:
            OtherNetwork().stop()
            return True
        except (OSError, subprocess.CalledProcessError):
            return False

    def inside(self, argv):
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", *argv]

    def plug(self, connected):
        subprocess.run(["ip", "link", "set", self.cable, "up" if connected else "down"], check=True)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        subprocess.run(["ip", "link", "del", self.cable], stderr=subprocess.DEVNULL)


class SshHost:
    """An sshd of our own on a loopback port, or in another network, with its own keys; logs in the user who runs the tests."""

    def __init__(self, folder, address="127.0.0.1", port=None, more="", network=None):
        self.network = network
        if network:
            address = network.there
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.address, self.port = address, port or free_port()
        self.key = self.folder / "client_key"
        host_key = self.folder / "host_key"
        for key in (self.key, host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        shutil.copy(f"{self.key}.pub", self.folder / "authorized_keys")
        os.chmod(self.folder / "authorized_keys", 0o600)
        out = subprocess.run(["ssh-keygen", "-lf", f"{host_key}.pub"], check=True, capture_output=True, text=True).stdout
        self.fingerprint = out.split()[1]
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {address}\nHostKey {host_key}\nPidFile {self.folder}/sshd.pid\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin yes\nMaxStartups 100\nMaxSessions 50\nSubsystem sftp internal-sftp\n" + more)
        os.makedirs("/run/sshd", exist_ok=True)
        self.start()

    def start(self):
        """Also again, after stop()."""
        self.log = open(self.folder / "sshd.log", "ab")
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self.process = subprocess.Popen(self.network.inside(argv) if self.network else argv,
                                        stderr=self.log, stdin=subprocess.DEVNULL)
        eventually(self._answers, 10, lambda: (self.folder / "sshd.log").read_text())

    def _answers(self):
        try:
            with socket.create_connection((self.address, self.port), 1) as s:
                return s.recv(4).startswith(b"SSH")
        except OSError:
            return False

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        self.log.close()

    def listening(self):
        """{port: "127.0.0.1" or another address} of what listens where this sshd runs."""
        tables = ""
        for name in ("tcp", "tcp6"):
            argv = ["cat", f"/proc/net/{name}"]
            tables += subprocess.run(self.network.inside(argv) if self.network else argv, capture_output=True, text=True).stdout
        found = {}
        for fields in (line.split() for line in tables.splitlines()):
            if len(fields) > 3 and fields[3] == "0A":
                address, port = fields[1].split(":")
                found[int(port, 16)] = "127.0.0.1" if address == "0100007F" else address
        return found

    def sessions(self):
        """Processes of this sshd that serve a connection."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(stat[1]) == self.process.pid and stat[0] != "Z":
                found.append(int(entry))
        return found


class MongoServer:
    """A MongoDB-compatible server on a free loopback port: FerretDB (scripts/ferretdb) or a real mongod, as the environment says."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        data = folder / "data"
        data.mkdir(parents=True)
        self.port = free_port()
        address = f"127.0.0.1:{self.port}"
        ferretdb = os.environ.get("OCRCTL_FERRETDB") or str(ROOT / "build" / "ferretdb")
        if os.environ.get("OCRCTL_MONGOD"):
            argv = [os.environ["OCRCTL_MONGOD"], "--bind_ip", "127.0.0.1", "--port", str(self.port), "--dbpath", str(data)]
        elif os.access(ferretdb, os.X_OK):
            argv = [ferretdb, "-listen", address, "-sqlite", str(data)]
        else:
            reason = "no MongoDB-compatible server: scripts/ferretdb builds one, OCRCTL_FERRETDB or OCRCTL_MONGOD names one"
            if "mongo" in os.environ.get("OCRCTL_REQUIRE", "").split(","):
                raise AssertionError(reason)
            raise unittest.SkipTest(reason)
        self.url = f"mongodb://{address}"
        self.log = folder / "server.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._answers, 60, lambda: self.log.read_text(errors="replace"))

    def _answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


class Deployment:
    """One config file and its state folder; what it started is gone when the test ends, or the test fails."""

    def __init__(self, folder, hosts, extra="", name=None):
        self.folder = pathlib.Path(folder)
        self.state = self.folder / "state"
        self.port = free_port()
        self.name = name or "t" + os.urandom(3).hex()
        self.config = self.folder / "config.yml"
        self.hosts = hosts
        self.config.write_text(f"name: {self.name}\nlisten:\n  address: 127.0.0.1\n  port: {self.port}\n"
                               f"log_level: debug\n{extra}hosts:\n" + "".join(hosts))
        self.url = f"http://127.0.0.1:{self.port}"

    def ocrctl(self, *arguments, check=True, timeout=120, env=None):
        run = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=timeout * SLOW,
                             env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL)
        if check and run.returncode != 0:
            raise AssertionError(f"ocrctl {' '.join(arguments)} exited {run.returncode}\n{run.stdout}{run.stderr}\n"
                                 + self.logs())
        return run

    def deploy(self, *more, **keywords):
        return self.ocrctl("deploy", str(self.config), "--state", str(self.state), *more, **keywords)

    def kill_all(self, *more, **keywords):
        return self.ocrctl("kill-all", "--state", str(self.state), *more, **keywords)

    @property
    def id(self):
        try:
            return json.loads((self.state / "deployment.json").read_text())["id"]
        except (OSError, ValueError, KeyError):
            return None

    def left(self):
        """What still runs of this deployment, by our own scan."""
        return {pid: command for pid, (command, _) in processes(self.id or "-", self.state).items()}

    def request(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = None
            headers = dict(headers or {})
            if isinstance(body, (dict, list)):
                data, headers["Content-Type"] = json.dumps(body), "application/json"
            elif body is not None:
                data = body
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text
        finally:
            connection.close()

    def status(self):
        try:
            return self.request("GET", "/v1/status", timeout=5)[1]
        except OSError:
            return None

    def units(self, kind="worker"):
        status = self.status() or {}
        return [dict(u, host=h["host"]) for h in status.get("hosts", []) for u in h.get("units", []) if u["kind"] == kind]

    def queue_port(self):
        return json.loads((self.state / "deployment.json").read_text())["queue"]["port"]

    def ready_workers(self):
        return [u for u in self.units() if u["state"] == "ready"]

    def upload_workflow(self, script):
        boundary = "b" + os.urandom(8).hex()
        body = (f"--{boundary}\r\nContent-Disposition: form-data; name=\"workflow\"; filename=\"w.txt\"\r\n"
                f"Content-Type: text/plain\r\n\r\n{script}\r\n--{boundary}--\r\n")
        return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}

    def run_workflow(self, mets, script, page_wise=True, **query):
        body, headers = self.upload_workflow(script)
        query = urllib.parse.urlencode({"mets_path": str(mets), "page_wise": str(page_wise), **query})
        status, answer = self.request("POST", f"/workflow/run?{query}", body, headers)
        if status != 200:
            raise AssertionError(f"POST /workflow/run: {status} {answer}\n" + self.logs())
        return answer

    def workflow_state(self, job_id):
        try:
            return self.request("GET", f"/workflow/job-simple/{job_id}")[1].get("state")
        except (OSError, AttributeError):
            return None  # the server is away just now

    def wait_workflow(self, job_id, limit=120):
        state = eventually(lambda: (s := self.workflow_state(job_id)) in ("SUCCESS", "FAILED") and s, limit,
                           lambda: f"workflow {job_id}: {self.request('GET', f'/workflow/job/{job_id}')}\n" + self.logs())
        return state

    def wait_job(self, job_id, limit=60):
        def final():
            try:
                job = self.request("GET", f"/processor/job/{job_id}")[1]
            except OSError:
                return None
            return job if job.get("state") in ("SUCCESS", "FAILED", "CANCELLED") else None
        return eventually(final, limit, lambda: f"job {job_id}: {self.request('GET', f'/processor/job/{job_id}')}\n" + self.logs())

    def logs(self, lines=40):
        out = []
        for log in sorted(self.folder.rglob("*.log")):
            if log.stat().st_size and "rabbit" not in log.name:
                out.append(f"--- {log.relative_to(self.folder)}\n"
                           + "\n".join(log.read_text(errors="replace").splitlines()[-lines:]))
        return "\n".join(out)[-20000:]

    def destroy(self):
        """For tearDown: kill-all, and by identity whatever it should have left."""
        try:
            subprocess.run([BINARY, "kill-all", "--state", str(self.state)], capture_output=True, timeout=120 * SLOW)
        except subprocess.TimeoutExpired:
            pass
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def local_host(workers, name="here"):
    """The YAML of a local host: workers is {processor: count} or a list of YAML flow mappings."""
    text = f"  - name: {name}\n    connection: local\n    workers:\n"
    items = workers if isinstance(workers, list) else [f"{{name: {p}, number_of_instance: {n}}}" for p, n in workers.items()]
    return text + "".join(f"      - {i}\n" for i in items)


def ssh_host(ssh, name, workers, state, reach="direct"):
    import getpass
    text = (f"  - name: {name}\n    connection: ssh\n    address: {ssh.address}\n    port: {ssh.port}\n"
            f"    username: {getpass.getuser()}\n    path_to_privkey: {ssh.key}\n    host_key: {ssh.fingerprint}\n"
            f"    reach: {reach}\n    state: {state}\n    workers:\n")
    return text + "".join(f"      - {{name: {p}, number_of_instance: {n}}}\n" for p, n in workers.items())


def copy_sample_workspace(folder):
    target = pathlib.Path(folder) / "workspace"
    shutil.copytree(ROOT / "samples" / "workspace", target)
    return target / "mets.xml"


def make_workspace(folder, pages, image=None, suffix=".png", mimetype="image/png"):
    """A METS workspace with many small pages: one PNG, linked under as many names."""
    folder = pathlib.Path(folder)
    (folder / "OCR-D-IMG").mkdir(parents=True)
    image = image or tiny_png()
    files, divs = [], []
    for n in range(1, pages + 1):
        (folder / "OCR-D-IMG" / f"p{n:04}{suffix}").write_bytes(image)
        files.append(f'<mets:file ID="OCR-D-IMG_{n:04}" MIMETYPE="{mimetype}"><mets:FLocat LOCTYPE="OTHER" '
                     f'OTHERLOCTYPE="FILE" xlink:href="OCR-D-IMG/p{n:04}{suffix}"/></mets:file>')
        divs.append(f'<mets:div TYPE="page" ID="PHYS_{n:04}" ORDER="{n}"><mets:fptr FILEID="OCR-D-IMG_{n:04}"/></mets:div>')
    mets = folder / "mets.xml"
    mets.write_text('<?xml version="1.0" encoding="UTF-8"?>\n<mets:mets xmlns:mets="http://www.loc.gov/METS/" '
                    'xmlns:xlink="http://www.w3.org/1999/xlink"><mets:fileSec><mets:fileGrp USE="OCR-D-IMG">'
                    + "".join(files) + '</mets:fileGrp></mets:fileSec><mets:structMap TYPE="PHYSICAL">'
                    '<mets:div TYPE="physSequence">' + "".join(divs) + '</mets:div></mets:structMap></mets:mets>\n')
    return mets


def tiny_png(width=64, height=48):
    import struct
    import zlib
    raw = b"".join(b"\0" + bytes(255 if (x // 8 + y // 8) % 2 else 230 for x in range(width)) for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def groups_of(mets):
    """{group: number of files} of a METS file on disk."""
    import xml.etree.ElementTree as tree
    ns = {"m": "http://www.loc.gov/METS/"}
    root = tree.parse(mets).getroot()
    return {g.get("USE"): len(g.findall("m:file", ns)) for g in root.findall(".//m:fileGrp", ns)}


class E2eTest(unittest.TestCase):
    """A temporary folder, and deployments that are destroyed with it."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ocrctl-e2e-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def deployment(self, hosts, extra="", name=None):
        made = Deployment(self.folder, hosts, extra, name)
        self.addCleanup(made.destroy)
        return made

    def ssh(self, name, network=None, more=""):
        host = SshHost(self.folder / f"ssh-{name}", more=more, network=network)
        self.addCleanup(host.stop)
        return host

    def assert_nothing_left(self, deployment):
        left = deployment.left()
        self.assertEqual(left, {}, "processes left after kill-all")
        sockets = [str(p) for p in deployment.folder.rglob("*") if p.is_socket()]
        self.assertEqual(sockets, [], "sockets left after kill-all")


def main():
    if not os.access(BINARY, os.X_OK):
        sys.exit(f"no ocrctl at {BINARY}: build it, or name it by OCRCTL_BINARY")
    unittest.main(verbosity=2)
