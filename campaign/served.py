"""`lorica serve` under clients that come and go while adapters change beneath them: `python -m campaign.served`.

    python -m campaign.served                 ten minutes, 16 clients, 8 names; writes the result
    python -m campaign.served --seconds 20    shorter, as JSON on stdout

Every 200 ms an adapter is replaced, unloaded or loaded, as far as the machine keeps up: several at once, no name twice.
A fifth of the clients' requests are cut off in the middle.  Each whole answer must be, token for token, what
`lorica.generate` answers with an adapter that stood under that name at some time between question and answer; a name
that was gone meanwhile may be unknown.  No status is 500 or above but 503, and what the process holds stays flat.
"""

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.machine import machine
from campaign.ledger import ROOT, say

RESULT = ROOT / "benchmarks/results/served.json"
LOG = ROOT / "runs/served.log"
CLAIM = "every answer is that of exactly one adapter that stood under its name, whoever comes, goes and is replaced"
KEY, ADMIN = "campaign-key-0123456", "campaign-admin-0123456"
CLIENTS, NAMES, EVERY, CUT_OFF, LONGEST = 16, 8, 0.2, 0.2, 16
PROMPTS = ("import os\n", "def read(path):\n    ", "class Reader:\n", "for line in ", "SELECT name", "The quick", "# ")
MIB = 1 << 20
FLAT = 64 * MIB
"""What a process may hold more at the end than after the first fifth: glibc's heaps of 16 clients' threads settle."""


