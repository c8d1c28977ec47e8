"""As much AMQP 0-9-1 as an OCR-D worker needs to sit on its queue: logs in, declares exchange and queue as OCR-D does, consumes,
acknowledges. Python's standard library only."""

import socket
import struct
import urllib.parse


class AmqpConsumer:
    def __init__(self, url, queue, exchange="ocrd-network-default"):
        parts = urllib.parse.urlsplit(url)
        user, password = (urllib.parse.unquote(p or "guest") for p in (parts.username, parts.password))
        vhost = urllib.parse.unquote(parts.path[1:]) or "/"
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672), 10)
        self.socket.sendall(b"AMQP\0\0\x09\x01")
        self.method(0, 10, 10)
        response = b"\0" + user.encode() + b"\0" + password.encode()
        self.send(0, 10, 11, struct.pack(">I", 0) + self.short("PLAIN") + struct.pack(">I", len(response)) + response + self.short("en_US"))
        tune = self.method(0, 10, 30)
        self.send(0, 10, 31, tune[:6] + struct.pack(">H", 0))  # no heartbeats, as OCR-D
        self.send(0, 10, 40, self.short(vhost) + self.short("") + b"\0")
        self.method(0, 10, 41)
        self.call(20, 10, 11, self.short(""))
        self.call(60, 10, 11, struct.pack(">IHB", 0, 1, 0))
        self.call(40, 10, 11, b"\0\0" + self.short(exchange) + self.short("direct") + b"\0" + struct.pack(">I", 0))
        self.call(50, 10, 11, b"\0\0" + self.short(queue) + b"\0" + struct.pack(">I", 0))
        self.call(50, 20, 21, b"\0\0" + self.short(queue) + self.short(exchange) + self.short(queue) + b"\0" + struct.pack(">I", 0))
        self.call(60, 20, 21, b"\0\0" + self.short(queue) + self.short("") + b"\0" + struct.pack(">I", 0))
        self.socket.settimeout(None)

    @staticmethod
    def short(text):
        data = text.encode()
        return bytes([len(data)]) + data

    def send(self, channel, class_id, method_id, arguments):
        body = struct.pack(">HH", class_id, method_id) + arguments
        self.socket.sendall(struct.pack(">BHI", 1, channel, len(body)) + body + b"\xce")

    def exactly(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the broker closed the connection")
            data += more
        return data

    def frame(self):
        kind, channel, size = struct.unpack(">BHI", self.exactly(7))
        body = self.exactly(size + 1)[:-1]
        return kind, channel, body

    def method(self, channel, class_id, method_id):
        while True:
            kind, at, body = self.frame()
            if kind != 1 or at != channel:
                continue
            got = struct.unpack(">HH", body[:4])
            if got == (class_id, method_id):
                return body[4:]
            if got[1] in (40, 50) and got[0] in (10, 20):
                raise ConnectionError(f"refused: {body[7:7 + body[6]].decode(errors='replace')}")

    def call(self, class_id, method_id, answer, arguments):
        self.send(1, class_id, method_id, arguments)
        return self.method(1, class_id, answer)

    def deliveries(self):
        """(body, tag) of each message, for ever."""
        while True:
            arguments = self.method(1, 60, 60)
            tag, = struct.unpack(">Q", arguments[1 + arguments[0]:9 + arguments[0]])
            _, _, header = self.frame()
            left, = struct.unpack(">Q", header[4:12])
            body = b""
            while len(body) < left:
                body += self.frame()[2]
            yield body, tag

    def ack(self, tag):
        self.send(1, 60, 80, struct.pack(">QB", tag, 0))
