"""`ocrctl client`, which is what `ocrd network client` is, and OCR-D's routes that a deployment answers as a whole: /stop, /openapi.json."""

import json
import os

import harness
from harness import E2eTest, copy_sample_workspace, eventually, groups_of, local_host


class ClientTest(E2eTest):
    def setUp(self):
        super().setUp()
        self.d = self.deployment([local_host({"ocrd-ocrctl-dummy": 2})])
        self.d.deploy()
        self.mets = copy_sample_workspace(self.folder)

    def client(self, *arguments, check=True):
        return self.d.ocrctl("client", *arguments, check=check, env={"OCRD_NETWORK_SERVER_ADDR_PROCESSING": self.d.url})

    def test_discovery_runs_status_and_logs(self):
        self.assertEqual(json.loads(self.client("discovery", "processors").stdout), ["ocrd-ocrctl-dummy"])
        self.assertEqual(json.loads(self.client("discovery", "processor", "ocrd-ocrctl-dummy").stdout)["executable"], "ocrd-ocrctl-dummy")
        done = self.client("processing", "run", "ocrd-ocrctl-dummy", "-m", str(self.mets), "-I", "OCR-D-IMG", "-O", "OUT", "-b")
        self.assertIn("Processing job status: SUCCESS", done.stdout)
        job = done.stdout.split("Processing job id: ")[1].split()[0]
        self.assertEqual(self.client("processing", "check-status", "-j", job).stdout, "Processing job status: SUCCESS\n")
        self.assertTrue(self.client("processing", "check-log", "-j", job).stdout)
        done = self.client("workflow", "run", "-m", str(self.mets), "--page-wise", "-b", "ocrctl-dummy -I OUT -O A", "ocrctl-dummy -I A -O B")
        self.assertIn("Workflow job status: SUCCESS", done.stdout)
        workflow = done.stdout.split("Workflow job id: ")[1].split()[0]
        shown = self.client("workflow", "check-status", "-v", "-j", workflow).stdout
        self.assertEqual(json.loads(shown.split("\n", 1)[1]), {"ocrd-ocrctl-dummy": {"SUCCESS": 8}})
        self.assertEqual(groups_of(self.mets)["B"], 4)

    def test_a_script_may_lie_on_the_server_and_failures_are_exit_code_1(self):
        script = self.folder / "server-side.txt"
        script.write_text("ocrctl-dummy -I OCR-D-IMG -O OUT\n")
        self.assertIn("SUCCESS", self.client("workflow", "run", "-m", str(self.mets), "-w", str(script), "-b").stdout)
        for arguments, code, word in (
                (("processing", "run", "ocrd-ocrctl-dummy", "-m", str(self.mets), "-I", "OUT", "-O", "F", "-P", "fail", "true", "-b"), 1, ""),
                (("workflow", "run", "-m", str(self.mets), "-b", "ocrctl-dummy -I NO -O X"), 1, "OCR-D-IMG"),
                (("processing", "run", "ocrd-nobody", "-m", str(self.mets)), 1, "ocrd-nobody"),
                (("processing", "check-status", "-j", "none"), 1, "none"),
                (("workflow", "run", "-m", str(self.mets)), 2, "-w"),
                (("workflow", "run", "-m", str(self.mets), "dummy --what"), 2, "--what")):
            refused = self.client(*arguments, check=False)
            self.assertEqual(refused.returncode, code, f"{arguments}: {refused.stdout}{refused.stderr}")
            self.assertIn(word, refused.stderr)

    def test_post_stop_ends_the_deployment_and_leaves_nothing(self):
        self.assertEqual(self.d.request("POST", "/stop", headers={"Origin": "http://elsewhere.example"})[0], 403)
        self.assertEqual(self.d.request("GET", "/healthz")[0], 200)
        self.assertEqual(self.d.request("POST", "/stop"), (200, None))
        eventually(lambda: not self.d.left(), 60, lambda: f"{self.d.left()}\n{self.d.logs()}")
        log = self.d.state / "logs" / "kill-all.log"
        eventually(lambda: "0 left on 1 host" in log.read_text(), 30, lambda: log.read_text())
        self.assert_nothing_left(self.d)

    def test_every_route_is_in_openapi_json(self):
        status, document = self.d.request("GET", "/openapi.json")
        self.assertEqual((status, document["openapi"]), (200, "3.1.0"))
        undocumented = [f"{m} {p}" for p, item in document["paths"].items() for m, o in item.items() if o.get("x-undocumented")]
        self.assertEqual(undocumented, [])
        status, page = self.d.request("GET", "/docs")
        self.assertEqual(status, 200)
        self.assertIn("/workflow/job-simple/{workflow_job_id}", page)


if __name__ == "__main__":
    harness.main()