@dataclass
class Standing:
    """Which folders stood under a name, and from when to when as far as anybody could tell."""

    spans: list[tuple[float, float, str | None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def changed(self, since: float, folder: str | None) -> None:
        """Between `since` and now it may have been the old one or this; from now on this."""
        with self.lock:
            if self.spans:
                begin, _, before = self.spans[-1]
                self.spans[-1] = (begin, time.monotonic(), before)
            self.spans.append((since, float("inf"), folder))

    def during(self, begin: float, end: float) -> set[str | None]:
        with self.lock:
            return {folder for start, stop, folder in self.spans if start <= end and begin <= stop}


@dataclass(frozen=True)
class Answered:
    """What a client got: `text` None where it was cut off or refused."""

    name: str
    prompt: str
    begin: float
    end: float
    status: int
    text: str | None


def problem(answer: Answered, standing: Standing, references: Mapping[tuple[str, str], str]) -> str | None:
    """What is wrong with an answer, None where nothing is."""
    stood = standing.during(answer.begin, answer.end)
    if answer.status == 404:
        return None if None in stood else f"{answer.name}: unknown, though it stood all the time"
    if answer.status != 200:
        return None if answer.status in (429, 503) else f"{answer.name}: status {answer.status}"
    if answer.text is None:
        return None
    expected = {references[folder, answer.prompt] for folder in stood if folder is not None}
    if answer.text in expected:
        return None
    whose = sorted({folder for (folder, prompt), text in references.items() if text == answer.text})
    return f"{answer.name}: answered {answer.text!r} to {answer.prompt!r}, which is of {whose or 'nobody'}, not {stood}"


class Adapters:
    """Two folders for each name, and what each answers to every prompt, by itself and offline."""

    def __init__(self, root: Path) -> None:
        import lorica
        from lorica.models import generate

        self.root = root
        model = lorica.load_base("embedded", dtype="float32")
        self.references: dict[tuple[str, str], str] = {}
        for number in range(2 * NAMES):
            folder = f"n{number // 2}-{number % 2}"
            methods = (lorica.LoRA(r=2 + number, alpha=6), lorica.DoRA(r=3, alpha=5), lorica.LoRA(r=4, rslora=True))
            attached = lorica.attach(model, methods[number % 3], seed=number)
            _stirred(attached, number)
            attached.save(root / folder)
            attached.eval()
            prompts = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]  # type: ignore[operator]
            for prompt, written in zip(PROMPTS, generate(model, prompts, LONGEST), strict=True):
                self.references[folder, prompt] = _said(model, written)
            attached.detach()


def _stirred(attached: Any, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _said(model: Any, written: Sequence[int]) -> str:
    from lorica.models.generate import own_stop_ids

    ended = bool(written) and written[-1] in own_stop_ids(model)
    return model.tokenizer.decode(list(written[:-1] if ended else written))


@contextmanager
def server(root: Path, log: Path) -> Iterator[tuple[str, int, int]]:
    """Host, port and process of a server with every name standing on its first folder."""
    log.parent.mkdir(exist_ok=True)
    words = [word for name in range(NAMES) for word in ("--adapter", f"n{name}={root}/n{name}-0")]
    command = [sys.executable, "-W", "ignore", "-m", "lorica", "serve", "--model", "embedded", "--dtype", "float32"]
    command += ["--port", "0", "--json", "--adapters-root", str(root), *words]
    env = {**os.environ, "LORICA_API_KEY": KEY, "LORICA_ADMIN_KEY": ADMIN}
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as process,
    ):
        try:
            assert process.stdout
            told = ""
            while not told.rstrip().endswith("}"):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the server ended:\n{log.read_text()[-2000:]}")
                told += line
            at = urlsplit(json.loads(told)["url"])
            yield at.hostname or "", at.port or 0, process.pid
        finally:
            process.terminate()
            process.wait(60)


@dataclass
class Run:
    host: str
    port: int
    pid: int
    seconds: float
    standing: dict[str, Standing]
    answers: list[Answered] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    due: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    held: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def whole(self) -> None:
        work = [(self._ask, number) for number in range(CLIENTS)]
        work += [(self._change, number) for number in range(len(self.standing))]
        threads = [threading.Thread(target=self._guarded, args=each) for each in [*work, (self._tick, 0)]]
        for thread in threads:
            thread.start()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and not self.failed:
            self.held.append(resident(self.pid))
            time.sleep(min(1.0, self.seconds / 20))
        self.over.set()
        for thread in threads:
            thread.join(60)

    def _guarded(self, work: Any, number: int) -> None:
        try:
            work(number, random.Random(number))
        except Exception as error:
            self.failed.append(f"{type(error).__name__}: {error}")

    def _ask(self, number: int, draw: random.Random) -> None:
        while not self.over.is_set():
            name, prompt = f"n{draw.randrange(NAMES)}", draw.choice(PROMPTS)
            cut, streamed = draw.random() < CUT_OFF, draw.random() < 0.5
            begin = time.monotonic()
            status, text = self._answer(name, prompt, streamed or cut, cut)
            self.answers.append(Answered(name, prompt, begin, time.monotonic(), status, text))

    def _answer(self, name: str, prompt: str, streamed: bool, cut: bool) -> tuple[int, str | None]:
        asked = {"model": name, "prompt": prompt, "max_tokens": LONGEST, "temperature": 0, "stream": streamed}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", json.dumps(asked), _headers(KEY))
            response = connection.getresponse()
            if response.status != 200:
                return response.status, None
            if cut:
                response.read(40)
                return 200, None
            body = response.read().decode()
            return 200, _streamed(body) if streamed else json.loads(body)["choices"][0]["text"]
        finally:
            connection.close()

    def _tick(self, number: int, draw: random.Random) -> None:
        at = time.monotonic()
        while not self.over.wait(max(0.0, at - time.monotonic())):
            self.due.release()
            at += EVERY

    def _change(self, number: int, draw: random.Random) -> None:
        """Of one name, when a change is due: it stands on its other folder; or it goes, and comes back next time."""
        name, turn, gone = f"n{number}", 0, False
        while not self.over.is_set():
            if not self.due.acquire(timeout=EVERY):
                continue
            if not gone and draw.random() < 0.2:
                gone = True
                self._told("DELETE", f"/v1/adapters/{name}", name, None, None)
                continue
            turn = 1 - turn
            folder = f"{name}-{turn}"
            if gone:
                gone = False
                self._told("POST", "/v1/adapters", name, {"name": name, "folder": folder}, folder)
            else:
                self._told("PUT", f"/v1/adapters/{name}", name, {"folder": folder}, folder)

    def _told(self, method: str, path: str, name: str, body: Any, folder: str | None) -> None:
        """From the question on either may answer: what a change waits for is answered by the old one."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        since = time.monotonic()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), _headers(ADMIN))
            response = connection.getresponse()
            said = response.read()
            if response.status not in (200, 201):
                raise RuntimeError(f"{method} {path}: {response.status} {said[:300]!r}")
        finally:
            connection.close()
        self.standing[name].changed(since, folder)
        self.changes[method] += 1


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def _streamed(body: str) -> str:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        raise RuntimeError(f"a stream without its end: {body[-300:]!r}")
    chunks = [json.loads(line) for line in lines[:-1]]
    failed = [chunk["error"] for chunk in chunks if "error" in chunk]
    if failed:
        raise RuntimeError(f"a stream that failed: {failed[0]}")
    return "".join(choice.get("text") or "" for chunk in chunks for choice in chunk["choices"])


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def verdict(run: Run, references: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    problems = [found for a in run.answers if (found := problem(a, run.standing[a.name], references))]
    settled = run.held[len(run.held) // 5 :]
    grown = max(settled[-max(1, len(settled) // 5) :]) - max(settled[: max(1, len(settled) // 5)])
    statuses = Counter(answer.status for answer in run.answers)
    whole = sum(answer.text is not None for answer in run.answers)
    return {
        "claim": CLAIM,
        "seconds": run.seconds,
        "clients": CLIENTS,
        "requests": len(run.answers),
        "answers compared": whole,
        "cut off": statuses[200] - whole,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "changes": dict(run.changes),
        "seconds a change": round(run.seconds / max(1, run.changes.total()), 3),
        "resident_bytes": {"settled": settled[0], "most": max(run.held), "end": run.held[-1], "grown": grown},
        "flat": grown <= FLAT,
        "problems": [*run.failed, *problems][:20],
        "wrong": len(run.failed) + len(problems),
        "ok": not run.failed and not problems and grown <= FLAT and whole > 0,
    }


def held(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        adapters = Adapters(root)
        with server(root, LOG) as (host, port, pid):
            standing = {f"n{name}": Standing() for name in range(NAMES)}
            for name, each in standing.items():
                each.changed(0.0, f"{name}-0")
            run = Run(host, port, pid, seconds, standing)
            run.whole()
        return verdict(run, adapters.references)


def main() -> None:
    parser = ArgumentParser(prog="python -m campaign.served", description=sys.modules[__name__].__doc__)
    parser.add_argument("--seconds", type=float, help="shorter than ten minutes: nothing is written")
    options = parser.parse_args()
    found = held(options.seconds or 600.0)
    if options.seconds is None:
        RESULT.write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n")
    say(json.dumps(found, indent=1))
    sys.exit(not found["ok"])


if __name__ == "__main__":
    main()
