"""OCR-D's own METS client (ClientSideOcrdMets) on our METS API, over a Unix socket and over /tcp_mets: every method of it, and every search
finds what OCR-D's own class finds in the same file."""

import concurrent.futures
import pathlib

import pytest

import support

PAGE = "application/vnd.prima.page+xml"
PAGES = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12]  # with a gap
HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<mets:mets xmlns:mets="http://www.loc.gov/METS/" xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mods="http://www.loc.gov/mods/v3">
  <mets:metsHdr CREATEDATE="2026-01-01T00:00:00">
    <mets:agent TYPE="OTHER" OTHERTYPE="SOFTWARE" ROLE="CREATOR">
      <mets:name>first</mets:name>
      <mets:note xmlns:ocrd="https://ocr-d.de" ocrd:option="parameter">{"a": 1}</mets:note>
    </mets:agent>
  </mets:metsHdr>
  <mets:dmdSec ID="DMD1"><mets:mdWrap MDTYPE="MODS"><mets:xmlData><mods:mods>
    <mods:identifier type="url">https://example.org/url</mods:identifier><mods:identifier type="urn">urn:nbn:de:x</mods:identifier>
  </mods:mods></mets:xmlData></mets:mdWrap></mets:dmdSec>
"""


def write_mets(folder):
    """Ten pages with ORDER, labels and chapters; an image each with a URL beside it, PAGE-XML on every second one."""
    folder.mkdir()
    images, xml, divs, links = [], [], [], []
    for n, page in enumerate(PAGES, 1):
        images.append(f'<mets:file ID="IMG_{page:04}" MIMETYPE="image/{"tiff" if n % 2 else "png"}">'
                      f'<mets:FLocat LOCTYPE="URL" xlink:href="https://example.org/{page}.tif"/>'
                      f'<mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="IMG/IMG_{page:04}.tif"/></mets:file>')
        pointers = f'<mets:fptr FILEID="IMG_{page:04}"/>'
        if n % 2:
            xml.append(f'<mets:file ID="OCR_{page:04}" MIMETYPE="{PAGE}">'
                       f'<mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="OCR/OCR_{page:04}.xml"/></mets:file>')
            pointers += f'<mets:fptr FILEID="OCR_{page:04}"/>'
        divs.append(f'<mets:div TYPE="page" ID="PHYS_{page:04}" ORDER="{n}" ORDERLABEL="[{page}]" LABEL="page {page}">{pointers}</mets:div>')
        links.append(f'<mets:smLink xlink:from="LOG_{1 if n <= 4 else 2:04}" xlink:to="PHYS_{page:04}"/>')
    line = "\n      "
    (folder / "mets.xml").write_text(
        f'{HEAD}  <mets:fileSec>\n    <mets:fileGrp USE="IMG">\n      {line.join(images)}\n    </mets:fileGrp>\n'
        f'    <mets:fileGrp USE="OCR">\n      {line.join(xml)}\n    </mets:fileGrp>\n'
        f'    <mets:fileGrp USE="DOC">\n      <mets:file ID="PDF" MIMETYPE="application/pdf"><mets:FLocat LOCTYPE="URL" '
        f'xlink:href="https://example.org/all.pdf"/></mets:file>\n    </mets:fileGrp>\n  </mets:fileSec>\n'
        f'  <mets:structMap TYPE="PHYSICAL">\n    <mets:div TYPE="physSequence">\n      {line.join(divs)}\n    </mets:div>\n  </mets:structMap>\n'
        '  <mets:structMap TYPE="LOGICAL"><mets:div ID="LOG_0000" TYPE="monograph"><mets:div ID="LOG_0001" TYPE="chapter" LABEL="First"/>'
        '<mets:div ID="LOG_0002" DMDID="DMD1" TYPE="index" LABEL="Last"/></mets:div></mets:structMap>\n'
        f'  <mets:structLink>{"".join(links)}</mets:structLink>\n</mets:mets>\n')
    return folder / "mets.xml"


@pytest.fixture(scope="module", params=[True, False], ids=["tcp", "uds"])
def deployment(request, deployments):
    return deployments(use_tcp_mets=request.param)


@pytest.fixture
def metsfile(tmp_path):
    return write_mets(tmp_path / "ws")


def address_of(deployment, mets):
    status, answer = deployment.request("POST", "/v1/mets", {"path_to_mets": str(mets)})
    assert status == 200, answer
    return answer["mets_server_url"]


@pytest.fixture
def client(deployment, metsfile):
    from ocrd.mets_server import ClientSideOcrdMets
    address = address_of(deployment, metsfile)
    assert address.startswith("http://") == ("/tcp_mets" in address)
    client = ClientSideOcrdMets(address, workspace_path=str(metsfile.parent))
    yield client
    client.stop()


def on_disk(mets):
    from ocrd_models import OcrdMets
    return OcrdMets(filename=str(mets))


def rows(files):
    """OCR-D's class has the path as the METS has it and None for no URL, its client "" for both."""
    return [(f.fileGrp, f.ID, f.mimetype, f.pageId or None, f.url or None, str(f.local_filename) if f.local_filename else None) for f in files]


