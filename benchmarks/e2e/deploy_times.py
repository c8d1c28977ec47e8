"""Time from `deploy` to READY and of `kill-all` with 12 Workers on one host; start time of `ocrctl --version`."""

import pathlib
import subprocess
import tempfile

from common import harness, spread, timed


def main():
    up, down = [], []
    for _ in range(5):
        with tempfile.TemporaryDirectory(prefix="ocrctl-bench-") as folder:
            d = harness.Deployment(folder, [harness.local_host({"ocrd-ocrctl-dummy": 12})])
            try:
                with timed() as t:
                    d.deploy()
                up.append(t.seconds)
                assert len(d.ready_workers()) == 12
                with timed() as t:
                    out = d.kill_all().stdout
                down.append(t.seconds)
                assert "0 left on 1 host" in out and not d.left(), out
            finally:
                d.destroy()
    start = []
    for _ in range(20):
        with timed() as t:
            subprocess.run([harness.BINARY, "--version"], check=True, stdout=subprocess.DEVNULL)
        start.append(t.seconds * 1000)
    print("deploy, 12 Workers to READY", spread(up, "s", 2))
    print("kill-all, 12 Workers       ", spread(down, "s", 2))
    print("ocrctl --version           ", spread(start, "ms", 1), f"binary {pathlib.Path(harness.BINARY).stat().st_size / 1e6:.1f} MB")


main()
