"""Server, broker and the broker's data are killed in the middle of 200 Jobs: none is lost, none recorded twice."""

import os
import shutil
import signal

import harness
from harness import eventually, groups_of, local_host, make_workspace


class Recovery(harness.E2eTest):
    def start(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 2})])
        d.deploy()
        mets = make_workspace(self.folder / "w", 50)
        script = "\n".join(f"ocrctl-dummy -I {a} -O {b} -P delay_ms 20" for a, b in
                           zip(["OCR-D-IMG", "A", "B", "C"], ["A", "B", "C", "D"]))
        run = d.run_workflow(mets, script)
        self.assertEqual(sum(len(j) for j in run["processing_job_ids"].values()), 200)
        eventually(lambda: d.request("GET", f"/workflow/job/{run['job_id']}")[1]
                   .get("ocrd-ocrctl-dummy", {}).get("SUCCESS", 0) >= 20, 60, lambda: d.logs())
        return d, mets, run["job_id"]

    def check(self, d, mets, job):
        self.assertEqual(d.wait_workflow(job, 120), "SUCCESS")
        counts = d.request("GET", f"/workflow/job/{job}")[1]
        self.assertEqual(counts, {"ocrd-ocrctl-dummy": {"SUCCESS": 200}})
        self.assertEqual(groups_of(mets), {"OCR-D-IMG": 50, "A": 50, "B": 50, "C": 50, "D": 50})
        ids = [line for line in mets.read_text().split('"') if line.startswith("D_") or line.startswith("D-")]
        self.assertEqual(len(set(ids)) * 2, len(ids), "each file stands once in fileSec and once in structMap")
        self.assertFalse((mets.parent / ".ocrctl").exists(), "staging folders are removed")

    def test_the_server_is_killed(self):
        d, mets, job = self.start()
        server = d.units("server")[0]["pid"]
        os.kill(server, signal.SIGKILL)
        self.assertFalse(os.path.exists(f"/dev/shm/mongoc-{server}"), "libmongoc's counters were left")
        eventually(lambda: d.units("server") and d.units("server")[0]["pid"] != server, 10, lambda: d.logs())
        self.check(d, mets, job)

    def test_the_broker_is_killed(self):
        d, mets, job = self.start()
        os.kill(d.units("queue")[0]["pid"], signal.SIGKILL)
        self.check(d, mets, job)

    def test_the_broker_is_killed_and_its_data_deleted_while_it_is_down(self):
        d, mets, job = self.start()
        queue = d.units("queue")[0]["pid"]
        data = d.state / "rabbitmq" / "data"
        self.assertTrue(data.is_dir(), list((d.state / "rabbitmq").iterdir()))
        os.kill(queue, signal.SIGSTOP)
        os.kill(queue, signal.SIGKILL)
        shutil.rmtree(data, ignore_errors=True)
        self.check(d, mets, job)


if __name__ == "__main__":
    harness.main()
