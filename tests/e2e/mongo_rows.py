"""As much of MongoDB's protocol as a played Worker needs: sets fields of one document. Python's standard library only, no logins."""

import socket
import struct
import urllib.parse


def document(fields):
    body = b""
    for key, value in fields.items():
        name = key.encode() + b"\0"
        if isinstance(value, str):
            data = value.encode() + b"\0"
            body += b"\x02" + name + struct.pack("<i", len(data)) + data
        elif isinstance(value, int):
            body += b"\x10" + name + struct.pack("<i", value)
        elif isinstance(value, list):
            body += b"\x04" + name + document({str(i): v for i, v in enumerate(value)})
        else:
            body += b"\x03" + name + document(value)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def set_fields(url, collection, match, fields, database="ocrd"):
    parts = urllib.parse.urlsplit(url)
    body = document({"update": collection, "updates": [{"q": match, "u": {"$set": fields}}], "$db": database})
    with socket.create_connection((parts.hostname, parts.port), 10) as connection:
        connection.sendall(struct.pack("<iiiiIB", 16 + 4 + 1 + len(body), 1, 0, 2013, 0, 0) + body)
        size, = struct.unpack("<i", connection.recv(4, socket.MSG_WAITALL))
        answer = connection.recv(size - 4, socket.MSG_WAITALL)
    if b"errmsg" in answer or b"writeErrors" in answer:
        raise RuntimeError(f"the database refuses: {answer!r}")
