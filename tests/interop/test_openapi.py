"""/openapi.json is a valid OpenAPI 3.1 document that has every route."""

import re

import pytest

import support  # noqa: F401


def test_openapi_is_valid_and_complete(server):
    from openapi_spec_validator import OpenAPIV31SpecValidator
    status, document = server.request("GET", "/openapi.json")
    assert status == 200
    errors = [str(e.message) for e in OpenAPIV31SpecValidator(document).iter_errors()]
    assert errors == []
    paths = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    ocrd = {("GET", "/"), ("POST", "/stop"), ("POST", "/tcp_mets"), ("DELETE", "/kill_mets_server_zombies"), ("GET", "/processor"),
            ("GET", "/processor/info/{processor_name}"), ("POST", "/processor/run/{processor_name}"), ("GET", "/processor/job/{job_id}"),
            ("GET", "/processor/log/{job_id}"), ("POST", "/result_callback"), ("POST", "/workflow"), ("GET", "/workflow/{workflow_id}"),
            ("PUT", "/workflow/{workflow_id}"), ("POST", "/workflow/run"), ("GET", "/workflow/job-simple/{workflow_job_id}"),
            ("GET", "/workflow/job/{workflow_job_id}")}
    assert ocrd <= paths, ocrd - paths
    assert {"PYJobInput", "PYJobOutput", "PYResultMessage", "PYWorkflowJobOutput"} <= set(document["components"]["schemas"])


# What the route tables of the network protocol (1.3, 1.8 to 1.10) say, with ocrctl's 422 and 404 where OCR-D has 500.
STATUSES = {
    ("GET", "/"): {200},
    ("POST", "/stop"): {200},
    ("POST", "/tcp_mets"): {200, 400, 404, 422},
    ("DELETE", "/kill_mets_server_zombies"): {200, 422},
    ("GET", "/processor"): {200},
    ("GET", "/processor/info/{processor_name}"): {200, 404},
    ("POST", "/processor/run/{processor_name}"): {200, 400, 404, 422},
    ("GET", "/processor/job/{job_id}"): {200, 422},
    ("GET", "/processor/log/{job_id}"): {200, 404, 422},
    ("POST", "/result_callback"): {200, 404, 422},
    ("POST", "/workflow"): {201, 409, 422},
    ("GET", "/workflow/{workflow_id}"): {200, 404},
    ("PUT", "/workflow/{workflow_id}"): {200, 404, 422},
    ("POST", "/workflow/run"): {200, 400, 404, 406, 422},
    ("GET", "/workflow/job-simple/{workflow_job_id}"): {200, 404},
    ("GET", "/workflow/job/{workflow_job_id}"): {200, 404},
}
QUERIES = {("POST", "/workflow/run"): {"mets_path", "workflow_id", "page_id", "page_wise", "workflow_callback_url"},
           ("DELETE", "/kill_mets_server_zombies"): {"minutes_ago", "dry_run"}}
BODIES = {("POST", "/tcp_mets"): {"application/json"}, ("POST", "/processor/run/{processor_name}"): {"application/json"},
          ("POST", "/result_callback"): {"application/json"},
          **{(m, p): {"multipart/form-data", "application/x-www-form-urlencoded"}
             for m, p in (("POST", "/workflow"), ("PUT", "/workflow/{workflow_id}"), ("POST", "/workflow/run"))}}


@pytest.mark.parametrize("route", STATUSES, ids=" ".join)
def test_each_route_of_ocrd_has_its_statuses_queries_and_bodies(server, route):
    method, path = route
    operation = server.request("GET", "/openapi.json")[1]["paths"][path][method.lower()]
    described = {int(s) for s in operation["responses"] if s != "default"}
    assert STATUSES[route] <= described, STATUSES[route] - described
    assert all(operation["responses"][str(s)].get("description") for s in described)
    assert {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"} >= QUERIES.get(route, set())
    assert set(operation.get("requestBody", {}).get("content", {})) == BODIES.get(route, set())


def test_a_route_answers_with_what_is_described(server, workers, mets):
    document = server.request("GET", "/openapi.json")[1]["paths"]
    job = {"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["OCR-D-API"]}
    accepted = server.request("POST", "/processor/run/ocrd-dummy", job)[1]["job_id"]
    call = {"workspace_path": str(mets.parent), "method_type": "GET", "response_type": "dict", "request_url": "file_groups", "request_data": {}}
    bad = {**call, "method_type": "POST", "response_type": "class", "request_url": "file",
           "request_data": {"form": {"file_grp": "X", "file_id": "1 bad", "mimetype": "image/png"}}}
    for route, concrete, body, status in [
            (("GET", "/"), "/", None, 200), (("GET", "/processor"), "/processor", None, 200),
            (("GET", "/processor/info/{processor_name}"), "/processor/info/ocrd-dummy", None, 200),
            (("GET", "/processor/info/{processor_name}"), "/processor/info/ocrd-none", None, 404),
            (("POST", "/processor/run/{processor_name}"), "/processor/run/ocrd-none", job, 422),
            (("POST", "/processor/run/{processor_name}"), "/processor/run/ocrd-dummy", {**job, "path_to_mets": str(mets.parent / "none.xml")}, 404),
            (("POST", "/processor/run/{processor_name}"), "/processor/run/ocrd-dummy", {**job, "parameters": {"none": 1}}, 400),
            (("GET", "/processor/job/{job_id}"), f"/processor/job/{accepted}", None, 200),
            (("GET", "/processor/job/{job_id}"), "/processor/job/none", None, 422),
            (("GET", "/processor/log/{job_id}"), "/processor/log/none", None, 422),
            (("POST", "/result_callback"), "/result_callback", {"job_id": "none", "state": "SUCCESS", "path_to_mets": "/x"}, 404),
            (("POST", "/result_callback"), "/result_callback", {"job_id": "none", "state": "success"}, 422),
            (("DELETE", "/kill_mets_server_zombies"), "/kill_mets_server_zombies?minutes_ago=60&dry_run=true", None, 200),
            (("DELETE", "/kill_mets_server_zombies"), "/kill_mets_server_zombies?minutes_ago=x", None, 422),
            (("POST", "/tcp_mets"), "/tcp_mets", call, 200), (("POST", "/tcp_mets"), "/tcp_mets", bad, 400),
            (("POST", "/tcp_mets"), "/tcp_mets", {**call, "workspace_path": "/nowhere"}, 404), (("POST", "/tcp_mets"), "/tcp_mets", {}, 422),
            (("GET", "/workflow/{workflow_id}"), "/workflow/none", None, 404), (("POST", "/workflow"), "/workflow", {}, 422),
            (("POST", "/workflow/run"), "/workflow/run", None, 422), (("POST", "/workflow/run"), "/workflow/run?mets_path=/nowhere/mets.xml", None, 404),
            (("GET", "/workflow/job-simple/{workflow_job_id}"), "/workflow/job-simple/none", None, 404),
            (("GET", "/workflow/job/{workflow_job_id}"), "/workflow/job/none", None, 404)]:
        answer = server.request(route[0], concrete, body)
        assert answer[0] == status, (concrete, answer)
        assert str(status) in document[route[1]][route[0].lower()]["responses"], (concrete, status)
        if status >= 400 and not (concrete == "/tcp_mets" and status == 400):
            assert answer[1].get("detail"), (concrete, answer)
    assert server.wait_job(accepted)["state"] == "SUCCESS"


def test_docs_is_a_page_for_people(server):
    status, text = server.request("GET", "/docs")
    assert status == 200 and "<html" in text and "/processor/run/{processor_name}" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(|@import""", text), "the page must not fetch anything from elsewhere"
