"""`ocrctl client`, which is what `ocrd network client` is, and OCR-D's routes that a deployment answers as a whole: /stop, /openapi.json."""

import json
import os
import signal

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


class ToolCatalogueTest(E2eTest):
    def test_a_program_on_the_machine_is_asked_what_it_is_and_not_again(self):
        asked = self.folder / "asked"
        program = self.folder / "bin" / "ocrd-fake"
        program.parent.mkdir()
        tool = {"executable": "ocrd-fake", "description": "none", "steps": ["x"], "categories": ["y"], "input_file_grp_cardinality": 1,
                "output_file_grp_cardinality": 1, "parameters": {"depth": {"type": "number", "description": "how deep", "required": True}}}
        program.write_text(f"#!/bin/sh\n[ \"$1\" = --dump-json ] || exit 1\necho once >> {asked}\necho INFO a line before\ncat <<'END'\n{json.dumps(tool)}\nEND\n")
        program.chmod(0o755)
        d = self.deployment([f"  - name: here\n    connection: local\n    env: {{PATH: '{program.parent}:{os.environ['PATH']}'}}\n    workers:\n"
                             "      - {name: ocrd-fake, kind: managed}\n"])
        d.deploy()
        self.assertEqual(d.request("GET", "/processor/info/ocrd-fake"), (200, tool))
        self.assertEqual(d.request("GET", "/processor/info/ocrd-other")[0], 404)
        mets = copy_sample_workspace(self.folder)
        for _ in range(2):  # required stays required
            status, answer = d.request("POST", "/processor/run/ocrd-fake", {"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["F"]})
            self.assertEqual((status, "'depth' is a required property" in answer["detail"]), (400, True), answer)
        times = len(asked.read_text().splitlines())
        self.assertLessEqual(times, 2)  # by the server, and by the Worker for itself
        before = next(u["pid"] for u in d.units("server"))
        os.kill(before, signal.SIGKILL)
        eventually(lambda: any(u["pid"] != before and u["state"] == "ready" for u in d.units("server")), 30, d.logs)
        self.assertEqual(d.request("GET", "/processor/info/ocrd-fake"), (200, tool))
        self.assertEqual(len(asked.read_text().splitlines()), times)


if __name__ == "__main__":
    harness.main()
