"""Foreign Workers (unmodified OCR-D programs, played here by one of our own) in a deployment: started, READY, restarted, stopped."""

import json
import os
import pathlib
import signal
import socket
import stat
import sys
import threading

import harness
from amqp_consumer import AmqpConsumer
from harness import eventually, local_host, processes


class Played(harness.E2eTest):
    """A program ocrd-dummy in a PATH of its own, and a MongoDB."""

    def setUp(self):
        super().setUp()
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        self.program("ocrd-dummy")
        self.path = {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def program(self, file, name=None):
        name = name or file
        file = self.bin / file
        file.write_text(f"#!/bin/sh\nexec env PYTHONPATH={pathlib.Path(__file__).parent} PYTHONDONTWRITEBYTECODE=1 {sys.executable} -c "
                        f"'import sys, runpy; sys.argv[0] = \"{name}\"; runpy.run_module(\"played_worker\", run_name=\"__main__\", alter_sys=False)' \"$@\"\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def mongo(self):
        server = harness.MongoServer(self.folder / "mongo")
        self.addCleanup(server.stop)
        return f"database: {{skip_deployment: true, address: 127.0.0.1, port: {server.port}}}\n"

    def foreign_units(self, deployment):
        return deployment.units("foreign-worker")

    def started(self, deployment):
        """What the played Workers wrote about their start, by pid."""
        found = {}
        for file in deployment.folder.rglob("ocrd-*.*.json"):
            try:
                found[int(file.name.split(".")[-2])] = json.loads(file.read_text())
            except ValueError:
                pass
        return found


class Foreign(Played):
    def test_foreign_workers_are_started_restarted_and_stopped_with_secrets_in_files_alone(self):
        d = self.deployment([local_host([f"{{name: ocrd-dummy, number_of_instance: 2, env: {{COLOUR: blue}}}}", "{name: ocrd-ocrctl-dummy}"])],
                            self.mongo() + "process_queue: {credentials: {username: hand, password: 'by@hand'}}\n")
        planned = d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False, env=self.path)
        self.assertEqual(planned.returncode, 4, planned.stdout + planned.stderr)
        self.assertIn("worker here/ocrd-dummy-1/shard-0/rep-1 (ocrd-dummy, foreign)", planned.stdout)
        out = d.deploy(env=self.path).stdout
        self.assertIn("3 workers", out)
        units = self.foreign_units(d)
        self.assertEqual([u["state"] for u in units], ["ready", "ready"], d.status())
        self.assertEqual({u["processor"] for u in units}, {"ocrd-dummy"})

        # Each has a vhost and a login of its own, and is told what the config says.
        started = self.started(d)
        first, second = (started[u["pid"]] for u in units)
        self.assertNotEqual(first["queue"], second["queue"])
        self.assertEqual(first["environ"]["COLOUR"], "blue")
        self.assertTrue(first["environ"]["OCRD_NETWORK_LOGS_ROOT_DIR"].startswith(str(d.state)))
        self.assertTrue(first["database"].startswith("mongodb://127.0.0.1:"))
        with self.assertRaises(ConnectionError, msg="the login of one Worker does not open the vhost of another"):
            AmqpConsumer(first["queue"].rsplit("/", 1)[0] + "/" + second["queue"].rsplit("/", 1)[1], "ocrd-dummy")

        # A Worker that somebody starts by hand on the common vhost gets in with the credentials of the config.
        queue = d.queue_port()
        AmqpConsumer(f"amqp://hand:by%40hand@127.0.0.1:{queue}/", "ocrd-dummy").socket.close()

        # The secrets are in files of mode 0600 and nowhere else on disk.
        password = first["queue"].split("@")[0].rsplit(":", 1)[1]
        for file in d.state.rglob("*"):
            if file.is_file() and not file.name.endswith(".json.part") and password.encode() in file.read_bytes():
                if file.parent.name == "ocrd":
                    continue  # the played Worker's own note
                self.assertEqual((file.parent.name, stat.S_IMODE(file.stat().st_mode)), ("secrets", 0o600), file)
        settings = json.loads((d.state / "server.json").read_text())
        self.assertEqual([w["slot"] for w in settings["foreign_workers"]], sorted(u["entry"] for u in units))
        for worker in settings["foreign_workers"]:  # the server's own way in
            AmqpConsumer(pathlib.Path(worker["amqp_file"]).read_text().strip(), "ocrd-dummy").socket.close()

        # One dies: it comes back, the other never noticed.
        os.kill(units[0]["pid"], signal.SIGKILL)
        back = eventually(lambda: next((u for u in self.foreign_units(d) if u["entry"] == units[0]["entry"] and u["state"] == "ready"
                                        and u["pid"] != units[0]["pid"]), None), 10, lambda: d.logs())
        self.assertEqual(back["restarts"], 1)
        self.assertIn("consuming", d.ocrctl("logs", units[0]["entry"], "--state", str(d.state)).stdout)

        # One more: it alone is started, in a vhost that the running broker did not have.
        d.config.write_text(d.config.read_text().replace("number_of_instance: 2", "number_of_instance: 3"))
        before = {u["entry"]: u["pid"] for u in self.foreign_units(d)}
        broker = d.units("queue")[0]["pid"]
        d.deploy(env=self.path)
        after = {u["entry"]: u["pid"] for u in self.foreign_units(d)}
        self.assertEqual(len(after), 3)
        self.assertEqual({e: after[e] for e in before}, before)
        self.assertEqual(d.units("queue")[0]["pid"], broker)
        self.assertEqual(d.ocrctl("plan", str(d.config), "--state", str(d.state), check=False, env=self.path).returncode, 0)

        # Two less: their vhosts go with them.
        third = self.started(d)[after[max(after)]]["queue"]
        d.config.write_text(d.config.read_text().replace("number_of_instance: 3", "number_of_instance: 1"))
        d.deploy(env=self.path)
        self.assertEqual(len(self.foreign_units(d)), 1)
        with self.assertRaises(ConnectionError):
            AmqpConsumer(third, "ocrd-dummy")

        closed = d.kill_all().stdout
        self.assertIn("0 left on 1 host", closed)
        self.assert_nothing_left(d)

    def test_what_is_missing_is_named_before_anything_starts(self):
        dead = harness.free_port()
        d = self.deployment([local_host(["{name: ocrd-dummy}", "{name: ocrd-not-there, executable: /nowhere/ocrd-not-there}"])],
                            f"database: {{skip_deployment: true, address: 127.0.0.1, port: {dead}}}\n"
                            f"process_queue: {{skip_deployment: true, address: 127.0.0.1, port: {harness.free_port()}}}\n")
        for command in ("deploy", "plan"):
            refused = d.ocrctl(command, str(d.config), "--state", str(d.state), check=False)
            text = refused.stdout + refused.stderr
            self.assertEqual(refused.returncode, 1, text)
            self.assertIn("ocrd-dummy is not in PATH of here", text)
            self.assertIn("/nowhere/ocrd-not-there is no program on here", text)
            self.assertIn(f"the MongoDB at 127.0.0.1:{dead} (not started by ocrctl: skip_deployment) does not answer", text)
            self.assertIn("process_queue: the broker at 127.0.0.1:", text)
        self.assertFalse((d.state / "ledger.jsonl").exists())

    def test_what_listens_there_but_is_no_mongodb_is_told(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        d = self.deployment([local_host(["{name: ocrd-dummy}"])],
                            f"database: {{skip_deployment: true, address: 127.0.0.1, port: {listener.getsockname()[1]}}}\n")
        refused = d.deploy(check=False, env=self.path)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("what answers there is no MongoDB", refused.stderr)

    def test_a_program_that_dies_at_once_is_told_with_its_last_words(self):
        (self.bin / "ocrd-dummy").write_text("#!/bin/sh\necho it cannot import torch >&2\nexit 1\n")
        d = self.deployment([local_host(["{name: ocrd-dummy}"])], self.mongo())
        failed = d.deploy(check=False, env=self.path)
        self.assertEqual(failed.returncode, 3, failed.stdout + failed.stderr)
        self.assertIn("it cannot import torch", failed.stdout + failed.stderr)

    def test_an_ocrd_config_deploys_on_localhost_by_ssh_with_broker_and_database_of_others(self):
        """As OCR-D's own tests have it: skip_deployment: true for both, a host that is logged into."""
        other = self.deployment([local_host({"ocrd-ocrctl-dummy": 1})], "process_queue: {credentials: {username: test, password: test}}\n", name="other")
        other.deploy()
        sshd = self.ssh("a")
        folder = self.folder / "second"
        folder.mkdir()
        import getpass
        host = (f"  - address: localhost\n    port: {sshd.port}\n    username: {getpass.getuser()}\n    path_to_privkey: {sshd.key}\n    known_hosts: {folder}/known\n"
                f"    state: {folder}/remote\n    env: {{PATH: '{self.path['PATH']}'}}\n    workers:\n      - {{name: ocrd-dummy, number_of_instance: 2, deploy_type: native}}\n")
        d = harness.Deployment(folder, [host], self.mongo() + f"process_queue: {{address: 127.0.0.1, port: {other.queue_port()}, skip_deployment: true, "
                               "credentials: {username: test, password: test}}\n")
        self.addCleanup(d.destroy)
        refused = d.deploy(check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("ocrctl trust", refused.stdout + refused.stderr)
        d.ocrctl("trust", "localhost", "--config", str(d.config), "--yes")
        d.deploy()
        units = self.foreign_units(d)
        self.assertEqual([(u["host"], u["state"]) for u in units], [("localhost", "ready")] * 2)
        queues = {self.started(d)[u["pid"]]["queue"] for u in units}
        self.assertEqual(queues, {f"amqp://test:test@127.0.0.1:{other.queue_port()}/%2F"}, "they share the broker's common vhost")
        self.assertIn("0 left", d.kill_all().stdout)
        self.assertEqual(d.left(), {})


if __name__ == "__main__":
    harness.main()
