"""Hosts without an agent (`agent: false`): foreign Workers that are started over SSH, and looked after by nobody."""

import os
import shlex
import signal
import subprocess

import harness
import test_foreign
from harness import eventually, local_host, make_workspace, processes


class Agentless(test_foreign.Played):
    def setUp(self):
        super().setUp()
        self.sshd = self.ssh("far")

    def far(self, workers=("{name: ocrd-dummy, number_of_instance: 2}",), agent=False, folder=None):
        import getpass
        folder = folder or self.folder
        return (f"  - name: far\n    connection: ssh\n    address: 127.0.0.1\n    port: {self.sshd.port}\n    username: {getpass.getuser()}\n"
                f"    path_to_privkey: {self.sshd.key}\n    host_key: {self.sshd.fingerprint}\n    reach: direct\n    agent: {str(agent).lower()}\n"
                f"    state: {folder}/remote\n    env: {{PATH: '{self.path['PATH']}'}}\n    workers:\n" + "".join(f"      - {w}\n" for w in workers))

    def far_status(self, d):
        return next((h for h in (d.status() or {}).get("hosts", []) if h["host"] == "far"), None)

    def far_units(self, d):
        host = self.far_status(d)
        return {u["entry"]: u for u in host["units"]} if host else {}

    def all_ready(self, d, count):
        units = self.far_units(d)
        return len(units) == count and all(u["state"] == "ready" for u in units.values()) and units

    def run_job(self, d, mets, group):
        status, job = d.request("POST", "/processor/run/ocrd-dummy", {"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"], "output_file_grps": [group], "parameters": {}})
        self.assertEqual(status, 200, job)
        return job["job_id"]

    def test_workers_are_started_serve_jobs_and_are_started_again_by_deploy_alone(self):
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1}), self.far()], self.mongo())
        planned = d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False, env=self.path).stdout
        self.assertIn("worker far/ocrd-dummy-1/shard-0/rep-1 (ocrd-dummy, foreign, without agent)", planned)
        self.assertFalse([line for line in planned.splitlines() if line.startswith("far") and " agent" in line.split("(")[0]], planned)
        out = d.deploy(env=self.path).stdout
        self.assertIn("far: 2 workers ready, without agent", out)
        self.assertIn("ready with 3 workers", out)

        # Nothing of ours stays there, and each Worker carries the marks.
        there = {pid: v["OCRCTL_ENTRY"] for pid, (_, v) in processes(d.id).items() if v.get("OCRCTL_HOST") == "far"}
        units = eventually(lambda: self.all_ready(d, 2), 10, lambda: d.status())
        self.assertEqual(there, {u["pid"]: u["entry"] for u in units.values()})
        self.assertEqual((self.far_status(d)["agent"], self.far_status(d)["connected"]), (False, False))
        shown = d.ocrctl("status", "--state", str(d.state)).stdout
        self.assertIn("agent: false: its Workers are not supervised", shown)
        self.assertNotIn("its agent is not connected", shown)
        remote = self.folder / "remote" / d.name / "hosts" / "far"
        self.assertFalse((remote / "secrets" / "agent-token").exists())
        passwords = {w["queue"].split("@")[0].rsplit(":", 1)[1] for pid, w in self.started(d).items() if pid in there}
        self.assertEqual(len(passwords), 2)
        for file in [f for folder in (d.state, remote) for f in folder.rglob("*") if f.is_file() and f.parent.name != "ocrd"]:
            for password in passwords:
                if password.encode() in file.read_bytes():
                    self.assertEqual((file.parent.name, file.stat().st_mode & 0o777), ("secrets", 0o600), file)

        # Jobs of both kinds of host, in one deployment.
        mets = make_workspace(self.folder / "w", 2)
        self.assertEqual(d.wait_job(self.run_job(d, mets, "A"))["state"], "SUCCESS")
        self.assertEqual(d.wait_workflow(d.run_workflow(mets, "ocrctl-dummy -I OCR-D-IMG -O OUT")["job_id"]), "SUCCESS")

        # One dies with a Job in its hands: the other does it. Nobody starts it again, and the status says so.
        logs = remote / "logs" / "ocrd"
        (logs / "hold").touch()
        job = self.run_job(d, mets, "B")
        by = logs / f"{job}.by"
        victim = int(eventually(lambda: by.exists() and by.read_text(), 20, lambda: d.logs()))
        os.kill(victim, signal.SIGKILL)
        other = next(pid for pid in there if pid != victim)
        eventually(lambda: by.read_text() == str(other), 20, lambda: f"{d.request('GET', f'/v1/jobs/{job}')}\n{d.logs()}")
        (logs / "hold").unlink()
        self.assertEqual(d.wait_job(job)["state"], "SUCCESS")
        entry = there[victim]
        gone = eventually(lambda: (u := self.far_units(d)[entry])["state"] == "failed" and u, 20, lambda: d.status())
        self.assertIn("ocrctl deploy starts it again", gone["detail"])
        self.assertEqual(self.far_units(d)[there[other]]["state"], "ready")

        # deploy brings it back, and leaves the other alone.
        missing = d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False, env=self.path)
        self.assertEqual(missing.returncode, 4, missing.stdout + missing.stderr)
        self.assertEqual([line.split()[:4] for line in missing.stdout.splitlines() if line.startswith("far")], [["far", "start", "worker", entry]])
        again = d.deploy(env=self.path).stdout
        self.assertIn("far: 2 workers ready, without agent", again)
        units = eventually(lambda: (u := self.all_ready(d, 2)) and u[entry]["pid"] != victim and u, 10, lambda: d.status())
        self.assertEqual(units[there[other]]["pid"], other)
        self.assertNotIn(units[entry]["pid"], (0, victim))
        self.assertIn("ended while nobody watched it", units[entry]["last_exit"])
        self.assertEqual(d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False, env=self.path).returncode, 0)

        self.assertIn("0 left on 2 hosts", d.kill_all().stdout)
        self.assert_nothing_left(d)
        self.assertIn("nothing to do", d.kill_all().stdout)

    def test_on_a_broker_of_others_the_workers_share_its_vhost_and_are_counted(self):
        folder = self.folder / "other"
        folder.mkdir()
        other = harness.Deployment(folder, [local_host({"ocrd-ocrctl-dummy": 1})], "process_queue: {credentials: {username: test, password: test}}\n", name="other")
        self.addCleanup(other.destroy)
        other.deploy()
        folder = self.folder / "mine"
        folder.mkdir()
        d = harness.Deployment(folder, [self.far(folder=folder)], self.mongo() + f"process_queue: {{address: 127.0.0.1, port: {other.queue_port()}, skip_deployment: true, "
                            "credentials: {username: test, password: test}}\n")
        self.addCleanup(d.destroy)
        d.deploy(env=self.path)
        units = eventually(lambda: self.all_ready(d, 2), 15, lambda: d.status())
        mets = make_workspace(self.folder / "w", 1)
        self.assertEqual(d.wait_job(self.run_job(d, mets, "A"))["state"], "SUCCESS")
        entry, victim = next((e, u["pid"]) for e, u in units.items())
        os.kill(victim, signal.SIGKILL)
        shown = eventually(lambda: (u := self.far_units(d)[entry])["state"] == "unknown" and u, 20, lambda: d.status())
        self.assertIn("1 of 2 Workers consume its queue", shown["detail"])
        self.assertEqual(d.wait_job(self.run_job(d, mets, "B"))["state"], "SUCCESS")
        d.deploy(env=self.path)
        again = eventually(lambda: (u := self.all_ready(d, 2)) and u[entry]["pid"] != victim and u, 15, lambda: d.status())
        self.assertEqual({e for e in again if again[e]["pid"] != units[e]["pid"]}, {entry})
        self.assertIn("0 left", d.kill_all().stdout)
        self.assert_nothing_left(d)

    def test_an_agent_goes_and_comes_without_disturbing_the_workers(self):
        extra = self.mongo()
        d = self.deployment([local_host({"ocrd-ocrctl-dummy": 1}), self.far(agent=True)], extra)
        d.deploy(env=self.path)
        workers = lambda: {v["OCRCTL_ENTRY"]: pid for pid, (_, v) in processes(d.id).items() if v.get("OCRCTL_HOST") == "far" and v["OCRCTL_ENTRY"] != "agent"}
        agents = lambda: [pid for pid, (_, v) in processes(d.id).items() if v.get("OCRCTL_HOST") == "far" and v["OCRCTL_ENTRY"] == "agent"]
        before = workers()
        self.assertEqual((len(before), len(agents())), (2, 1))
        with_agent = d.config.read_text()
        d.config.write_text(with_agent.replace("agent: true", "agent: false"))
        d.deploy(env=self.path)
        self.assertEqual((workers(), agents()), (before, []))
        d.config.write_text(with_agent)
        d.deploy(env=self.path)
        self.assertEqual((workers(), len(agents())), (before, 1))
        # One that is not wanted any more ends, without an agent, too.
        d.config.write_text(with_agent.replace("agent: true", "agent: false").replace("number_of_instance: 2", "number_of_instance: 1"))
        d.deploy(env=self.path)
        self.assertEqual(list(workers().items()), [next((e, p) for e, p in before.items() if e.endswith("rep-0"))])
        # And the host itself.
        d.config.write_text(with_agent.replace(self.far(agent=True), ""))
        d.deploy(env=self.path)
        self.assertEqual(workers(), {})
        self.assertIn("0 left", d.kill_all().stdout)
        self.assert_nothing_left(d)

    def test_a_host_that_is_away_at_kill_all_is_finished_by_the_next_one(self):
        d = self.deployment([self.far(["{name: ocrd-dummy}"])], self.mongo())
        d.deploy(env=self.path)
        logs = self.folder / "remote" / d.name / "hosts" / "far" / "logs" / "ocrd"
        (logs / "hold").touch()  # busy, it outlives its broker
        job = self.run_job(d, make_workspace(self.folder / "w", 1), "A")
        eventually((logs / f"{job}.by").exists, 20, lambda: d.logs())
        self.sshd.stop()
        first = d.kill_all(check=False)
        self.assertEqual(first.returncode, 3, first.stdout + first.stderr)
        self.assertEqual([v["OCRCTL_HOST"] for _, v in processes(d.id).values()], ["far"])
        status = d.ocrctl("status", "--state", str(d.state)).stdout
        self.assertIn("agent: false: what was started there is in the ledger on it", status)
        self.sshd.start()
        self.assertIn("0 left", d.kill_all().stdout)
        self.assert_nothing_left(d)

    def test_a_worker_that_dies_at_its_start_is_told_with_its_last_words(self):
        (self.bin / "ocrd-frail").write_text("#!/bin/sh\necho it looks for its models\necho it cannot import torch >&2\nexit 1\n")
        (self.bin / "ocrd-frail").chmod(0o755)
        d = self.deployment([self.far(["{name: ocrd-dummy}", "{name: ocrd-frail}"])], self.mongo())
        failed = d.deploy(check=False, env=self.path)
        self.assertEqual(failed.returncode, 3, failed.stdout + failed.stderr)
        self.assertIn("far: far/ocrd-frail-1/shard-0/rep-0 does not start: ended with code 1: it cannot import torch", failed.stderr)
        self.assertIn("it looks for its models\nit cannot import torch", failed.stderr)
        units = eventually(lambda: (u := self.far_units(d)) and u["far/ocrd-dummy-1/shard-0/rep-0"]["state"] == "ready" and u, 10, lambda: d.status())
        self.assertEqual(units["far/ocrd-frail-1/shard-0/rep-0"]["state"], "failed")
        self.assertIn("it cannot import torch", units["far/ocrd-frail-1/shard-0/rep-0"]["detail"])
        self.program("ocrd-frail") # repaired
        self.assertIn("far: 2 workers ready", d.deploy(env=self.path).stdout)
        self.assertIn("0 left", d.kill_all().stdout)
        self.assert_nothing_left(d)

    def test_kill_all_leaves_nothing_wherever_deploy_was_killed(self):
        mongo = self.mongo()
        points = [p for p in subprocess.run([harness.BINARY, "deploy", "--list-crash-points"], capture_output=True, text=True).stdout.split()
                  if p.startswith("deploy.") and "agentless" in p]
        self.assertGreaterEqual(len(points), 4)
        for point in points:
            with self.subTest(point=point):
                folder = self.folder / point
                folder.mkdir()
                d = harness.Deployment(folder, [local_host({"ocrd-ocrctl-dummy": 1}), self.far(folder=folder)], mongo, name="crashes")  # its Store is in that MongoDB
                self.addCleanup(d.destroy)
                run = d.deploy(check=False, env={**self.path, "OCRCTL_CRASH_AT": point})
                self.assertEqual(run.returncode, -9, f"{point} was not reached: {run.stdout}{run.stderr}")
                closed = d.kill_all(check=False)
                self.assertEqual(closed.returncode, 0, f"{point}: {closed.stdout}{closed.stderr}")
                self.assert_nothing_left(d)
        print(f"{len(points)} points, 0 left each time")

    def test_a_deploy_that_is_killed_while_workers_start_leaves_nothing_to_kill_all_and_a_second_one_goes_on(self):
        starting = self.bin / "ocrd-slow"
        starting.write_text(f"#!/bin/sh\nif [ \"$1\" = worker ]; then\n  echo $$ >> {self.folder}/slow\n  while [ -e {self.folder}/wait ]; do sleep 0.05; done\nfi\n"
                            f"exec {shlex.quote(str(self.bin / 'ocrd-slow.real'))} \"$@\"\n")
        starting.chmod(0o755)
        self.program("ocrd-slow.real", "ocrd-slow")
        (self.folder / "wait").touch()
        d = self.deployment([self.far(["{name: ocrd-slow, number_of_instance: 2}"])], self.mongo())
        began = lambda: (self.folder / "slow").exists() and len((self.folder / "slow").read_text().split())

        def killed():
            before = began() or 0
            deploy = subprocess.Popen([harness.BINARY, "deploy", str(d.config), "--state", str(d.state)], env={**os.environ, **self.path}, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            eventually(lambda: (began() or 0) == before + 2, 60, lambda: d.logs())
            deploy.kill()
            deploy.wait()
        killed()
        self.assertTrue([pid for pid, (command, _) in processes(d.id).items() if " host start " in command], "it goes on without its deploy")
        (self.folder / "wait").unlink()
        self.assertIn("far: 2 workers ready", d.deploy(env=self.path).stdout)
        self.assertEqual(began(), 2, "the second deploy took over what the first had started")
        d.kill_all()
        self.assert_nothing_left(d)
        (self.folder / "wait").touch()
        killed()
        self.assertIn("0 left", d.kill_all().stdout)
        self.assert_nothing_left(d)


if __name__ == "__main__":
    harness.main()