SELECTORS = ["PHYS_0001", "PHYS_0001,PHYS_0003", "PHYS_0002..PHYS_0005", "PHYS_0007..PHYS_0012", "//PHYS_000[1-3]", "//PHYS_.*", "1..4", "3", "[8]",
             "page 1..page 3", "//page 1.*", "~PHYS_0001", "~PHYS_0001..PHYS_0008", "~//PHYS_000.*", "PHYS_0001..PHYS_0005,~PHYS_0003",
             "//PHYS_0001,//PHYS_0005", "PHYS_0012,PHYS_0001..PHYS_0002", "physical:order:2", "physical:label:page 4", "physical:orderlabel:~[2]",
             "LOG_0001", "First", "logical:type:index", "logical:label:First,PHYS_0011", "logical:dmdid:DMD1", "//LOG_000(1|2)", "index"]
SEARCHES = [{}, {"fileGrp": "IMG"}, {"fileGrp": "//I.*|OCR"}, {"fileGrp": "//I"}, {"fileGrp": "NONE"}, {"ID": "IMG_0003"}, {"ID": "//.*_000[12]"}, {"ID": "NONE"},
            {"mimetype": "image/png"}, {"mimetype": "//image/.*"}, {"mimetype": PAGE, "fileGrp": "OCR"}, {"url": "https://example.org/3.tif"},
            {"url": "//https://.*[.]pdf"}, {"local_filename": "OCR/OCR_0001.xml"}, {"local_filename": "OCR/NONE.xml"},
            {"pageId": "PHYS_0001", "fileGrp": "OCR"}, {"pageId": "1..5", "mimetype": "//image/.*", "fileGrp": "IMG"}, {"pageId": "PHYS_0002", "fileGrp": "OCR"},
            {"ID": "//.*", "pageId": "//PHYS_001.", "mimetype": "image/tiff"}, {"ID": "IMG_0001", "pageId": "PHYS_0002"},
            *({"pageId": selector} for selector in SELECTORS)]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_search_finds_what_ocrds_own_class_finds(client, metsfile, search):
    expected = rows(on_disk(metsfile).find_files(**search))
    assert rows(client.find_files(**search)) == expected
    assert rows(client.find_all_files(**search)) == expected


@pytest.mark.parametrize("selector", ["PHYS_0099", "//NONE.*", "PHYS_0009..PHYS_0012", "1..PHYS_0002", "12..1,2", "PHYS_0001,,PHYS_0002", "//("])
def test_a_selector_that_means_nothing_is_no_empty_answer(client, metsfile, selector):
    with pytest.raises(Exception):
        on_disk(metsfile).find_all_files(pageId=selector)
    with pytest.raises(Exception):
        client.find_all_files(pageId=selector)


def test_the_lists_are_those_of_ocrds_own_class(client, metsfile):
    mets = on_disk(metsfile)
    assert client.physical_pages == mets.physical_pages == [f"PHYS_{n:04}" for n in PAGES]
    assert client.file_groups == mets.file_groups == ["IMG", "OCR", "DOC"]
    assert client.unique_identifier == mets.unique_identifier == "urn:nbn:de:x"
    assert client.workspace_path == str(metsfile.parent.resolve())
    ours, theirs = client.agents[0], mets.agents[0]
    assert [(a.name, a.type, a.othertype, a.role, a.otherrole) for a in (ours,)] == [(theirs.name, theirs.type, theirs.othertype, theirs.role, theirs.otherrole)]
    assert [(dict(k), v) for k, v in ours.notes] == [(dict(k), v) for k, v in theirs.notes]


