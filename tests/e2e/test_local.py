"""From nothing to recognised text on one host, and back to nothing."""

import json
import pathlib
import signal
import subprocess
import sys

import harness
from harness import BINARY, ROOT, copy_sample_workspace, eventually, groups_of, local_host, make_workspace

CHAIN = """ocrctl-binarize -I OCR-D-IMG -O OCR-D-BIN
ocrctl-deskew -I OCR-D-BIN -O OCR-D-DESK
ocrctl-segment -I OCR-D-DESK -O OCR-D-SEG
ocrctl-recognize -I OCR-D-SEG -O OCR-D-OCR -P model {model}
ocrctl-export -I OCR-D-OCR -O OCR-D-TXT -P format text
ocrctl-export -I OCR-D-OCR -O OCR-D-ALTO -P format alto
"""


class LocalDeployment(harness.E2eTest):
    def test_pages_go_in_and_text_comes_out_and_nothing_is_left(self):
        d = self.deployment([local_host({f"ocrd-ocrctl-{p}": 1 for p in harness.BUILTIN})])
        out = d.deploy().stdout
        self.assertIn(d.url, out)
        self.assertEqual(len(d.ready_workers()), 6)

        status, processors = d.request("GET", "/processor")
        self.assertEqual(status, 200)
        self.assertIn("ocrd-ocrctl-recognize", processors)
        self.assertEqual(d.request("GET", "/processor/info/ocrd-ocrctl-recognize")[1]["executable"], "ocrd-ocrctl-recognize")

        mets = copy_sample_workspace(self.folder)
        run = d.run_workflow(mets, CHAIN.format(model="eng+deu"))
        self.assertEqual(d.wait_workflow(run["job_id"]), "SUCCESS")
        groups = groups_of(mets)
        pages = groups["OCR-D-IMG"]
        for group in ("OCR-D-BIN", "OCR-D-DESK", "OCR-D-SEG", "OCR-D-OCR", "OCR-D-TXT", "OCR-D-ALTO"):
            self.assertEqual(groups.get(group, 0) >= pages, True, groups)
        for text in sorted((mets.parent / "OCR-D-TXT").glob("*.txt")):
            number = "".join(c for c in text.stem if c.isdigit())[-4:]
            truth = [t for t in (ROOT / "samples").glob("*.txt") if number.lstrip("0") in t.stem]
            self.assertEqual(len(truth), 1, f"{text} {list((ROOT / 'samples').glob('*.txt'))}")
            cer = subprocess.run([sys.executable, str(ROOT / "scripts" / "cer"), str(truth[0]), str(text)],
                                 capture_output=True, text=True)
            self.assertEqual(cer.returncode, 0, cer.stderr)
            print(cer.stdout.splitlines()[0])
            self.assertLess(float(cer.stdout.split()[0]), 1.0, "character error rate in percent")
        self.assertFalse((mets.parent / ".ocrctl").exists(), "staging folders are removed")

        job = run["processing_job_ids"][sorted(run["processing_job_ids"])[0]][0]
        self.assertEqual(d.request("GET", f"/processor/job/{job}")[1]["state"], "SUCCESS")
        self.assertEqual(d.request("GET", f"/processor/log/{job}")[0], 200)

        closed = d.kill_all()
        self.assertIn("0 left on 1 host", closed.stdout)
        self.assert_nothing_left(d)
        again = d.kill_all()
        self.assertIn("nothing to do", again.stdout)

    def test_a_second_deploy_converges_and_a_concurrent_one_is_told_who_holds_the_lock(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        d.deploy()
        first = {u["entry"]: u["pid"] for u in d.ready_workers()}
        d.config.write_text(d.config.read_text().replace("number_of_instance: 1", "number_of_instance: 2"))
        self.assertEqual(d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False).returncode, 4)
        d.deploy()
        second = {u["entry"]: u["pid"] for u in d.ready_workers()}
        self.assertEqual(len(second), 2)
        for entry, pid in first.items():
            self.assertEqual(second[entry], pid, "a Worker that did not change is not restarted")
        self.assertEqual(d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False).returncode, 0)

    def test_two_deploys_at_once_and_the_second_names_the_first(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        first = subprocess.Popen([harness.BINARY, "deploy", str(d.config), "--state", str(d.state)],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        eventually(lambda: (d.state / "deploy.lock").exists() and (d.state / "deploy.lock").stat().st_size, 10, "lock")
        second = d.deploy(check=False)
        self.assertEqual(second.returncode, 1, second.stdout + second.stderr)
        self.assertIn(str(first.pid), second.stderr)
        out, _ = first.communicate(timeout=120)
        self.assertEqual(first.returncode, 0, out)

    def test_an_interrupted_deploy_says_what_goes_on(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        first = subprocess.Popen([BINARY, "deploy", str(d.config), "--state", str(d.state)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertIn("agent started", first.stdout.readline())
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=60)
        self.assertEqual(first.returncode, -signal.SIGINT)
        self.assertIn("ocrctl deploy completes it, ocrctl kill-all ends it", errors)
        d.deploy()

    def test_status_reads_the_ledger_when_the_server_is_gone(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        d.deploy()
        before = json.loads(d.ocrctl("status", "--state", str(d.state), "--json").stdout)
        self.assertTrue(before)
        # Its folder is not the usual one: found by its agent.
        self.assertIn(d.url, d.ocrctl("status", "--name", d.name).stdout)
        d.kill_all()
        self.assertNotEqual(d.ocrctl("status", "--name", d.name, check=False).returncode, 0)
        after = d.ocrctl("status", "--state", str(d.state))
        self.assertIn("stopped", after.stdout + after.stderr)

    def test_pages_done_are_skipped_when_a_workflow_is_run_again(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 2})])
        d.deploy()
        mets = make_workspace(self.folder / "w", 10)
        script = "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I A -O B"
        self.assertEqual(d.wait_workflow(d.run_workflow(mets, script)["job_id"]), "SUCCESS")
        stamp = {p: p.stat().st_mtime_ns for p in pathlib.Path(mets.parent).rglob("*") if p.is_file() and p.name != "mets.xml"}
        self.assertEqual(d.wait_workflow(d.run_workflow(mets, script)["job_id"]), "SUCCESS")
        self.assertEqual(stamp, {p: p.stat().st_mtime_ns for p in stamp}, "files of finished pages are not touched")
        self.assertEqual(groups_of(mets), {"OCR-D-IMG": 10, "A": 10, "B": 10})


if __name__ == "__main__":
    harness.main()
