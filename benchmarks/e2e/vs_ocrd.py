"""OCR-D's processing server against ours, in one run and in turns: submissions per second and their latency, and the wall time of a
page-wise workflow of no-op steps with the same real OCR-D Workers. Both have a RabbitMQ and a MongoDB-compatible server of their own.

Runs in the virtual environment of scripts/interop, with wrk (Debian's package) as load generator:
    OCRCTL_FERRETDB=build/ferretdb build/interop/venv/bin/python benchmarks/e2e/vs_ocrd.py [ROUNDS [SECONDS]]
"""

import http.client
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "interop"))
import support  # noqa: E402
from support import BIN, FerretDb, OcrdDeployment, Program, RabbitMq, Workers, eventually, free_port  # noqa: E402

PAGES, STEPS, WORKERS = 20, 5, 2

# Each request writes a group of its own: no Job waits for another one's pages.
LUA = """
local n, mark = 0, "%s"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, '{"path_to_mets": "%s", "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["S-' .. mark .. '-' .. n .. '"], "page_id": "PHYS_0001", "parameters": {}}')
end
"""


class Contender:
    """A server with its services; `post` and `get` speak OCR-D's routes."""

    def __init__(self, name, folder):
        self.name, self.folder = name, pathlib.Path(folder) / name
        self.folder.mkdir()
        self.env = support.ocrd_environment(self.folder)
        self.rabbit = RabbitMq(self.folder / "rabbit")
        self.ferret = FerretDb(self.folder / "ferret")
        self.workers = Workers(self.folder, self.rabbit, self.ferret, self.env)

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status >= 400:
                raise AssertionError(f"{self.name}: {method} {path}: {answer.status} {text}")
            return json.loads(text)
        finally:
            connection.close()

    def answers(self):
        try:
            return self.request("GET", "/")
        except (OSError, AssertionError, http.client.HTTPException):
            return None

    def stop(self):
        self.workers.stop()
        self.end()
        self.ferret.stop()
        self.rabbit.stop()


class Ocrd(Contender):
    def __init__(self, folder, **environment):
        super().__init__("ocrd", folder)
        self.env.update(environment)
        self.port = free_port()
        (self.folder / "ps.yml").write_text(
            f"internal_callback_url: http://127.0.0.1:{self.port}\nuse_tcp_mets: true\n"
            f"process_queue:\n  address: 127.0.0.1\n  port: {self.rabbit.port}\n"
            f"  credentials: {{username: {self.rabbit.user}, password: {self.rabbit.password}}}\n  skip_deployment: true\n"
            f"database:\n  address: 127.0.0.1\n  port: {self.ferret.port}\n  skip_deployment: true\nhosts: []\n")
        self.server = Program([BIN / "ocrd", "network", "processing-server", "-a", f"127.0.0.1:{self.port}", self.folder / "ps.yml"],
                              self.folder / "server.log", self.env, cwd=self.folder)
        eventually(self.answers, 60, lambda: self.server.text())

    def end(self):
        self.server.stop()
        # Its METS servers outlive it: sessions of their own, found by this run's environment.
        for pid, _ in marked(self.env["OCRD_NETWORK_SOCKETS_ROOT_DIR"]):
            subprocess.run(["kill", "-KILL", str(pid)], check=False)


class Ours(Contender):
    def __init__(self, folder, **options):
        super().__init__("ocrctl", folder)
        self.deployment = OcrdDeployment(self.folder / "deployment", self.rabbit, self.ferret, **options)
        self.deployment.deploy(env=self.env)
        self.port = self.deployment.port

    def end(self):
        self.deployment.destroy()


def marked(value):
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if value.encode() in (entry / "environ").read_bytes():
                    yield int(entry.name), entry
            except OSError:
                pass


def submissions(contender, mets, connections, seconds):
    script = contender.folder / "submit.lua"
    script.write_text(LUA % (f"{connections}-{time.time_ns()}", mets))
    run = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script),
                          f"http://127.0.0.1:{contender.port}/processor/run/ocrd-dummy"], capture_output=True, text=True, check=True)
    if "Non-2xx" in run.stdout or "Socket errors" in run.stdout:
        raise AssertionError(f"{contender.name}: not all submissions were accepted\n{run.stdout}")

    def milliseconds(percent):
        value, unit = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)", run.stdout, re.M).groups()
        return float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", run.stdout).group(1)), milliseconds(50), milliseconds(99)


