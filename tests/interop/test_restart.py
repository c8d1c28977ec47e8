"""Server and broker killed while unmodified Workers work: nothing is lost, nothing runs for ever (reference 2.9, 3.5)."""

import os
import signal

import support
from support import eventually


def server_pid(deployment):
    return next((u["pid"] for u in deployment.units("server")), None)


def test_a_server_killed_in_the_middle_of_a_foreign_workflow_ends_it(deploy, workers, mets):
    """OCR-D's server forgets its cached requests, locks and METS servers; a Worker that cannot reach it ends."""
    deployment = deploy(use_tcp_mets=True)
    steps = "\n".join(f"dummy -I {a} -O {b}" for a, b in zip(["OCR-D-IMG", "R1", "R2", "R3", "R4", "R5"], ["R1", "R2", "R3", "R4", "R5", "R6"]))
    answer = deployment.run_workflow(mets, steps, page_wise=True)
    eventually(lambda: deployment.request("GET", f"/workflow/job/{answer['job_id']}")[1].get("ocrd-dummy", {}).get("SUCCESS", 0) >= 2, 60,
               lambda: deployment.logs() + workers.logs())
    os.kill(server_pid(deployment), signal.SIGKILL)
    # A Worker that finds nobody to call ends, as OCR-D's do; somebody starts another by hand, and it goes on.
    dummies = [w for w in workers.all if w.argv[0].endswith("ocrd-dummy")]
    eventually(lambda: deployment.workflow_state(answer["job_id"]) == "SUCCESS" or not any(w.alive() for w in dummies), 60,
               lambda: deployment.logs() + workers.logs())
    if not any(w.alive() for w in dummies):
        workers.start("ocrd-dummy")
    state = deployment.wait_workflow(answer["job_id"], 120)
    done = deployment.request("GET", f"/workflow/job/{answer['job_id']}")[1]
    assert state == "SUCCESS", f"{done}\n{deployment.logs()}{workers.logs()}"
    assert support.groups_of(mets)["R6"] == len(support.pages_of(mets))
