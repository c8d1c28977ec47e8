"""/openapi.json is a valid OpenAPI 3.1 document that has every route."""

import re

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


def test_docs_is_a_page_for_people(server):
    status, text = server.request("GET", "/docs")
    assert status == 200 and "<html" in text and "/processor/run/{processor_name}" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(|@import""", text), "the page must not fetch anything from elsewhere"
