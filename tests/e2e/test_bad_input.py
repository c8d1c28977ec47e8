"""Bad input and trouble: one clear sentence, nothing half done, nothing lost. The rows of the main job's list."""

import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import harness
from harness import eventually, groups_of, local_host, make_workspace, ssh_host, tiny_png


class ConfigAndDeploy(harness.E2eTest):
    def refused(self, d, *words, code=1):
        run = d.deploy(check=False)
        self.assertEqual(run.returncode, code, run.stdout + run.stderr)
        for word in words:
            self.assertIn(word, run.stdout + run.stderr)
        self.assertEqual(d.left(), {}, "nothing was started")
        return run

    def test_broken_yaml_names_file_line_and_column(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        d.config.write_text("name: x\nhosts: [\n  {name: a\n")
        run = self.refused(d, "config.yml:", code=2)
        self.assertRegex(run.stderr, r"config\.yml:\d+:\d+: ")

    def test_an_unknown_key_is_suggested_and_all_problems_come_at_once(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        d.config.write_text("hosts:\n  - adress: 10.0.0.1\n    connection: local\n    workers:\n"
                            "      - {name: ocrd-ocrctl-dummy, number_of_instance: two}\n")
        run = self.refused(d, "did you mean \"address\"", "number_of_instance", code=2)
        self.assertRegex(run.stderr, r"config\.yml:2:\d+")
        self.assertRegex(run.stderr, r"config\.yml:5:\d+")

    def test_a_port_in_use_is_named_before_anything_starts(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})])
        with socket.socket() as s:
            s.bind(("127.0.0.1", d.port))
            s.listen()
            self.refused(d, str(d.port), "in use")

    def test_an_unreachable_host_is_named(self):
        ssh = self.ssh("a")
        hosts = [ssh_host(ssh, "far", {"ocrd-ocrctl-dummy": 1}, self.folder / "remote")]
        d = self.deployment(hosts)
        ssh.stop()
        run = d.deploy(check=False)
        self.assertIn(run.returncode, (1, 3))
        self.assertIn("far", run.stderr)
        self.assertIn("refused", run.stderr)
        self.assertEqual(d.kill_all(check=False).returncode, 0)
        self.assert_nothing_left(d)

    def test_a_wrong_key_is_told_apart(self):
        ssh = self.ssh("a")
        os.unlink(ssh.folder / "authorized_keys")
        (ssh.folder / "authorized_keys").write_text("")
        d = self.deployment([ssh_host(ssh, "a", {"ocrd-ocrctl-dummy": 1}, self.folder / "remote")])
        run = d.deploy(check=False)
        self.assertIn(run.returncode, (1, 3))
        self.assertRegex(run.stderr, r"key")
        d.kill_all(check=False)
        self.assert_nothing_left(d)

    def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_the_command_that_trusts_it(self):
        ssh = self.ssh("a")
        text = ssh_host(ssh, "a", {"ocrd-ocrctl-dummy": 1}, self.folder / "remote")
        d = self.deployment([text.replace(f"    host_key: {ssh.fingerprint}\n", f"    known_hosts: {self.folder}/known\n")])
        run = d.deploy(check=False)
        self.assertIn(run.returncode, (1, 3))
        self.assertIn(ssh.fingerprint, run.stderr)
        self.assertIn("ocrctl trust", run.stderr)
        d.kill_all(check=False)
        self.assert_nothing_left(d)

    def test_rabbitmq_that_is_not_installed_is_named_with_its_package(self):
        if os.geteuid() != 0:
            self.skipTest("hiding RabbitMQ from the test needs root")
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})], extra="process_queue:\n  kind: native\n")
        hide = ("mount -t tmpfs none /usr/lib/rabbitmq && exec \"$0\" deploy \"$1\" --state \"$2\"")
        # unshare makes all mounts private first, which fails in a chroot; where none is shared there is nothing to make private.
        shared = any(" shared:" in line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())
        private = [] if shared else ["--propagation", "unchanged"]
        run = subprocess.run(["unshare", "-m", *private, "sh", "-c", hide, harness.BINARY, str(d.config), str(d.state)],
                             capture_output=True, text=True, timeout=60 * harness.SLOW)
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertIn("rabbitmq-server", run.stderr)
        self.assertEqual(d.left(), {})


