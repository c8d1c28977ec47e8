"""What goes wrong stops no Worker and no server, and is told where the user looks."""

import http.server
import json
import threading

import support
from support import eventually


def test_unknown_ids_are_told(server):
    assert server.request("GET", "/processor/job/no-such-job") == (422, server.request("GET", "/processor/job/no-such-job")[1])
    assert "no-such-job" in server.request("GET", "/processor/job/no-such-job")[1]["detail"]
    assert server.request("GET", "/processor/log/no-such-job")[0] == 422
    assert server.request("GET", "/workflow/job-simple/no-such-job")[0] == 404
    status, body = server.request("POST", "/result_callback", {"job_id": "no-such-job", "state": "SUCCESS", "path_to_mets": "/x/mets.xml", "workspace_id": ""})
    assert status == 404 and "no-such-job" in body["detail"]


def test_an_unreachable_callback_stops_nobody(server, workers, rabbit, mets):
    """OCR-D's Worker ends when the client's callback_url refuses the connection (3.5)."""
    before = [w.pid for w in workers.all if w.alive()]
    status, job = server.request("POST", "/processor/run/ocrd-dummy", {
        "path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["OCR-D-CB"], "parameters": {},
        "callback_url": f"http://127.0.0.1:{support.free_port()}/nobody"})
    assert status == 200, job
    assert server.wait_job(job["job_id"])["state"] == "SUCCESS", server.logs() + workers.logs()
    status, job = server.request("POST", "/processor/run/ocrd-dummy", {
        "path_to_mets": str(mets), "input_file_grps": ["OCR-D-CB"], "output_file_grps": ["OCR-D-CB2"], "parameters": {}})
    assert server.wait_job(job["job_id"])["state"] == "SUCCESS", server.logs() + workers.logs()
    assert [w.pid for w in workers.all if w.alive()] == before
    assert server.request("GET", "/v1/status")[1].get("callbacks_waiting") == 1


def test_the_clients_callback_is_called_once_with_ocrds_body(server, workers, mets):
    got = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    receiver = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    try:
        status, job = server.request("POST", "/processor/run/ocrd-dummy", {
            "path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["OCR-D-CALLED"], "parameters": {},
            "callback_url": f"http://127.0.0.1:{receiver.server_port}/done"})
        assert status == 200, job
        assert server.wait_job(job["job_id"])["state"] == "SUCCESS", server.logs() + workers.logs()
        eventually(lambda: got, 20, "no callback came")
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()
    assert got[0]["job_id"] == job["job_id"] and got[0]["state"] == "SUCCESS" and got[0]["path_to_mets"] == str(mets)
    assert set(got[0]) >= {"job_id", "state", "path_to_mets", "workspace_id"}


def test_https_callback_urls_are_refused_before_anything_happens(server, workers, mets):
    """An https:// callback in a message ends OCR-D's Worker (3.5)."""
    before = [w.pid for w in workers.all if w.alive()]
    status, body = server.request("POST", "/processor/run/ocrd-dummy", {
        "path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["OCR-D-X"], "callback_url": "https://127.0.0.1/x"})
    assert status == 422 and "https://127.0.0.1/x" in body["detail"]
    listed = server.request("GET", "/v1/jobs?limit=1000")[1]["jobs"]
    assert [j for j in listed if j["path_to_mets"] == str(mets)] == []
    assert [w.pid for w in workers.all if w.alive()] == before


def test_a_mets_edited_by_hand_meanwhile_keeps_the_edit(server, workers, mets):
    first = server.request("POST", "/processor/run/ocrd-dummy", {
        "path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["OCR-D-ONE"], "parameters": {}})[1]
    assert server.wait_job(first["job_id"])["state"] == "SUCCESS", server.logs() + workers.logs()
    text = mets.read_text()
    at = text.index("</mets:fileSec>")
    mets.write_text(text[:at] + '<mets:fileGrp USE="BY-HAND"/>' + text[at:])
    second = server.request("POST", "/processor/run/ocrd-dummy", {
        "path_to_mets": str(mets), "input_file_grps": ["OCR-D-ONE"], "output_file_grps": ["OCR-D-TWO"], "parameters": {}})[1]
    assert server.wait_job(second["job_id"])["state"] == "SUCCESS", server.logs() + workers.logs()
    groups = support.groups_of(mets)
    assert "BY-HAND" in groups and groups["OCR-D-TWO"] == groups["OCR-D-ONE"], groups


def test_a_failed_page_is_told_with_its_reason(server, workers, mets):
    answer = server.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-OK\nskimage-binarize -I OCR-D-OK -O OCR-D-NO -P level-of-operation glyph -P dpi -1", page_wise=True)
    state = server.wait_workflow(answer["job_id"])
    status = server.request("GET", f"/workflow/job/{answer['job_id']}")[1]
    assert state in ("SUCCESS", "FAILED")
    if state == "FAILED":
        failed = status["failed-processor-tasks"]["ocrd-skimage-binarize"]
        assert all(f["job_id"] for f in failed)
        log = server.request("GET", f"/processor/log/{failed[0]['job_id']}")
        assert log[0] == 200 and log[1]
