"""What the interoperability tests stand on: a private RabbitMQ, FerretDB, real OCR-D programs out of a virtual environment, and a
deployment with a configuration as OCR-D has it. Everything started is ended by its pid; nothing is left outside the test's folder."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import harness  # noqa: E402
from harness import BINARY, SLOW, Deployment, eventually, free_port, groups_of  # noqa: E402, F401

BIN = pathlib.Path(sys.executable).parent  # of the virtual environment: ocrd, ocrd-dummy, ocrd-skimage-binarize
DATA = pathlib.Path(os.environ.get("OCRCTL_SHARED_DATA") or ROOT.parent / "shared" / "data")
KANT = DATA / "kant_aufklaerung_1784" / "data"
RABBITMQ = pathlib.Path("/usr/lib/rabbitmq/bin")
FERRETDB = os.environ.get("OCRCTL_FERRETDB", "")


def end(process, limit=20):
    """TERM to its group, KILL to what remains; the child is reaped."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            continue
    try:
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
    except ProcessLookupError:
        pass


class Program:
    """A child in a session of its own, its output in a file."""

    def __init__(self, argv, log, env=None, cwd=None):
        self.log = pathlib.Path(log)
        self.argv = [str(a) for a in argv]
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env=env, start_new_session=True)

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.poll() is None

    def text(self, lines=60):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self):
        end(self.process)


def answers(port, hello=b"", reply=b""):
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as s:
            s.settimeout(2)
            if hello:
                s.sendall(hello)
                return s.recv(len(reply)).startswith(reply)
            return True
    except OSError:
        return False


class RabbitMq:
    """A node of our own, as ocrctl's deployer runs one, with its own epmd."""

    def __init__(self, folder, user="network_test", password="network_test"):
        self.folder = pathlib.Path(folder)
        for name in ("data", "log", "home"):
            (self.folder / name).mkdir(parents=True)
        self.user, self.password = user, password
        self.port, distribution, epmd = free_port(), free_port(), free_port()
        cookie = self.folder / "home" / ".erlang.cookie"
        cookie.write_text(os.urandom(12).hex())
        cookie.chmod(0o400)
        (self.folder / "env.conf").write_text("")
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "definitions.json").write_text(json.dumps({
            "users": [{"name": user, "password": password, "tags": ["administrator"]}], "vhosts": [{"name": "/"}],
            "permissions": [{"user": user, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}]}))
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nload_definitions = {self.folder}/definitions.json\n"
            "raft.wal_max_size_bytes = 16777216\n")
        self.env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self.folder / "home"),
                    "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"), "RABBITMQ_NODENAME": f"interop-{self.port}@localhost",
                    "RABBITMQ_MNESIA_BASE": str(self.folder / "data"), "RABBITMQ_LOG_BASE": str(self.folder / "log"),
                    "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
                    "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
                    "RABBITMQ_DIST_PORT": str(distribution), "ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
                    "RUNNING_UNDER_SYSTEMD": "true",
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false"}
        self.epmd = Program(["/usr/bin/epmd", "-port", str(epmd), "-address", "127.0.0.1"], self.folder / "epmd.log", self.env)
        self.node = Program([RABBITMQ / "rabbitmq-server"], self.folder / "node.log", self.env, cwd=self.folder)
        eventually(lambda: answers(self.port, b"AMQP\0\0\0\0", b"AMQP"), 90, lambda: self.node.text())

    @property
    def url(self):
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/"

    def channel(self):
        """(connection, channel) of pika, which OCR-D brings along."""
        import pika
        connection = pika.BlockingConnection(pika.URLParameters(self.url + "%2F"))
        return connection, connection.channel()

    def consumers(self, queue):
        """How many consume it; None if there is no such queue."""
        import pika.exceptions
        connection, channel = self.channel()
        try:
            return channel.queue_declare(queue, passive=True).method.consumer_count
        except pika.exceptions.ChannelClosedByBroker:
            return None
        finally:
            connection.close()

    def publish(self, queue, body):
        connection, channel = self.channel()
        try:
            channel.basic_publish("ocrd-network-default", queue, body)
        finally:
            connection.close()

    def stop(self):
        self.node.stop()
        self.epmd.stop()


