"""Real pages: kant_aufklaerung_1784 page-wise through REST; schemas; character error rates beside the tesseract program.
Needs OCR-D's test data (OCRCTL_DATA names the folder) and a Fraktur model; skipped, with the reason, where they are not."""

import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import harness
from harness import ROOT, groups_of, local_host

DATA = pathlib.Path(os.environ.get("OCRCTL_DATA") or ROOT.parent / "shared" / "data")
KANT = DATA / "kant_aufklaerung_1784" / "data"
TRUTH = DATA / "kant_aufklaerung_1784-page-region-line-word_glyph" / "data" / "OCR-D-GT-SEG-LINE"
CHAIN = """ocrctl-binarize -I OCR-D-IMG -O OCR-D-BIN
ocrctl-deskew -I OCR-D-BIN -O OCR-D-DESK
ocrctl-segment -I OCR-D-DESK -O OCR-D-SEG
ocrctl-recognize -I OCR-D-SEG -O OCR-D-OCR -P model frk
ocrctl-export -I OCR-D-OCR -O OCR-D-TXT -P format text
ocrctl-export -I OCR-D-OCR -O OCR-D-ALTO -P format alto
"""


def cer(truth, text):
    run = subprocess.run([sys.executable, str(ROOT / "scripts" / "cer"), str(truth), str(text)], capture_output=True, text=True)
    if run.returncode:
        raise AssertionError(run.stderr)
    return float(run.stdout.split()[0]) / 100  # the script prints percent


@unittest.skipUnless(KANT.is_dir(), f"SKIPPED: no OCR-D test data at {DATA}")
class Kant(harness.E2eTest):
    def test_two_fraktur_pages_through_the_whole_chain(self):
        d = self.deployment([local_host({f"ocrd-ocrctl-{p}": 1 for p in harness.BUILTIN if p != "dummy"})])
        d.deploy()
        workspace = self.folder / "kant"
        shutil.copytree(KANT, workspace)
        for path in [workspace, *workspace.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        mets = workspace / "mets.xml"
        before = groups_of(mets)
        run = d.run_workflow(mets, CHAIN)
        self.assertEqual(d.wait_workflow(run["job_id"], 300), "SUCCESS")
        groups = groups_of(mets)
        for name, count in before.items():
            self.assertEqual(groups[name], count)
        for name in ("OCR-D-BIN", "OCR-D-DESK", "OCR-D-SEG", "OCR-D-OCR", "OCR-D-TXT", "OCR-D-ALTO"):
            self.assertGreaterEqual(groups.get(name, 0), 2, groups)

        schemas = os.environ.get("OCRCTL_SCHEMAS")
        if schemas:
            for group in ("OCR-D-BIN", "OCR-D-DESK", "OCR-D-SEG", "OCR-D-OCR"):
                for page in (workspace / group).glob("*.xml"):
                    subprocess.run(["xmllint", "--nonet", "--noout", "--schema", f"{schemas}/page.xsd", str(page)], check=True,
                                   stderr=subprocess.PIPE)
            for page in (workspace / "OCR-D-ALTO").glob("*.xml"):
                subprocess.run(["xmllint", "--nonet", "--noout", "--schema", f"{schemas}/alto.xsd", str(page)], check=True,
                               stderr=subprocess.PIPE)
        else:
            print("SKIPPED: schema checks: OCRCTL_SCHEMAS is not set")

        for number, truth in (("0017", "OCR-D-GT-SEG-LINE_0001.xml"), ("0020", "OCR-D-GT-SEG-LINE_0002.xml")):
            ours = cer(TRUTH / truth, next((workspace / "OCR-D-TXT").glob(f"*{number}*.txt")))
            image = workspace / "OCR-D-IMG" / f"INPUT_{number}.tif"
            subprocess.run(["tesseract", str(image), str(self.folder / number), "-l", "frk"], check=True,
                           capture_output=True, env={**os.environ, "OMP_THREAD_LIMIT": "1"})
            theirs = cer(TRUTH / truth, self.folder / f"{number}.txt")
            print(f"page {number}: character error rate {ours:.4f}, the tesseract program {theirs:.4f}")
            self.assertLessEqual(ours, theirs)


if __name__ == "__main__":
    harness.main()
