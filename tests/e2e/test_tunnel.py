"""reach: tunnel. Hosts in a network of their own (where one can be made) that reach nothing but what comes through SSH."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest

import harness
import test_foreign
from harness import eventually, make_workspace, ssh_host

CAN_ISOLATE = harness.OtherNetwork.possible()


class Tunnelled:
    def host(self, name="far", more=""):
        """An sshd in another network, or, without the rights to make one, on our loopback."""
        network = None
        if CAN_ISOLATE:
            network = harness.OtherNetwork()
            self.addCleanup(network.stop)
        return self.ssh(name, network, more)


class Tunnel(Tunnelled, harness.E2eTest):
    def deploy(self, ssh, count=3, extra=""):
        d = self.deployment([ssh_host(ssh, "far", {"ocrd-ocrctl-dummy": count}, self.folder / "remote", reach="tunnel")], extra)
        d.deploy()
        return d

    @staticmethod
    def ports(d):
        return json.loads((d.state / "deployment.json").read_text())["hosts"]["far"]["tunnel"]

    @staticmethod
    def tunnel(d):
        return next((u for u in d.units("tunnel")), None)

    def assert_back(self, d, before, limit=10):
        eventually(lambda: (t := self.tunnel(d)) and t["state"] == "ready" and t["pid"] != before, limit, lambda: f"{d.units('tunnel')}\n{d.logs()}")

    def assert_all_ready(self, d, count=3, limit=20):
        eventually(lambda: len(d.ready_workers()) == count
                   and all(h["connected"] for h in (d.status() or {}).get("hosts", [])), limit, lambda: f"{d.status()}\n{d.logs()}")

    def run_pages(self, d, name, pages=9):
        mets = make_workspace(self.folder / name, pages)
        run = d.run_workflow(mets, "ocrctl-dummy -I OCR-D-IMG -O OUT -P delay_ms 700")
        return mets, run["job_id"]

    def assert_done(self, d, mets, job, pages=9):
        self.assertEqual(d.wait_workflow(job), "SUCCESS", d.logs())
        self.assertEqual(harness.groups_of(mets)["OUT"], pages)

    @unittest.skipUnless(CAN_ISOLATE, "no right to make a network namespace")
    def test_hosts_that_reach_nothing_work_through_the_tunnel_and_nothing_is_left(self):
        ssh = self.host()
        before = set(ssh.listening())
        d = self.deploy(ssh)
        # It is true that they reach nothing.
        for address in ("127.0.0.1", ssh.network.here):
            for port in (d.port, d.queue_port()):
                tried = subprocess.run(ssh.network.inside([sys.executable, "-c", f"import socket; socket.create_connection(('{address}', {port}), 3)"]),
                                       capture_output=True)
                self.assertNotEqual(tried.returncode, 0, f"{address}:{port} is open to the other network")
        self.assertEqual(len(d.ready_workers()), 3, d.status())
        ports = self.ports(d)
        self.assertEqual(set(ports), {"queue", "server"})
        self.assertEqual({p: a for p, a in ssh.listening().items() if p not in before}, {p: "127.0.0.1" for p in ports.values()})
        ledger = (d.state / "ledger.jsonl").read_text()
        for port in ports.values():
            self.assertIn(str(port), ledger)
        mets, job = self.run_pages(d, "w")
        self.assert_done(d, mets, job)
        # Once more changes nothing.
        pid = self.tunnel(d)["pid"]
        d.deploy()
        self.assertEqual((self.tunnel(d)["pid"], self.ports(d)), (pid, ports))

        self.assertIn("0 left on 2 hosts", d.kill_all().stdout)
        self.assert_nothing_left(d)
        self.assertEqual(set(ssh.listening()), before)
        eventually(lambda: not ssh.sessions(), 5, lambda: f"sessions left: {ssh.sessions()}")
        self.assertEqual([str(p) for p in self.folder.rglob("tunnels/*")], [])

    def test_a_killed_tunnel_is_back_and_no_job_is_lost(self):
        ssh = self.host()
        d = self.deploy(ssh)
        mets, job = self.run_pages(d, "w")
        eventually(lambda: any(u.get("job") for u in d.units()), 20, "a busy Worker")
        pid = self.tunnel(d)["pid"]
        os.kill(pid, signal.SIGKILL)
        self.assert_back(d, pid)
        self.assert_done(d, mets, job)
        self.assert_all_ready(d)
        self.assertIn("0 left", d.kill_all().stdout)
        self.assert_nothing_left(d)

    def test_a_connection_that_is_cut_is_made_again_and_no_job_is_lost(self):
        ssh = self.host()
        d = self.deploy(ssh)
        mets, job = self.run_pages(d, "w")
        eventually(lambda: any(u.get("job") for u in d.units()), 20, "a busy Worker")
        memory = next(self.folder.rglob("tunnels/far.sshd"))
        serving = int(memory.read_text().split()[1])
        os.kill(serving, signal.SIGKILL)
        eventually(lambda: int(memory.read_text().split()[1]) != serving and set(self.ports(d).values()) <= set(ssh.listening()), 10, d.logs)
        self.assert_done(d, mets, job)
        self.assert_all_ready(d)

    @unittest.skipUnless(CAN_ISOLATE, "no right to make a network namespace")
    def test_an_unplugged_cable_is_noticed_and_all_goes_on_once_it_is_back(self):
        ssh = self.host()
        d = self.deploy(ssh)
        mets, job = self.run_pages(d, "w")
        eventually(lambda: any(u.get("job") for u in d.units()), 20, "a busy Worker")
        ssh.network.plug(False)
        eventually(lambda: (t := self.tunnel(d)) and t["state"] != "ready", 20, lambda: f"{d.units('tunnel')}\n{d.logs()}")
        ssh.network.plug(True)
        # The sshd there still holds the ports for the old connection: it is ended.
        eventually(lambda: (t := self.tunnel(d)) and t["state"] == "ready", 20, lambda: f"{d.units('tunnel')}\n{d.logs()}")
        self.assert_done(d, mets, job)
        self.assert_all_ready(d)
        self.assertIn("0 left on 2 hosts", d.kill_all().stdout)
        self.assert_nothing_left(d)
        eventually(lambda: not ssh.sessions(), 5, lambda: f"sessions left: {ssh.sessions()}")

    def test_an_sshd_that_forbids_it_is_named_before_anything_is_started_there(self):
        ssh = self.host(more="AllowTcpForwarding no\n")
        d = self.deployment([ssh_host(ssh, "far", {"ocrd-ocrctl-dummy": 1}, self.folder / "remote", reach="tunnel")])
        for command, code in (("plan", 1), ("deploy", 3)):  # 3: the others are deployed
            run = d.ocrctl(command, str(d.config), "--state", str(d.state), check=False)
            said = [line for line in (run.stdout + run.stderr).splitlines() if "AllowTcpForwarding" in line]
            self.assertEqual(run.returncode, code, run.stdout + run.stderr)
            self.assertTrue(said, run.stdout + run.stderr)
            self.assertIn("far", said[0])
            self.assertFalse((self.folder / "remote").exists())
        d.kill_all()
        self.assert_nothing_left(d)


class ForeignBehindATunnel(Tunnelled, test_foreign.Played):
    def test_foreign_workers_reach_broker_database_and_mets_server_with_an_agent_and_without(self):
        hosts = []
        for name, agent in (("far", "true"), ("alone", "false")):
            text = ssh_host(self.host(name), name, {"ocrd-dummy": 1}, self.folder / f"remote-{name}", reach="tunnel")
            hosts.append(text.replace("    workers:\n", f"    agent: {agent}\n    env: {{PATH: '{self.path['PATH']}'}}\n    workers:\n"))
        d = self.deployment(hosts, self.mongo())
        d.deploy(env=self.path)
        facts = json.loads((d.state / "deployment.json").read_text())["hosts"]
        for name in ("far", "alone"):
            self.assertEqual(set(facts[name]["tunnel"]), {"queue", "server", "database"})
        workers = self.started(d)
        self.assertEqual({w["database"].rsplit(":", 1)[1] for w in workers.values()}, {str(facts[n]["tunnel"]["database"]) for n in ("far", "alone")})
        held = [pathlib.Path(w["environ"]["OCRD_NETWORK_LOGS_ROOT_DIR"]) / "hold" for w in workers.values()]
        for file in held:
            file.touch()
        jobs = []
        for n in range(2):
            mets = make_workspace(self.folder / f"w{n}", 2)
            status, job = d.request("POST", "/processor/run/ocrd-dummy", {"path_to_mets": str(mets), "input_file_grps": ["OCR-D-IMG"],
                                                                         "output_file_grps": ["OUT"], "parameters": {}})
            self.assertEqual(status, 200, job)
            jobs.append(job["job_id"])
        eventually(lambda: len(list(self.folder.rglob("*.by"))) == 2, 20, lambda: f"both have a Job\n{d.logs()}")
        for file in held:
            file.unlink()
        for job in jobs:
            self.assertEqual(d.wait_job(job)["state"], "SUCCESS", d.logs())
        by = {file.read_text() for file in self.folder.rglob("*.by")}
        self.assertEqual(by, {str(pid) for pid in workers}, "one Job each")
        for pid in workers:
            os.kill(pid, 0)  # one that cannot tell the server ends
        self.assertIn("0 left on 3 hosts", d.kill_all().stdout)
        self.assert_nothing_left(d)


if __name__ == "__main__":
    harness.main()
