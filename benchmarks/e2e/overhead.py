"""Overhead per no-op Job of a page-wise workflow of 20 pages x 5 steps with 2 Workers, with the processor time that each part
of the deployment takes for it, and accepted Jobs per second. `overhead.py 20` runs 20 workflows, `overhead.py 20 only` those alone."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

from common import harness, spread


def processor_time(folder):
    """Seconds that the parts of the deployment below this folder have used: part -> user + system."""
    used, tick = {}, os.sysconf("SC_CLK_TCK")
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().split(b"\0")
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if b"OCRCTL_ENTRY=" not in environment or str(folder).encode() not in environment:
            continue
        name = pathlib.Path(command[0].decode()).name
        part = "engines" if "engine" in name else {b"serve": "server", b"worker": "Workers", b"agent": "agent"}.get(command[1] if len(command) > 1 else b"", "broker")
        used[part] = used.get(part, 0) + (int(fields[11]) + int(fields[12])) / tick
    return used


def submissions(d, mets, connections, seconds):
    """Closed loop; returns (accepted per second, latencies)."""
    latencies, lock, end = [], threading.Lock(), time.monotonic() + seconds

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", d.port)
        mine = []
        while time.monotonic() < end:
            n = len(mine)
            body = json.dumps({"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"],
                               "output_file_grps": [f"S-{connections}-{number}-{n}"], "page_id": "PHYS_0001"})
            start = time.monotonic()
            connection.request("POST", "/processor/run/ocrd-ocrctl-dummy", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            mine.append(time.monotonic() - start)
            assert answer.status == 200, text
        with lock:
            latencies.extend(mine)

    with concurrent.futures.ThreadPoolExecutor(connections) as pool:
        list(pool.map(client, range(connections)))
    latencies.sort()
    return len(latencies) / seconds, latencies


def main():
    with tempfile.TemporaryDirectory(prefix="ocrctl-bench-") as folder:
        folder = pathlib.Path(folder)
        d = harness.Deployment(folder, [harness.local_host({"ocrd-ocrctl-dummy": 2})])
        try:
            d.deploy()
            names = ["OCR-D-IMG", "A", "B", "C", "D", "E"]
            script = "\n".join(f"ocrctl-dummy -I {a} -O {b}" for a, b in zip(names, names[1:]))
            per_job = []
            workflows = int(sys.argv[1]) if len(sys.argv) > 1 else 6
            for n in range(workflows + 1):
                if n == 1:
                    before = processor_time(folder)
                mets = harness.make_workspace(folder / f"w{n}", 20)
                start = time.monotonic()
                run = d.run_workflow(mets, script)
                assert d.wait_workflow(run["job_id"]) == "SUCCESS"
                per_job.append((time.monotonic() - start) * 1000 / 100)
                assert harness.groups_of(mets)["E"] == 20
            print("no-op Job in a page-wise workflow, 20 pages x 5 steps, 2 Workers:", spread(per_job[1:], "ms a Job", 2))
            after = processor_time(folder)
            parts = {part: (after[part] - before.get(part, 0)) * 1000 / (100 * workflows) for part in sorted(after)}
            print("processor time a Job:", ", ".join(f"{part} {ms:.2f} ms" for part, ms in parts.items()), f"together {sum(parts.values()):.2f} ms")
            if "only" in sys.argv:
                return
            mets = harness.make_workspace(folder / "submit", 1)
            for connections in (1, 16):
                rate, latencies = submissions(d, mets, connections, 5)
                p50, p99 = (latencies[int(len(latencies) * q)] * 1000 for q in (0.5, 0.99))
                print(f"POST /processor/run, {connections:2} connections: {rate:.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms (Python client)")
        finally:
            d.destroy()


main()
