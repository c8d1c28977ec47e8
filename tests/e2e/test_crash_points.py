"""kill -9 of deploy at each of its named points, then kill-all: nothing may be left."""

import subprocess

import harness
from harness import local_host, ssh_host


class CrashPoints(harness.E2eTest):
    def test_kill_all_leaves_nothing_wherever_deploy_was_killed(self):
        points = [p for p in subprocess.run([harness.BINARY, "deploy", "--list-crash-points"], capture_output=True,
                                            text=True).stdout.split() if p.startswith("deploy.") and "agentless" not in p]  # those: test_agentless.py
        self.assertGreaterEqual(len(points), 20)
        ssh = self.ssh("a")
        passed = []
        for point in points:
            with self.subTest(point=point):
                folder = self.folder / point
                folder.mkdir()
                d = harness.Deployment(folder, [local_host({"ocrd-ocrctl-dummy": 1}),
                                                ssh_host(ssh, "a", {"ocrd-ocrctl-dummy": 1}, folder / "remote")])
                self.addCleanup(d.destroy)
                run = d.deploy(check=False, env={"OCRCTL_CRASH_AT": point})
                self.assertEqual(run.returncode, -9, f"{point} was not reached: {run.stdout}{run.stderr}")
                closed = d.kill_all(check=False)
                self.assertEqual(closed.returncode, 0, f"{point}: {closed.stdout}{closed.stderr}")
                self.assert_nothing_left(d)
                kept = {"logs", "ledger.jsonl", "store", "rabbitmq", "hosts", "deployment.json", "config.yml"}
                odd = [p.name for p in d.state.iterdir() if p.name not in kept and "ledger" not in p.name] if d.state.exists() else []
                self.assertEqual(odd, [], f"{point}: left in the state folder")
                passed.append(point)
        print(f"{len(passed)} points, 0 left each time")


if __name__ == "__main__":
    harness.main()