class Submissions(harness.E2eTest):
    """One deployment for all; each test has a workspace of its own."""

    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.mkdtemp(prefix="ocrctl-e2e-")
        cls.d = harness.Deployment(cls.home, [local_host({"ocrd-ocrctl-dummy": 2, "ocrd-ocrctl-recognize": 1,
                                                          "ocrd-ocrctl-binarize": 1})])
        cls.addClassCleanup(shutil.rmtree, cls.home, True)
        cls.addClassCleanup(cls.d.destroy)
        cls.d.deploy()

    def submit(self, mets, processor="ocrd-ocrctl-dummy", **fields):
        body = {"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": ["OUT"], **fields}
        return self.d.request("POST", f"/processor/run/{processor}", body)

    def assert_refused(self, answer, status, *words):
        self.assertEqual(answer[0], status, answer)
        for word in words:
            self.assertIn(word, answer[1]["detail"])

    def assert_fails(self, answer, *words):
        self.assertEqual(answer[0], 200, answer)
        job = answer[1]["job_id"]
        self.assertEqual(self.d.wait_job(job)["state"], "FAILED")
        log = self.d.request("GET", f"/processor/log/{job}")
        for word in words:
            self.assertIn(word, str(log[1]))

    def test_no_such_processor(self):
        mets = make_workspace(self.folder / "w", 1)
        self.assert_refused(self.submit(mets, "ocrd-nonesuch"), 422, "ocrd-nonesuch")

    def test_no_such_language_model_says_how_to_get_it(self):
        mets = make_workspace(self.folder / "w", 1)
        answer = self.submit(mets, "ocrd-ocrctl-recognize", parameters={"model": "xyz"})
        if answer[0] == 200:
            self.assert_fails(answer, "xyz", "tesseract-ocr")
        else:
            self.assert_refused(answer, 422, "xyz", "tesseract-ocr")

    def test_a_parameter_that_does_not_exist(self):
        mets = make_workspace(self.folder / "w", 1)
        self.assert_refused(self.submit(mets, parameters={"no_such": 1}), 400, "no_such")

    def test_mets_missing(self):
        self.assert_refused(self.submit(self.folder / "none" / "mets.xml"), 404, "mets.xml")

    def test_mets_is_not_xml(self):
        mets = self.folder / "mets.xml"
        mets.write_text("this is no XML")
        self.assert_refused(self.submit(mets), 422, "mets.xml")

    def test_mets_points_to_a_missing_image(self):
        mets = make_workspace(self.folder / "w", 1)
        (mets.parent / "OCR-D-IMG" / "p0001.png").unlink()
        self.assert_fails(self.submit(mets, "ocrd-ocrctl-binarize"), "p0001.png")

    def test_an_image_is_truncated_or_empty_or_something_else(self):
        for name, content, word in [("truncated", tiny_png(640, 480)[:200], "p0001.png"), ("empty", b"", "p0001.png"),
                                    ("other", b"GIF89a not really an image", "p0001.png")]:
            with self.subTest(name):
                mets = make_workspace(self.folder / name, 1, image=content or None)
                (mets.parent / "OCR-D-IMG" / "p0001.png").write_bytes(content)
                self.assert_fails(self.submit(mets, "ocrd-ocrctl-binarize"), word)

    def test_one_bad_page_of_many_fails_alone(self):
        mets = make_workspace(self.folder / "w", 20)
        (mets.parent / "OCR-D-IMG" / "p0007.png").write_bytes(b"")
        run = self.d.run_workflow(mets, "ocrctl-binarize -I OCR-D-IMG -O BIN\nocrctl-dummy -I BIN -O OUT")
        self.assertEqual(self.d.wait_workflow(run["job_id"]), "FAILED")
        eventually(lambda: sum(self.d.request("GET", f"/workflow/job/{run['job_id']}")[1]["ocrd-ocrctl-dummy"].values()) == 20
                   and self.d.request("GET", f"/workflow/job/{run['job_id']}")[1]["ocrd-ocrctl-dummy"].get("SUCCESS") == 19,
                   60, "19 pages done")
        counts = self.d.request("GET", f"/workflow/job/{run['job_id']}")[1]
        self.assertEqual(counts["ocrd-ocrctl-dummy"], {"SUCCESS": 19, "CANCELLED": 1})
        self.assertEqual(counts["failed-processor-tasks"]["ocrd-ocrctl-binarize"][0]["page_id"], "PHYS_0007")
        self.assertEqual(groups_of(mets)["OUT"], 19)

    def test_a_page_range_that_matches_nothing(self):
        mets = make_workspace(self.folder / "w", 2)
        self.assert_refused(self.submit(mets, page_id="PHYS_0100..PHYS_0110"), 422, "PHYS_0100")

    def test_a_wrong_input_group_lists_those_there_are(self):
        mets = make_workspace(self.folder / "w", 2)
        self.assert_refused(self.submit(mets, input_file_grps=["NONE"]), 422, "NONE", "OCR-D-IMG")

    def test_an_output_group_that_exists_is_refused_under_abort(self):
        mets = make_workspace(self.folder / "w", 2)
        answer = self.submit(mets)
        self.assertEqual(self.d.wait_job(answer[1]["job_id"])["state"], "SUCCESS")
        self.assert_refused(self.submit(mets, existing_output="abort"), 409, "OUT")

    def mounted(self, size):
        if os.geteuid() != 0:
            self.skipTest("mounting a small file system needs root")
        folder = self.folder / "mount"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", str(folder)], check=False)
        return folder

    def test_a_workspace_that_is_read_only_fails_with_the_reason(self):
        folder = self.mounted("4m")
        mets = make_workspace(folder / "w", 2)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        answer = self.submit(mets)
        if answer[0] == 200:
            self.assert_fails(answer, "ead-only")
        else:
            self.assertIn("ead-only", answer[1]["detail"])

    def test_a_disk_full_while_the_mets_is_written_loses_nothing(self):
        folder = self.mounted("600k")
        mets = make_workspace(folder / "w", 3)
        before = mets.read_bytes()
        answer = self.submit(mets, parameters={"delay_ms": 1500})
        self.assertEqual(answer[0], 200, answer)
        ballast = folder / "ballast"
        with open(ballast, "wb", buffering=0) as out:  # until only a page or two of the file system is left
            try:
                while True:
                    out.write(b"\0" * 4096)
            except OSError:
                pass
        time.sleep(0)  # the Job runs into the full disk, either while writing its files or while the METS is saved
        state = eventually(lambda: (j := self.d.request("GET", f"/processor/job/{answer[1]['job_id']}")[1])["state"]
                           in ("FAILED", "RUNNING", "SUCCESS") and j["state"], 20, "a state")
        self.assertIn(mets.read_bytes() == before or b"OUT" in mets.read_bytes(), (True,))
        ballast.unlink()
        final = self.d.wait_job(answer[1]["job_id"], 120)
        self.assertTrue(mets.read_text().rstrip().endswith("</mets:mets>"))
        if final["state"] == "SUCCESS":
            self.assertEqual(groups_of(mets)["OUT"], 3)
        else:
            self.assertIn("space", self.d.request("GET", f"/processor/log/{answer[1]['job_id']}")[1])
        self.assertIsNotNone(state)

    def test_malformed_requests_are_refused_with_a_detail(self):
        mets = make_workspace(self.folder / "w", 1)
        for body, status in [({}, 422), ({"input_file_grps": "x"}, 422), ({"path_to_mets": str(mets), "input_file_grps": []}, 422),
                             ({"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"]}, 422)]:
            answer = self.d.request("POST", "/processor/run/ocrd-ocrctl-dummy", body)
            self.assertEqual(answer[0], status, answer)
            self.assertIn("detail", answer[1])
        self.assertEqual(self.d.request("POST", "/processor/run/ocrd-ocrctl-dummy", "no json",
                                        {"Content-Type": "application/json"})[0], 422)
        self.assertEqual(self.d.request("GET", "/processor/job/none")[0], 422)
        self.assertEqual(self.d.request("GET", "/workflow/none")[0], 404)


if __name__ == "__main__":
    harness.main()
