"""Foreign and managed Workers in one workflow and one workspace."""

import pytest

import support

HOSTS = """
  - name: here
    connection: local
    workers:
      - {name: ocrd-ocrctl-dummy, number_of_instance: 1}
      - {name: ocrd-ocrctl-binarize, number_of_instance: 2}
"""


@pytest.fixture
def mixed(deploy, workers):
    return deploy(use_tcp_mets=False, hosts=HOSTS)


def test_steps_on_foreign_and_managed_workers_in_one_workflow(mixed, workers, mets):
    steps = ["ocrctl-binarize -I OCR-D-IMG -O OCR-D-BIN", "dummy -I OCR-D-BIN -O OCR-D-FOREIGN", "ocrctl-dummy -I OCR-D-FOREIGN -O OCR-D-MANAGED",
             "skimage-binarize -I OCR-D-MANAGED -O OCR-D-BIN2", "dummy -I OCR-D-BIN2 -O OCR-D-END"]
    answer = mixed.run_workflow(mets, "\n".join(steps), page_wise=True)
    assert mixed.wait_workflow(answer["job_id"], 120) == "SUCCESS", mixed.logs() + workers.logs()
    groups = support.groups_of(mets)
    pages = len(support.pages_of(mets))
    for group in ("OCR-D-BIN", "OCR-D-FOREIGN", "OCR-D-MANAGED", "OCR-D-BIN2", "OCR-D-END"):
        assert groups[group] >= pages, groups
    listed = mixed.request("GET", "/processor")[1]
    assert {"ocrd-dummy", "ocrd-skimage-binarize", "ocrd-ocrctl-binarize"} <= set(listed)


def test_workers_agents_are_in_the_mets(mixed, workers, mets):
    answer = mixed.run_workflow(mets, "dummy -I OCR-D-IMG -O OCR-D-A\nocrctl-dummy -I OCR-D-A -O OCR-D-B", page_wise=False)
    assert mixed.wait_workflow(answer["job_id"], 60) == "SUCCESS", mixed.logs() + workers.logs()
    text = mets.read_text()
    assert "ocrd-dummy v" in text and "ocrd-ocrctl-dummy v" in text
