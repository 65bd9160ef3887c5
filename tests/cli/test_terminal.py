"""Commands in a real terminal of 80 columns, and a chat through a pipe."""

import json
import os
import subprocess
import sys

import pexpect
import pytest
from helpers import ROOT

FEW = ("-n", "4", "-t", "0", "--no-cache")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
READ = r"read \d+ tokens, wrote \d+"

# pexpect forks, at which JAX warns of deadlocks; the child is another program at once.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


@pytest.mark.parametrize(
    "locale", [{}, ASCII, {"PYTHONIOENCODING": "latin-1"}], ids=["utf-8", "ASCII", "latin-1"]
)
def test_a_paste_is_one_message_and_history_lasts(talker, tmp_path, locale):
    history = tmp_path / "history.jsonl"
    env = {**os.environ, **locale, "LLAMA_JAX_HISTORY": str(history), "PYTHONPATH": str(ROOT)}

    def start():
        command = ["-m", "llama_jax", "chat", str(talker), *FEW]
        child = pexpect.spawn(
            sys.executable, command, env=env, cwd=tmp_path, timeout=120, dimensions=(40, 80)
        )
        child.expect("Type a message, or /help.")
        child.expect("> ")
        return child

    child = start()
    pasted = "one\ntwo é\n  three"
    child.send(b"\x1b[200~" + pasted.encode() + b"\x1b[201~\r")
    child.expect(READ)
    child.expect("> ")
    child.send("/save talk é.json\r".encode())
    child.expect("2 messages are in talk")
    child.expect("> ")
    child.sendintr()
    child.expect("Ctrl-D or /quit leaves")
    child.expect("> ")  # before it readline would not see the key
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    question, answer = json.loads((tmp_path / "talk é.json").read_text(encoding="utf-8"))
    assert question == {"role": "user", "content": pasted}
    assert answer["role"] == "assistant"

    child = start()
    child.send(b"\x1b[A\x1b[A\r")  # twice up: the message before /save
    child.expect(READ)
    child.expect("> ")
    child.send(b"/quit\r")
    child.expect(pexpect.EOF)
    child.close()
    kept = [json.loads(line) for line in history.read_text().splitlines()]
    assert kept == [pasted, "/save talk é.json", pasted, "/quit"]


def test_ctrl_c_while_the_loop_is_compiled_ends_in_130(talker, no_kept_programs):
    command = ["-m", "llama_jax", "generate", str(talker), "A prompt", "-n", "200", "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = pexpect.spawn(sys.executable, command, env=env, timeout=120, dimensions=(40, 80))
    child.expect("A prompt")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (130, None)
    assert b"Traceback" not in child.before


def test_through_a_pipe_stdout_is_the_answers_alone(talker):
    def piped(text):
        return subprocess.run(
            [sys.executable, "-m", "llama_jax", "chat", talker, *FEW],
            input=text,
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    whole = piped(b'Hi\n"""\na\nb\n"""\n')
    assert whole.returncode == 0, whole.stderr
    broken = piped(b'Hi\ncaf\xe9\n/nonsense\n"""\na\nb\n"""\n/quit\nnever read\n')
    assert broken.returncode == 1
    assert broken.stdout == whole.stdout
    assert whole.stdout.endswith(b"\n")
    assert b"Type a message" not in whole.stdout + whole.stderr
    assert b"stdin, line 2: byte 4 of the line, 0xE9, is not UTF-8" in broken.stderr
    assert b"/nonsense is no command" in broken.stderr
