"""OCR-D's own tests/network integration files 5 and 6, unmodified, against our server with real ocrd-dummy Workers. They are not in
the package on PyPI: OCRCTL_OCRD_CORE names a checkout of OCR-D/core with tests/ and the assets in tests/assets or repo/assets/data."""

import os
import pathlib
import re
import shutil

import pytest

import support

CORE = os.environ.get("OCRCTL_OCRD_CORE", "")


def test_integration_files_5_and_6(server, workers, env, tmp_path):
    if not CORE:
        pytest.skip("OCRCTL_OCRD_CORE names no checkout of OCR-D/core: its own network tests were not run")
    core = pathlib.Path(CORE)
    data = next((d for d in (core / "tests" / "assets", core / "repo" / "assets" / "data") if (d / "kant_aufklaerung_1784").is_dir()), None)
    assert data is not None, f"{core} has no assets with kant_aufklaerung_1784"
    # A copy, as the Jobs write into the workspace and leftovers would hide failures. The tests themselves are read from a copy as well.
    copy = tmp_path / "core"
    shutil.copytree(core / "tests", copy / "tests", ignore=shutil.ignore_patterns("assets"))
    shutil.copytree(core / "src", copy / "src")
    (copy / "tests" / "assets").mkdir()
    for name in ("__init__.py", "kant_aufklaerung_1784"):
        source = data / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / "tests" / "assets" / name)
    script = pathlib.Path("/ocrd-data/assets/dummy-workflow.txt")  # the name is fixed in test 5
    made = []
    for folder in (script.parent.parent, script.parent):
        if not folder.exists():
            folder.mkdir()
            made.append(folder)
    if not script.exists():
        shutil.copy(core / "tests" / "network" / "dummy-workflow.txt", script)
        made.append(script)
    try:
        done = support.run([support.BIN / "python", "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "test_integration_",
                            "tests/network/test_integration_5_processing_server.py", "tests/network/test_integration_6_client.py"],
                           {**env, "PROCESSING_SERVER_URL": server.url, "OCRD_NETWORK_CLIENT_POLLING_SLEEP": "2",
                            "OCRD_NETWORK_SOCKETS_ROOT_DIR": str(tmp_path / "sockets")},
                           cwd=copy, limit=180, check=False)
    finally:
        for path in reversed(made):
            path.unlink() if path.is_file() else path.rmdir()
    print(done.stdout)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) == 6, done.stdout + done.stderr + server.logs() + workers.logs()
