# SPDX-License-Identifier: ISC
"""A connection that can be cut: between an agent and its PostgreSQL, message by message."""
import os
import socket
import struct
import threading


class Proxy:
    """
    Between agent and server: a Unix socket (or, without a directory, a TCP port) that passes bytes on, message by
    message from the server.
    `filter(type, body)` says what to do with a server's message: True = pass, False = drop,
    None = cut the connection, without passing it, bytes = pass that in its place. `client_filter(bytes)` likewise with what
    comes from the agent.
    """

    def __init__(self, postgres, directory=None):
        self.server = os.path.join(postgres.host, ".s.PGSQL.5432")
        self.directory = directory
        self.filter = lambda kind, body: True
        self.client_filter = lambda data: True
        if directory:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(os.path.join(directory, ".s.PGSQL.5432"))
            os.chmod(os.path.join(directory, ".s.PGSQL.5432"), 0o777)
        else:
            self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def conninfo(self):
        where = f"host={self.directory}" if self.directory else f"host=localhost port={self.listener.getsockname()[1]}"
        return f"{where} dbname=cbshm user=cbagent sslmode=disable"

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.connect(self.server)
            except OSError:
                client.close()
                continue
            self.sockets += [client, server]
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client, server):
        other = threading.Thread(target=self._from_client, args=(client, server), daemon=True)
        other.start()
        self._from_server(server, client)
        other.join()
        for each in (client, server):
            each.close()
            self.sockets.remove(each)

    @staticmethod
    def _cut(*sockets):
        for each in sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut_all(self):
        """Cuts every connection that there is."""
        self._cut(*list(self.sockets))

    def _from_client(self, client, server):
        try:
            while data := client.recv(65536):
                verdict = self.client_filter(data)
                if verdict is None:
                    break
                server.sendall(data if verdict is True else verdict)
        except OSError:
            pass
        self._cut(client, server)

    def _from_server(self, server, client):
        buffer = b""
        try:
            while data := server.recv(65536):
                buffer += data
                passed = b""
                while len(buffer) >= 5:
                    if buffer[:1] in b"NS" and len(passed) == 0 and len(buffer) == 1:
                        break
                    length = struct.unpack("!I", buffer[1:5])[0] + 1
                    if len(buffer) < length:
                        break
                    message, buffer = buffer[:length], buffer[length:]
                    verdict = self.filter(message[:1], message[5:])
                    if verdict is None:
                        client.sendall(passed)
                        return
                    if verdict:
                        passed += verdict if isinstance(verdict, bytes) else message
                client.sendall(passed)
        except OSError:
            pass
        finally:
            self._cut(client, server)

    def close(self):
        self.listener.close()
        self.cut_all()