def test_what_is_added_is_found_at_once_and_on_disk_after_a_save(client, metsfile):
    added = client.add_file("OUT", ID="OUT_0001", mimetype=PAGE, pageId="PHYS_0001", local_filename="OUT/OUT_0001.xml")
    assert (added.fileGrp, added.ID, added.pageId, added.local_filename) == ("OUT", "OUT_0001", "PHYS_0001", "OUT/OUT_0001.xml")
    client.add_file("OUT", ID="OUT_0002", mimetype="image/png", pageId="PHYS_0002", local_filename=pathlib.Path("OUT/OUT_0002.png"),
                    url="https://example.org/2.png")
    client.add_file("OUT", ID="OUT_0013", mimetype="image/png", pageId="PHYS_0013", local_filename="OUT/OUT_0013.png")  # a new page
    client.add_file("OUT", ID="OUT_ALL", mimetype="text/plain", local_filename="OUT/all.txt")
    assert (metsfile.parent / "OUT").is_dir()
    found = rows(client.find_files(fileGrp="OUT"))
    assert [f[1] for f in found] == ["OUT_0001", "OUT_0002", "OUT_0013", "OUT_ALL"]
    assert [f[3] for f in found] == ["PHYS_0001", "PHYS_0002", "PHYS_0013", None]
    assert [f.ID for f in client.find_files(pageId="PHYS_0001..PHYS_0003", fileGrp="OUT")] == ["OUT_0001", "OUT_0002"]
    assert [f.ID for f in client.find_files(pageId="//PHYS_001.", fileGrp="OUT")] == ["OUT_0013"]
    assert "OUT" not in on_disk(metsfile).file_groups, "nothing is written before it is asked for"
    assert client.save() == "The Mets Server is writing changes to disk."
    mets = on_disk(metsfile)
    assert rows(mets.find_files(fileGrp="OUT")) == found
    assert mets.physical_pages[-1] == "PHYS_0013"


def test_a_file_that_exists_is_refused_unless_forced(client, metsfile):
    file = {"ID": "OUT_0001", "mimetype": PAGE, "pageId": "PHYS_0001"}
    client.add_file("OUT", local_filename="OUT/first.xml", **file)
    # Over TCP OCR-D's own server answers 200, and its client, which looks at nothing else, takes it for done (reference 5.4).
    with pytest.raises(RuntimeError, match="already exists"):
        client.add_file("OUT", local_filename="OUT/second.xml", **file)
    with pytest.raises(RuntimeError, match="not an xs:ID"):
        client.add_file("OUT", ID="1 bad", mimetype=PAGE, pageId="PHYS_0001", local_filename="OUT/bad.xml")
    assert [f.local_filename for f in client.find_files(ID="OUT_0001")] == ["OUT/first.xml"]
    client.add_file("OUT", local_filename="OUT/second.xml", force=True, **file)
    assert [f.local_filename for f in client.find_files(ID="OUT_0001")] == ["OUT/second.xml"]
    client.save()
    assert [f.local_filename for f in on_disk(metsfile).find_files(ID="OUT_0001")] == ["OUT/second.xml"]
    assert on_disk(metsfile).physical_pages == [f"PHYS_{n:04}" for n in PAGES]


def test_agents_are_added_after_the_others(client, metsfile):
    agent = {"name": "ocrd-dummy v1", "_type": "OTHER", "othertype": "SOFTWARE", "role": "OTHER", "otherrole": "preprocessing",
             "notes": [({"option": "input-file-grp"}, "IMG"), ({"option": "page-id"}, "PHYS_0001"), ({}, None)]}
    client.add_agent(**agent)
    client.add_agent(**{**agent, "name": "second", "notes": []})
    assert [a.name for a in client.agents] == ["first", "ocrd-dummy v1", "second"]
    assert [dict(a) for a, _ in client.agents[1].notes] == [{"{https://ocr-d.de}option": "input-file-grp"}, {"{https://ocr-d.de}option": "page-id"}, {}]
    client.save()
    from ocrd_models import OcrdAgent
    mets = on_disk(metsfile)
    assert [a.name for a in mets.agents] == ["first", "ocrd-dummy v1", "second"]
    assert isinstance(mets.agents[1], OcrdAgent) and mets.agents[1].role == "OTHER" and mets.agents[1].otherrole == "preprocessing"
    assert [v for _, v in mets.agents[1].notes][:2] == ["IMG", "PHYS_0001"]


