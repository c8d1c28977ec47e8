"""Pages per second of the full chain (binarize, deskew, segment, recognize, export) in a deployment, page-wise, beside the
same built-in Processors run one after another by their command lines. usage: chain.py MODEL PAGES ROUNDS IMAGE"""

import pathlib
import subprocess
import sys
import tempfile

from common import harness, spread, timed

STEPS = [("binarize", "OCR-D-IMG", "BIN", {}), ("deskew", "BIN", "DESK", {}), ("segment", "DESK", "SEG", {}),
         ("recognize", "SEG", "OCR", {"model": None}), ("export", "OCR", "TXT", {"format": "text"})]

MIME = {".tif": "image/tiff", ".png": "image/png", ".jpg": "image/jpeg"}


def main():
    model, pages, rounds, image = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
    steps = [(p, i, o, {k: v or model for k, v in params.items()}) for p, i, o, params in STEPS]
    script = "\n".join(f"ocrctl-{p} -I {i} -O {o} " + " ".join(f"-P {k} {v}" for k, v in params.items()) for p, i, o, params in steps)
    with tempfile.TemporaryDirectory(prefix="ocrctl-bench-") as folder:
        folder = pathlib.Path(folder)
        d = harness.Deployment(folder, [harness.local_host({f"ocrd-ocrctl-{p}": 2 for p, *_ in steps})])
        try:
            d.deploy()
            ours, theirs = [], []
            for n in range(rounds):
                mets = harness.make_workspace(folder / f"a{n}", pages, image.read_bytes(), image.suffix, MIME[image.suffix])
                with timed() as t:
                    run = d.run_workflow(mets, script)
                    assert d.wait_workflow(run["job_id"], 600) == "SUCCESS"
                ours.append(pages / t.seconds)
                assert harness.groups_of(mets)["TXT"] == pages
                mets = harness.make_workspace(folder / f"b{n}", pages, image.read_bytes(), image.suffix, MIME[image.suffix])
                with timed() as t:
                    for p, i, o, params in steps:
                        more = [x for k, v in params.items() for x in ("-P", k, v)]
                        subprocess.run([harness.BINARY, "processor", f"ocrd-ocrctl-{p}", "-m", str(mets), "-w", str(mets.parent),
                                        "-I", i, "-O", o, *more], check=True, capture_output=True)
                theirs.append(pages / t.seconds)
                assert harness.groups_of(mets)["TXT"] == pages
            print(f"{pages} pages, model {model}, 2 Workers a step, alternating")
            print("deployment, page-wise      ", spread(ours, "pages/s"))
            print("command lines, one by one  ", spread(theirs, "pages/s"))
            print("ratio                      ", spread([a / b for a, b in zip(ours, theirs)], "x"))
        finally:
            d.destroy()


main()
