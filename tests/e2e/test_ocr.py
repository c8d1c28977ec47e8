"""`ocrctl ocr`: what a newcomer types first."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import harness
from harness import ROOT, eventually, processes


class Ocr(harness.E2eTest):
    def ocr(self, *arguments, code=0, timeout=300):
        run = subprocess.run([harness.BINARY, "ocr", *map(str, arguments)], capture_output=True, text=True,
                             timeout=timeout * harness.SLOW, stdin=subprocess.DEVNULL)
        self.assertEqual(run.returncode, code, run.stdout + run.stderr)
        return run

    def samples(self):
        return sorted(p for p in (ROOT / "samples").iterdir() if p.suffix in (".png", ".tif", ".jpg"))

    def test_the_samples_are_read_with_an_error_rate_below_one_percent(self):
        out = self.folder / "out"
        self.ocr(*self.samples(), "-o", out, "--lang", "eng+deu", "--format", "text,alto,page,hocr")
        for image in self.samples():
            cer = subprocess.run([sys.executable, str(ROOT / "scripts" / "cer"), str(image.with_suffix(".txt")),
                                  str(out / (image.stem + ".txt"))], capture_output=True, text=True, check=True)
            print(cer.stdout.splitlines()[0])
            self.assertLess(float(cer.stdout.split()[0]), 1.0, "character error rate in percent")

    def test_run_again_it_does_only_what_is_missing(self):
        out = self.folder / "out"
        image = self.samples()[0]
        self.ocr(image, "-o", out, "--format", "text")
        text = next(out.glob("*.txt"))
        stamp = text.stat().st_mtime_ns
        self.ocr(image, "-o", out, "--format", "text")
        self.assertEqual(text.stat().st_mtime_ns, stamp)
        self.ocr(image, "-o", out, "--format", "text,alto")
        self.assertEqual(text.stat().st_mtime_ns, stamp, "a newly asked format runs only the export")
        self.assertTrue(list(out.glob("*.xml")))
        changed = self.folder / image.name
        shutil.copy(self.samples()[1], changed)
        shutil.copy(changed, self.folder / "x")
        text.unlink()
        self.ocr(image, "-o", out, "--format", "text,alto")
        self.assertTrue(text.exists(), "a deleted result is made again")

    def test_a_failing_page_is_named_and_the_others_are_done(self):
        bad = self.folder / "bad.png"
        bad.write_bytes(b"")
        run = self.ocr(bad, self.samples()[0], "-o", self.folder / "out", "--format", "text", code=1)
        self.assertIn("bad.png", run.stderr + run.stdout)
        self.assertEqual(len(list((self.folder / "out").glob("*.txt"))), 1)

    def test_a_missing_model_is_said_once_before_anything_starts(self):
        run = self.ocr(self.samples()[0], "-o", self.folder / "out", "--lang", "xyz", code=1)
        self.assertIn("tesseract-ocr", run.stderr)

    def test_an_interrupt_leaves_neither_engines_nor_temporary_files(self):
        out = self.folder / "out"
        running = subprocess.Popen([harness.BINARY, "ocr", *map(str, self.samples()), "-o", str(out)],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        def children():
            listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True)
            return listed.stdout.split()
        engines = eventually(children, 30, "an engine")
        running.send_signal(signal.SIGINT)
        running.wait(30)
        self.assertNotEqual(running.returncode, 0)
        eventually(lambda: not any(pathlib.Path(f"/proc/{p}/exe").exists() for p in engines), 10, "engines gone")
        self.assertEqual([p for p in out.rglob("*") if ".tmp" in p.name or p.name.startswith(".tmp")], [])


if __name__ == "__main__":
    harness.main()
