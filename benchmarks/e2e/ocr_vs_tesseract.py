"""Pages per second: `ocrctl ocr --format text,alto` beside the tesseract program under GNU parallel, same pages, same
model, alternating. usage: ocr_vs_tesseract.py MODEL ROUNDS COPIES IMAGE..."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from common import harness, spread, timed


def main():
    model, rounds, copies, images = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory(prefix="ocrctl-bench-") as folder:
        folder = pathlib.Path(folder)
        pages = []
        for n in range(copies):
            for image in images:
                page = folder / f"{pathlib.Path(image).stem}-{n:02}{pathlib.Path(image).suffix}"
                shutil.copy(image, page)
                pages.append(str(page))
        ours, theirs = [], []
        for _ in range(rounds):
            out = folder / "ours"
            with timed() as t:
                subprocess.run([harness.BINARY, "ocr", *pages, "-o", str(out), "--lang", model, "--format", "text,alto"],
                               check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ours.append(len(pages) / t.seconds)
            assert len(list(out.glob("*.txt"))) == len(pages) and len(list(out.glob("*.xml"))) == len(pages), list(out.iterdir())
            assert all(p.stat().st_size > 100 for p in out.glob("*.txt"))
            shutil.rmtree(out)
            other = folder / "theirs"
            other.mkdir()
            with timed() as t:
                subprocess.run(["parallel", f"-j{cores}", "tesseract", "{}", f"{other}/{{/.}}", "-l", model, "txt", "alto", ":::", *pages],
                               check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "OMP_THREAD_LIMIT": "1"})
            theirs.append(len(pages) / t.seconds)
            assert len(list(other.glob("*.txt"))) == len(pages)
            shutil.rmtree(other)
        print(f"{len(pages)} pages, model {model}, {cores} cores, alternating")
        print("ocrctl ocr         ", spread(ours, "pages/s"))
        print("tesseract, parallel", spread(theirs, "pages/s"))
        print("ratio              ", spread([a / b for a, b in zip(ours, theirs)], "x"))


main()
