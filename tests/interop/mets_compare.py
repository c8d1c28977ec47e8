"""Compares two METS workspaces in what an OCR-D user works with: file groups, files, ids, MIME types, locations, pages, the order of
all of them, and the files themselves. Times and agents differ between any two runs and are left out.

  python3 tests/interop/mets_compare.py A/mets.xml B/mets.xml [--any-file-order]

Prints each difference on a line; exit code 1 if there is one. Python's standard library only."""

import hashlib
import pathlib
import re
import sys
import xml.etree.ElementTree as tree

METS = "{http://www.loc.gov/METS/}"
XLINK = "{http://www.w3.org/1999/xlink}"


def contents(mets):
    """What a METS says, as plain lists in document order."""
    root = tree.parse(mets).getroot()
    groups = []
    for group in root.iter(f"{METS}fileGrp"):
        files = []
        for file in group.findall(f"{METS}file"):
            places = [(f.get("LOCTYPE"), f.get("OTHERLOCTYPE"), f.get(f"{XLINK}href")) for f in file.findall(f"{METS}FLocat")]
            files.append((file.get("ID"), file.get("MIMETYPE"), tuple(places)))
        groups.append((group.get("USE"), files))
    pages = []
    for struct in root.iter(f"{METS}structMap"):
        if struct.get("TYPE") != "PHYSICAL":
            continue
        for page in struct.iter(f"{METS}div"):
            if page.get("TYPE") == "page":
                attributes = {k: v for k, v in sorted(page.attrib.items())}
                pages.append((attributes, [f.get("FILEID") for f in page.findall(f"{METS}fptr")]))
    return groups, pages


def digest(path):
    """Of a file's content; of PAGE-XML without what says when and by what it was made."""
    data = path.read_bytes()
    if path.suffix == ".xml":
        root = tree.fromstring(data)
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag.endswith("}Metadata"):
                    parent.remove(child)
        # A counter of the program that made it is part of some ids.
        data = re.sub(rb"ns\d+:", b"", tree.tostring(root))
    return hashlib.sha256(data).hexdigest()


def differences(left, right, any_file_order=False, content=True):
    """Each difference as a line."""
    left, right = pathlib.Path(left), pathlib.Path(right)
    (groups, pages), (other_groups, other_pages) = contents(left), contents(right)
    found = []
    if [g for g, _ in groups] != [g for g, _ in other_groups]:
        found.append(f"groups: {[g for g, _ in groups]} != {[g for g, _ in other_groups]}")
    by_name = dict(other_groups)
    for name, files in groups:
        others = by_name.get(name)
        if others is None:
            continue
        if any_file_order:
            files, others = sorted(files), sorted(others)
        for n, (one, other) in enumerate(zip(files, others)):
            if one != other:
                found.append(f"{name}[{n}]: {one} != {other}")
        if len(files) != len(others):
            found.append(f"{name}: {len(files)} files != {len(others)}: {[f[0] for f in files]} != {[f[0] for f in others]}")
        if not content:
            continue
        for _, _, places in files:
            for kind, other_kind, href in places:
                if kind != "OTHER" or other_kind != "FILE":
                    continue
                one, other = left.parent / href, right.parent / href
                if one.exists() != other.exists():
                    found.append(f"{href}: exists {one.exists()} != {other.exists()}")
                elif one.exists() and digest(one) != digest(other):
                    found.append(f"{href}: the content differs")
    if len(pages) != len(other_pages):
        found.append(f"pages: {len(pages)} != {len(other_pages)}")
    for (attributes, files), (other_attributes, other_files) in zip(pages, other_pages):
        if attributes != other_attributes:
            found.append(f"page: {attributes} != {other_attributes}")
        if any_file_order:
            files, other_files = sorted(files), sorted(other_files)
        if files != other_files:
            found.append(f"page {attributes.get('ID')}: files {files} != {other_files}")
    return found


def main():
    names = [a for a in sys.argv[1:] if not a.startswith("--")]
    if len(names) != 2:
        sys.exit(__doc__)
    found = differences(*names, any_file_order="--any-file-order" in sys.argv)
    print("\n".join(found) or "no difference")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
