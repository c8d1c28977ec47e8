"""Three hosts over SSH: Workers, agents and servers are killed, and what must come back comes back."""

import os
import signal
import unittest

import harness
from harness import eventually, local_host, make_workspace, processes, ssh_host


class Hosts(harness.E2eTest):
    def deploy_three(self):
        self.sshd = [self.ssh(n) for n in ("a", "b", "c")]
        hosts = [ssh_host(s, n, {"ocrd-ocrctl-dummy": 4}, self.folder / f"remote-{n}")
                 for s, n in zip(self.sshd, ("a", "b", "c"))]
        d = self.deployment(hosts)
        d.deploy()
        return d

    def test_workers_agents_and_server_are_brought_back_and_all_is_gone_at_the_end(self):
        d = self.deploy_three()
        self.assertEqual(len(d.ready_workers()), 12, d.status())
        self.assertEqual({u["host"] for u in d.ready_workers()}, {"a", "b", "c"})

        # A Worker dies with a Job in its hands: it is back, and the Job is done.
        mets = make_workspace(self.folder / "w", 12)
        run = d.run_workflow(mets, "ocrctl-dummy -I OCR-D-IMG -O OUT -P delay_ms 1500")
        busy = eventually(lambda: next((u for u in d.units() if u.get("job")), None), 20, "a busy Worker")
        os.kill(busy["pid"], signal.SIGKILL)
        back = eventually(lambda: next((u for u in d.ready_workers()
                                        if u["entry"] == busy["entry"] and u["pid"] != busy["pid"]), None), 3,
                          lambda: f"{busy['entry']} READY again: {d.units()}\n{d.logs()}")
        self.assertNotEqual(back["pid"], busy["pid"])
        self.assertEqual(d.wait_workflow(run["job_id"]), "SUCCESS")
        self.assertEqual(harness.groups_of(mets)["OUT"], 12)

        # An agent dies: it is back within 10 s, its Workers never stopped.
        workers = {u["entry"]: u["pid"] for u in d.units() if u["host"] == "b"}
        agent = next(h for h in d.status()["hosts"] if h["host"] == "b")["agent_pid"]
        os.kill(agent, signal.SIGKILL)
        eventually(lambda: next((h for h in (d.status() or {}).get("hosts", []) if h["host"] == "b" and h["connected"]
                                 and h["agent_pid"] != agent), None), 10, lambda: d.logs())
        self.assertEqual({u["entry"]: u["pid"] for u in d.units() if u["host"] == "b"}, workers)

        # Server and an agent die; kill-all from another shell ends everything.
        server = next(u for u in d.units("server"))["pid"]
        agent = next(h for h in d.status()["hosts"] if h["host"] == "c")["agent_pid"]
        os.kill(server, signal.SIGKILL)
        os.kill(agent, signal.SIGKILL)
        out = d.kill_all().stdout
        self.assertIn("0 left on 4 hosts", out)
        self.assert_nothing_left(d)
        again = d.kill_all()
        self.assertIn("nothing to do", again.stdout)


if __name__ == "__main__":
    harness.main()