def test_reload_shows_what_another_program_wrote_and_keeps_what_is_not_saved(client, metsfile):
    client.add_file("OUT", ID="OUT_0001", mimetype=PAGE, pageId="PHYS_0001", local_filename="OUT/1.xml")
    other = on_disk(metsfile)
    other.add_file("FOO", ID="foo", mimetype="foo/bar", pageId="PHYS_0002", local_filename="FOO/foo")
    metsfile.write_bytes(other.to_xml(xmllint=True))
    assert client.reload() == f"Reloaded from {metsfile.parent.resolve()}"
    assert [f.ID for f in client.find_files(fileGrp="//FOO|OUT")] == ["foo", "OUT_0001"]
    client.save()
    assert {"FOO", "OUT"} <= set(on_disk(metsfile).file_groups)


def test_stop_saves_and_the_socket_goes(client, metsfile, deployment):
    client.add_file("OUT", ID="OUT_0001", mimetype=PAGE, pageId="PHYS_0001", local_filename="OUT/1.xml")
    assert client.stop() == "The Mets Server will shut down soon..."
    assert "OUT" in on_disk(metsfile).file_groups
    if client.protocol == "uds":
        from requests.exceptions import ConnectionError
        with pytest.raises(ConnectionError):
            client.file_groups
        address_of(deployment, metsfile)  # again, for the fixture
    assert client.file_groups[-1] == "OUT"


def test_many_clients_at_once_lose_nothing(client, metsfile, deployment):
    """After OCR-D's own test of its server."""
    from ocrd.mets_server import ClientSideOcrdMets
    address = address_of(deployment, metsfile)

    def add(n):
        own = ClientSideOcrdMets(address, workspace_path=str(metsfile.parent))
        own.add_file("FOO", ID=f"FOO_{n}", mimetype=PAGE, pageId=f"page{n}", local_filename=f"FOO/{n}.xml")
        own.add_agent(name=f"proc{n}", _type="OTHER", othertype="foo", role="OTHER", otherrole="bar", notes=[({"foo": "bar"}, f"note{n}")])
        if n % 20 == 0:
            own.save()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert len(client.find_all_files(fileGrp="FOO")) == 200
    client.save()
    mets = on_disk(metsfile)
    assert len(mets.find_all_files(fileGrp="FOO")) == 200
    assert len(mets.agents) == 201


def test_ocrds_workspace_class_works_on_it(client, deployment, metsfile):
    from ocrd import Resolver, Workspace
    workspace = Workspace(Resolver(), str(metsfile.parent), mets_server_url=address_of(deployment, metsfile))
    workspace.add_file("OUT", file_id="OUT_0001", mimetype=PAGE, page_id="PHYS_0001", local_filename="OUT/1.xml", content="<x/>")
    assert (metsfile.parent / "OUT" / "1.xml").read_text() == "<x/>"
    workspace.save_mets()
    workspace.reload_mets()
    assert [f.ID for f in workspace.find_files(file_grp="OUT")] == ["OUT_0001"]
    assert "OUT" in on_disk(metsfile).file_groups
    with pytest.raises(NotImplementedError):
        workspace.mets.rename_file_group("IMG", "X")


def test_ocrds_programs_work_on_it_by_hand(deployment, env, mets):
    """`-U`: a Processor started by hand, and OCR-D's own command line, on an address of POST /v1/mets."""
    address = address_of(deployment, mets)
    place = ["-U", address, "-m", str(mets)]
    support.run([support.BIN / "ocrd-dummy", *place, "-w", str(mets.parent), "-I", "OCR-D-IMG", "-O", "OCR-D-HAND"], env, cwd=mets.parent)
    pages = support.pages_of(mets)
    assert support.groups_of(mets)["OCR-D-HAND"] in (len(pages), 2 * len(pages))
    workspace = [support.BIN / "ocrd", "workspace", "-d", mets.parent, "-U", address]
    (mets.parent / "NOTES").mkdir()
    (mets.parent / "NOTES" / "note.txt").write_text("x")
    support.run([*workspace, "add", "-G", "NOTES", "-i", "NOTE_1", "-m", "text/plain", "-g", pages[0], "NOTES/note.txt"], env, cwd=mets.parent)
    support.run([*workspace, "server", "reload"], env)
    support.run([*workspace, "server", "save"], env)
    assert support.groups_of(mets)["NOTES"] == 1
    support.run([*workspace, "server", "stop"], env)
    if not address.startswith("http"):
        assert not pathlib.Path(address).exists()