class FerretDb:
    """A MongoDB-compatible server (FerretDB on SQLite), or what OCRCTL_MONGO_URL names."""

    @staticmethod
    def external():
        return bool(os.environ.get("OCRCTL_MONGO_URL"))

    def __init__(self, folder):
        self.program = None
        if self.external():
            self.url = os.environ["OCRCTL_MONGO_URL"]
            return
        folder = pathlib.Path(folder)
        (folder / "data").mkdir(parents=True)
        self.port = free_port()
        self.program = Program([FERRETDB, *self.arguments(folder / "data")], folder / "ferretdb.log")
        self.url = f"mongodb://127.0.0.1:{self.port}"
        eventually(lambda: answers(self.port), 60, lambda: self.program.text())

    def arguments(self, data):
        return ["--listen", f"127.0.0.1:{self.port}", "--sqlite", str(data)]

    def client(self):
        import pymongo
        return pymongo.MongoClient(self.url, serverSelectionTimeoutMS=20000)

    def stop(self):
        if self.program:
            self.program.stop()


def ocrd_environment(folder):
    """What every OCR-D program of a test gets: its own logs, sockets, home and temporary folder."""
    folder = pathlib.Path(folder)
    for name in ("logs", "sockets", "home", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OCRD_", "OCRCTL_"))}
    env.update(PATH=f"{BIN}:{env.get('PATH', '/usr/bin:/bin')}", HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"),
               OCRD_NETWORK_LOGS_ROOT_DIR=str(folder / "logs"), OCRD_NETWORK_SOCKETS_ROOT_DIR=str(folder / "sockets"),
               OCRD_NETWORK_CLIENT_POLLING_SLEEP="1", OCRD_NETWORK_CLIENT_POLLING_TIMEOUT="60", PYTHONDONTWRITEBYTECODE="1")
    return env


class OcrdDeployment(Deployment):
    """Our server with a configuration as OCR-D's processing server has it: services that run already, Workers on the common vhost.
    Without `rabbit` the broker is the deployment's own."""

    def __init__(self, folder, rabbit, ferret, use_tcp_mets=True, hosts="[]", more="", name="interop"):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, [], name=name)
        database = ferret.url.split("://", 1)[1].split("/")[0]
        login, _, place = database.rpartition("@")
        address, port = place.split(":")
        credentials = ""
        if login:
            user, password = login.split(":")
            credentials = f"\n  credentials: {{username: {user}, password: {password}}}"
        queue = ""
        if rabbit:
            queue = (f"process_queue:\n  address: 127.0.0.1\n  port: {rabbit.port}\n"
                     f"  credentials: {{username: {rabbit.user}, password: {rabbit.password}}}\n  skip_deployment: true\n")
        self.config.write_text(f"""name: {self.name}
listen: {{address: 127.0.0.1, port: {self.port}}}
internal_callback_url: {self.url}
use_tcp_mets: {str(use_tcp_mets).lower()}
{queue}database:
  address: {address}
  port: {port}{credentials}
  skip_deployment: true
{more}hosts: {hosts}
""")


def workspace(folder, name="kant"):
    """A fresh copy of the Kant workspace, or of the sample one where the data set is not there."""
    source = KANT if (KANT / "mets.xml").exists() else ROOT / "samples" / "workspace"
    target = pathlib.Path(folder) / name
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    return target / "mets.xml"


def pages_of(mets):
    import mets_compare
    return [attributes["ID"] for attributes, _ in mets_compare.contents(mets)[1]]


def run(argv, env, limit=120, check=True, cwd=None):
    done = subprocess.run([str(a) for a in argv], env=env, cwd=cwd, capture_output=True, text=True, timeout=limit * SLOW, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, argv))} exited {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Workers:
    """OCR-D Workers that somebody starts by hand on the common vhost."""

    def __init__(self, folder, rabbit, ferret, env):
        self.folder, self.rabbit, self.ferret, self.env, self.all = pathlib.Path(folder), rabbit, ferret, env, []

    def start(self, processor, count=1):
        started = [Program([BIN / processor, "worker", "--database", self.ferret.url, "--queue", self.rabbit.url],
                           self.folder / f"{processor}-{len(self.all) + n}.log", self.env, cwd=self.folder) for n in range(count)]
        self.all += started
        wanted = sum(w.alive() and w.argv[0].endswith(processor) for w in self.all)
        eventually(lambda: (self.rabbit.consumers(processor) or 0) >= wanted, 60, lambda: started[0].text())
        return started

    def logs(self):
        return "\n".join(f"--- {w.log.name}\n{w.text()}" for w in self.all)

    def stop(self):
        for worker in self.all:
            worker.stop()
