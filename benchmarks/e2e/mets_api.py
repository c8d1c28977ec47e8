"""The METS API on a workspace of 10,000 pages: additions and searches (one page, a list, a range, a //regex) over /tcp_mets and over the Unix
socket of the workspace, ours and OCR-D's METS server in one run and in turns; then the same calls by OCR-D's own client, and which part of
their time is the server's. Every search is checked, and what is in the METS files at the end.

Runs in the virtual environment of scripts/interop:
    OCRCTL_FERRETDB=build/ferretdb build/interop/venv/bin/python benchmarks/e2e/mets_api.py [PAGES [ADDS [SEARCHES]]] [--ours] [--caching]
--ours: without OCR-D's server. --caching: OCR-D's server with OCRD_METS_CACHING, which is off by default.
"""

import json
import os
import pathlib
import socket
import statistics
import sys
import tempfile
import time
import urllib.parse

import vs_ocrd
from vs_ocrd import support

PAGE = "application/vnd.prima.page+xml"
ROUNDS = 5  # the calls are spread over so many turns


class Raw:
    """A client that costs next to nothing: one connection, requests made beforehand."""

    def __init__(self, contender, transport):
        if transport == "uds":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(contender.socket_path)
        else:
            self.socket = socket.create_connection(("127.0.0.1", contender.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport, self.workspace = transport, str(contender.mets.parent)

    def request(self, method, path, kind, fields, response_type="class"):
        """The bytes of a call, as OCR-D's client would send it."""
        if self.transport == "tcp":
            data = {kind: fields} if kind else {}
            body = json.dumps({"workspace_path": self.workspace, "method_type": method, "response_type": response_type, "request_url": path,
                               "request_data": data}).encode()
            method, path, content = "POST", "tcp_mets", b"application/json"
        else:
            text = urllib.parse.urlencode(fields or {})
            body = text.encode() if kind == "form" else b""
            path += "?" + text if kind == "params" else ""
            content = b"application/x-www-form-urlencoded"
        head = f"{method} /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
        return head + b"Content-Type: " + content + b"\r\n\r\n" + body

    def call(self, request):
        self.socket.sendall(request)
        text = self.socket.recv(65536)
        while (end := text.find(b"\r\n\r\n")) < 0:
            more = self.socket.recv(65536)
            assert more, text
            text += more
        head = text[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at:].split(b"\r\n", 1)[0])
        body = bytearray(text[end + 4:])
        while len(body) < length:
            more = self.socket.recv(1 << 20)
            assert more, text
            body += more
        assert head.startswith(b"http/1.1 200"), bytes(text[:end] + b"\r\n" + body)
        return bytes(body)

    def close(self):
        self.socket.close()


def addition(group, n, pages):
    page = n % pages + 1
    return {"file_grp": group, "file_id": f"{group}_{n:05}", "mimetype": PAGE, "page_id": f"PHYS_{page:04}", "local_filename": f"{group}/{n:05}.xml"}


def search(n, pages, group="OCR-D-IMG"):
    """The n-th search and the ids that it finds."""
    first = n * 37 % (pages - 100) + 1
    kind = n % 4
    if kind == 0:
        wanted, selector = [first], f"PHYS_{first:04}"
    elif kind == 1:
        wanted = [first, first + 9, first + 50]
        selector = ",".join(f"PHYS_{p:04}" for p in wanted)
    elif kind == 2:
        wanted = list(range(first, first + 20))
        selector = f"PHYS_{first:04}..PHYS_{first + 19:04}"
    else:
        tens = max(first // 10, 1)
        wanted = [p for p in range(10 * tens, 10 * tens + 10) if p <= pages]
        selector = f"//PHYS_{tens:03}."
    return {"file_grp": group, "page_id": selector}, [f"{group}_{p:04}" for p in wanted]


def ids_of(answer):
    return [f["file_id"] for f in json.loads(answer)["files"]]


def raw_calls(contender, transport, adds, searches, pages, turn):
    """Seconds for this turn's additions and for its searches."""
    client = Raw(contender, transport)
    group = f"ADD-{transport}"
    count = adds // ROUNDS
    made = [client.request("POST", "file", "form", addition(group, turn * count + n, pages)) for n in range(count)]
    start = time.monotonic()
    for request in made:
        client.call(request)
    adding = time.monotonic() - start
    count = searches // ROUNDS
    wanted = [search(turn * count + n, pages) for n in range(count)]
    made = [client.request("GET", "file", "params", fields) for fields, _ in wanted]
    by_kind = [[] for _ in range(4)]
    answers = []
    for n, request in enumerate(made):
        start = time.monotonic()
        answers.append(client.call(request))
        by_kind[(turn * count + n) % 4].append(time.monotonic() - start)
    for answer, (fields, expected) in zip(answers, wanted):
        assert ids_of(answer) == expected, (contender.name, fields, ids_of(answer), expected)
    client.close()
    return adding, [sum(seconds) for seconds in by_kind]


def processor_time(pid):
    """Seconds that a process has run, of all its threads that live."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()) / 1e9


def client_calls(contender, transport, adds, searches, pages):
    """OCR-D's own client: seconds a call, and the server's processor time of that."""
    from ocrd.mets_server import ClientSideOcrdMets
    address = contender.socket_path if transport == "uds" else f"http://127.0.0.1:{contender.port}/tcp_mets"
    client = ClientSideOcrdMets(address, workspace_path=str(contender.mets.parent))
    group = f"CLIENT-{transport}"
    used, start = processor_time(contender.server_pid), time.monotonic()
    for n in range(adds):
        fields = addition(group, n, pages)
        client.add_file(fields["file_grp"], ID=fields["file_id"], mimetype=PAGE, pageId=fields["page_id"], local_filename=fields["local_filename"])
    for n in range(searches):
        fields, expected = search(n, pages)
        assert [f.ID for f in client.find_files(fileGrp=fields["file_grp"], pageId=fields["page_id"])] == expected
    wall = time.monotonic() - start
    return wall / (adds + searches), (processor_time(contender.server_pid) - used) / wall


def prepare(contender, pages):
    """A METS server for the contender's workspace, that answers: its socket, the same in the server's /tcp_mets."""
    contender.mets = support.harness.make_workspace(contender.folder / "big", pages)
    if contender.name == "ocrctl":
        contender.socket_path = contender.request("POST", "/v1/mets", json.dumps({"path_to_mets": str(contender.mets)}), {"Content-Type": "application/json"})["mets_server_url"]
        units = contender.deployment.units("server")
        contender.server_pid = units[0]["pid"]
        return
    call = json.dumps({"workspace_path": str(contender.mets.parent), "method_type": "GET", "response_type": "text", "request_url": "workspace_path",
                       "request_data": {}})

    def answers():
        try:
            return contender.request("POST", "/tcp_mets", call, {"Content-Type": "application/json"}).get("text")
        except (OSError, AssertionError):
            return None
    answers()  # starts it, and does not wait until it listens
    sockets = pathlib.Path(contender.env["OCRD_NETWORK_SOCKETS_ROOT_DIR"])
    support.eventually(lambda: list(sockets.glob("*.sock")), 60, lambda: contender.server.text())
    support.eventually(answers, 60, lambda: contender.server.text())
    contender.socket_path = str(next(sockets.glob("*.sock")))


def save(contender):
    client = Raw(contender, "uds")
    start = time.monotonic()
    client.call(client.request("PUT", "", None, None))
    client.close()
    return time.monotonic() - start


def ratio(theirs, ours):
    values = [a / b for a, b in zip(theirs, ours)]
    return f"{statistics.median(values):.0f} times as fast ({min(values):.0f} to {max(values):.0f})"


def main():
    numbers = [int(a) for a in sys.argv[1:] if not a.startswith("--")]
    pages, adds, searches = (numbers + [10000, 5000, 500][len(numbers):])[:3]
    environment = {"OCRD_METS_CACHING": "true"} if "--caching" in sys.argv else {}
    print(f"{pages} pages, {adds} additions, {searches} searches; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="mets-api-") as folder:
        contenders, times = [], {}
        try:
            contenders.append(vs_ocrd.Ours(folder, use_tcp_mets=False))
            if "--ours" not in sys.argv:
                contenders.append(vs_ocrd.Ocrd(folder, **environment))
            for c in contenders:
                prepare(c, pages)
            for turn in range(ROUNDS):
                for transport in ("tcp", "uds"):
                    for c in contenders:
                        adding, finding = raw_calls(c, transport, adds, searches, pages, turn)
                        times.setdefault((c.name, transport), []).append((adding * ROUNDS / adds, [s * 4 * ROUNDS / searches for s in finding]))
                        print(f"{turn}: {c.name:6} {transport}: {adding * ROUNDS / adds * 1000:.3f} ms an addition; searches: "
                              + ", ".join(f"{k} {s * 4 * ROUNDS / searches * 1000:.3f} ms" for k, s in zip(("page", "list", "range", "regex"), finding)), flush=True)
            for c in contenders:
                seconds = save(c)
                print(f"{c.name:6} save of {c.mets.stat().st_size} bytes: {seconds:.3f} s", flush=True)
                groups = support.groups_of(c.mets)
                assert groups["ADD-tcp"] == groups["ADD-uds"] == adds // ROUNDS * ROUNDS, groups
            ours = contenders[0]
            for transport in ("tcp", "uds"):
                call, share = client_calls(ours, transport, 1000, 200, pages)
                raw = [(a * 5 + statistics.mean(f)) / 6 for a, f in times[("ocrctl", transport)]]  # the same mix
                print(f"OCR-D's client, {transport}: {call * 1000:.2f} ms a call, of which the server's processor time is {100 * share:.1f} %, "
                      f"a whole raw call {100 * statistics.median(raw) / call:.1f} %", flush=True)
        finally:
            for c in contenders:
                c.stop()
    for transport in ("tcp", "uds"):
        mine = times[("ocrctl", transport)]
        print(f"{transport}: ocrctl {statistics.median(a for a, _ in mine) * 1000:.3f} ms an addition, "
              + ", ".join(f"{k} {statistics.median(f[n] for _, f in mine) * 1000:.3f} ms" for n, k in enumerate(("page", "list", "range", "regex"))))
        if len(contenders) == 2:
            theirs = times[("ocrd", transport)]
            print(f"{transport}: OCR-D  {statistics.median(a for a, _ in theirs) * 1000:.3f} ms an addition, "
                  + ", ".join(f"{k} {statistics.median(f[n] for _, f in theirs) * 1000:.3f} ms" for n, k in enumerate(("page", "list", "range", "regex"))))
            print(f"{transport}: additions {ratio([a for a, _ in theirs], [a for a, _ in mine])}, "
                  f"searches {ratio([statistics.mean(f) for _, f in theirs], [statistics.mean(f) for _, f in mine])}; of which "
                  + ", ".join(f"{k} {ratio([f[n] for _, f in theirs], [f[n] for _, f in mine])}" for n, k in enumerate(("page", "list", "range", "regex"))))


if __name__ == "__main__":
    main()
