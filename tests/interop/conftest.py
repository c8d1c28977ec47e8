"""One RabbitMQ, one FerretDB and one pair of Workers for the whole run; one deployment at a time."""

import itertools
import os
import pathlib
import shutil
import tempfile

import pytest

import support


@pytest.fixture(scope="session")
def folder():
    made = pathlib.Path(tempfile.mkdtemp(prefix="ocrctl-interop-"))
    yield made
    if os.environ.get("OCRCTL_KEEP"):
        print(f"kept: {made}")
    else:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def rabbit(folder):
    node = support.RabbitMq(folder / "rabbitmq")
    yield node
    node.stop()


@pytest.fixture(scope="session")
def ferret(folder):
    server = support.FerretDb(folder / "ferretdb")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def env(folder):
    return support.ocrd_environment(folder / "ocrd")


@pytest.fixture(scope="session")
def workers(folder, rabbit, ferret, env):
    """ocrd-dummy twice and ocrd-skimage-binarize once, started by hand."""
    (folder / "workers").mkdir()
    all_ = support.Workers(folder / "workers", rabbit, ferret, env)
    try:
        all_.start("ocrd-dummy", 1)
        all_.start("ocrd-skimage-binarize", 1)
        yield all_
    finally:
        all_.stop()


@pytest.fixture(scope="session")
def deployments(folder, rabbit, ferret, env):
    """start(use_tcp_mets=..., hosts=..., more=...): the one deployment on the services of the run. The queues of OCR-D's Workers and
    the database are its alone, so the one before is ended, unless it is just the same."""
    made = []

    def end():
        if made:
            made[-1][1].destroy()
            assert made[-1][1].left() == {}, "processes of a deployment were left"

    def start(anew=False, **options):
        if made and made[-1][0] == options and not anew and made[-1][1].status():
            return made[-1][1]
        end()
        one = support.OcrdDeployment(folder / f"deployment-{len(made)}", rabbit, ferret, **options)
        made.append((options, one))
        one.deploy(env=env)
        return one

    yield start
    end()


@pytest.fixture
def deploy(deployments, workers):
    return deployments


@pytest.fixture
def server(deployments, workers):
    """The deployment that most tests share: METS over TCP, foreign Workers only."""
    return deployments(use_tcp_mets=True)


@pytest.fixture
def mets(folder):
    """A fresh workspace; OCR-D's own server cannot serve one whose path is long (its METS server's socket)."""
    for n in itertools.count(1):
        place = folder / f"w{n}"
        if not place.exists():
            return support.workspace(folder, place.name)