def workflow(contender, mets):
    """Wall seconds, and the share of them in which the Workers were at work by their own account."""
    groups = ["OCR-D-IMG"] + [f"W{n}" for n in range(STEPS)]
    script = "\n".join(f"dummy -I {a} -O {b}" for a, b in zip(groups, groups[1:]))
    boundary = "vs-ocrd"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="workflow"; filename="w.txt"\r\n\r\n{script}\r\n--{boundary}--\r\n'
    start = time.monotonic()
    job = contender.request("POST", f"/workflow/run?mets_path={mets}&page_wise=True", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    submitted = time.monotonic() - start

    def state():
        found = contender.request("GET", f"/workflow/job-simple/{job['job_id']}")["state"]
        return found if found in ("SUCCESS", "FAILED") else None
    ended = eventually(state, 300, f"{contender.name}: workflow")
    wall = time.monotonic() - start
    if ended != "SUCCESS":
        raise AssertionError(f"{contender.name}: the workflow ended {ended}\n{contender.workers.logs()}")
    ids = [i for page in job["processing_job_ids"].values() for i in page]
    assert len(ids) == PAGES * STEPS
    rows = list(contender.ferret.client()["ocrd"]["DBProcessorJob"].find({"job_id": {"$in": ids}}))
    assert len(rows) == len(ids) and all(r["state"] == "SUCCESS" for r in rows)
    busy = sum((r["end_time"] - r["start_time"]).total_seconds() for r in rows) / WORKERS
    return wall, submitted, busy / wall


def with_both(folder, name, measure):
    """Fresh ones for each part: what one leaves behind (queued Jobs, documents) is not to slow the next."""
    place = pathlib.Path(folder) / name
    place.mkdir()
    contenders = []
    try:
        for kind in (Ocrd, Ours):
            contenders.append(kind(place))
        measure(contenders)
    finally:
        for c in contenders:
            c.stop()


def measure_submissions(contenders, rounds, seconds, measured):
    for c in contenders:
        c.workers.start("ocrd-dummy", 1)  # makes the queue
        c.workers.stop()
        c.mets = support.harness.make_workspace(c.folder / "submit", 1)
        body = json.dumps({"path_to_mets": str(c.mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["FIRST"], "page_id": "PHYS_0001"})
        c.request("POST", "/processor/run/ocrd-dummy", body, {"Content-Type": "application/json"})
    time.sleep(15)  # OCR-D's METS server listens only some seconds after that
    for _ in range(rounds):
        for c in contenders:
            for connections in (1, 16):
                rate, p50, p99 = submissions(c, c.mets, connections, seconds)
                measured.setdefault((c.name, connections), []).append((rate, p50, p99))
                print(f"{c.name:7} {connections:2} connections: {rate:8.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)


def measure_workflows(contenders, rounds, measured):
    for c in contenders:
        c.workers.start("ocrd-dummy", WORKERS)
    for turn in range(rounds + 1):
        for c in contenders:
            mets = support.harness.make_workspace(c.folder / f"w{turn}", PAGES)
            wall, submitted, share = workflow(c, mets)
            if turn:
                measured.setdefault((c.name, "workflow"), []).append((wall, submitted, share))
            print(f"{c.name:7} {PAGES} pages x {STEPS} steps: {wall:.2f} s ({submitted:.2f} s of it submitting), {wall * 1000 / PAGES / STEPS:.1f} ms a Job; "
                  f"Workers at work {100 * share:.0f} %{'' if turn else ' (warm-up)'}", flush=True)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    measured = {}
    with tempfile.TemporaryDirectory(prefix="vs-ocrd-") as folder:
        with_both(folder, "s", lambda contenders: measure_submissions(contenders, rounds, seconds, measured))
        with_both(folder, "w", lambda contenders: measure_workflows(contenders, rounds, measured))
    for connections in (1, 16):
        a, b = measured[("ocrctl", connections)], measured[("ocrd", connections)]
        ratios = [x[0] / y[0] for x, y in zip(a, b)]
        latency = [x[1] / y[1] for x, y in zip(a, b)]
        print(f"{connections:2} connections: rate {statistics.median(ratios):.1f} times OCR-D's ({min(ratios):.1f} to {max(ratios):.1f}), "
              f"p50 {statistics.median(latency):.3f} of OCR-D's ({min(latency):.3f} to {max(latency):.3f})")
    ratios = [x[0] / y[0] for x, y in zip(measured[("ocrctl", "workflow")], measured[("ocrd", "workflow")])]
    print(f"workflow: {statistics.median(ratios):.2f} of OCR-D's wall time ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
