"""A page-wise workflow over real pages on unmodified OCR-D Workers; the METS is what `ocrd process` makes of the same steps."""

import pytest

import mets_compare
import support

STEPS = ["skimage-binarize -I OCR-D-IMG -O OCR-D-BIN -P method otsu",
         "dummy -I OCR-D-BIN -O OCR-D-COPY",
         "skimage-binarize -I OCR-D-COPY -O OCR-D-BIN2 -P method sauvola -P window_size 61",
         "dummy -I OCR-D-BIN2 -O OCR-D-LAST -P copy_files true",
         "dummy -I OCR-D-LAST -O OCR-D-END"]


@pytest.fixture(scope="session")
def expected(folder, env):
    """The workspace that OCR-D's own program makes of it, without any network."""
    mets = support.workspace(folder, "by-ocrd-process")
    support.run([support.BIN / "ocrd", "process", "-m", "mets.xml", *STEPS], env, cwd=mets.parent, limit=180)
    return mets


@pytest.mark.parametrize("use_tcp_mets", [True, False], ids=["tcp", "uds"])
def test_page_wise_workflow_makes_what_ocrd_process_makes(use_tcp_mets, deploy, workers, expected, mets):
    deployment = deploy(use_tcp_mets=use_tcp_mets)
    answer = deployment.run_workflow(mets, "\n".join(STEPS), page_wise=True)
    pages = support.pages_of(mets)
    assert sorted(answer["processing_job_ids"]) == sorted(pages)
    assert all(len(jobs) == len(STEPS) for jobs in answer["processing_job_ids"].values())
    state = deployment.wait_workflow(answer["job_id"], 120)
    assert state == "SUCCESS", deployment.logs() + workers.logs()
    assert mets_compare.differences(expected, mets) == []
    if not use_tcp_mets:
        deployment.kill_all()
        assert list((support.pathlib.Path(deployment.state)).rglob("*.sock")) == []


def test_whole_workspace_workflow_makes_what_ocrd_process_makes(server, workers, expected, mets):
    answer = server.run_workflow(mets, "\n".join(STEPS), page_wise=False)
    assert list(answer["processing_job_ids"]) == [""]
    assert server.wait_workflow(answer["job_id"], 120) == "SUCCESS", server.logs() + workers.logs()
    assert mets_compare.differences(expected, mets) == []


def test_path_through_a_symlink_loses_no_result(server, workers, mets, tmp_path):
    """OCR-D's server runs two METS servers then, and the results of one are lost (network protocol 2.7)."""
    link = tmp_path / "link"
    link.symlink_to(mets.parent)
    answer = server.run_workflow(link / "mets.xml", "dummy -I OCR-D-IMG -O OCR-D-LINKED", page_wise=True)
    assert server.wait_workflow(answer["job_id"]) == "SUCCESS", server.logs() + workers.logs()
    assert support.groups_of(mets)["OCR-D-LINKED"] == 2 * len(support.pages_of(mets)) or support.groups_of(mets)["OCR-D-LINKED"] == len(support.pages_of(mets))
