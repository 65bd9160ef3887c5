"""The page of the server, in a real browser, against a server that says what a test wants."""

import json
import re
import time

import pytest
from chromium import ENTER, ESCAPE, GET_THEM, SHIFT, Browser, missing
from stand_in_server import POLICY, Answer, StandIn

pytestmark = pytest.mark.skipif(missing(), reason=GET_THEM)

HOSTILE = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'


@pytest.fixture(scope="module")
def server():
    server = StandIn()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chromium")
    prefs = {"download.default_directory": str(folder / "downloads")}
    browser = Browser(str(folder / "profile"), **prefs)
    browser.downloads = folder / "downloads"
    yield browser
    browser.close()


@pytest.fixture
def opened(server, chrome):
    """Opens the page of a server that was just started, in a browser that has kept nothing.

    No page may break the policy that it is served under, nor throw.
    """

    def opened(**kind):
        server.reset(**kind)
        chrome.go(server.url + "missing")
        chrome.run("localStorage.clear(); sessionStorage.clear()")
        chrome.log()
        chrome.go(server.url)
        chrome.until(lambda: chrome.text("#model") != "llama-jax")
        return chrome

    yield opened
    wrong = [line for line in chrome.log() if "Failed to load resource" not in line]
    assert wrong == []


def send(browser, text):
    browser.type("#message", text + ENTER)


def ended(browser, turns):
    """Waits until there are so many turns, and the last has ended."""
    browser.until(
        lambda: (
            browser.run("return document.querySelectorAll('article').length") == turns
            and browser.text("#send") != "Stop"
        )
    )


def said(browser):
    return browser.text(".turn .said").split("\n")


def press_button(browser, name, last=True):
    """Clicks the last (or first) button of a turn with this name."""
    script = (
        "const found = [...document.querySelectorAll('.acts button, .editor button')]"
        ".filter(b => b.textContent === arguments[0]);"
        "found.at(arguments[1] ? -1 : 0).click()"
    )
    browser.run(script, name, last)


def test_an_answer_streams_in_and_is_counted(opened, server):
    page = opened()
    server.answers = [Answer(pieces=("One, ", "two, ", "three."), held=True)]
    send(page, "Count.")
    time.sleep(0.06)  # what is shorter has no time and no speed
    server.go.release()
    page.until(lambda: page.text(".assistant .said") == "One, ")
    assert page.text("#send") == "Stop"
    time.sleep(0.06)
    server.go.release(2)
    ended(page, 2)
    assert said(page) == ["Count.", "One, two, three."]
    wanted = r"3 tokens · [\d.]+ tokens/s · first after [\d.]+ s · prompt 9 tokens \(4 cached\)"
    assert re.fullmatch(wanted, page.text(".assistant .notes"))
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "stand-in",
        "messages": [{"role": "user", "content": "Count."}],
        "temperature": 0.6,
        "top_p": 0.9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "One, two, three." in page.text("#voice")


def test_shift_enter_begins_a_line_and_a_dialog_goes_on(opened, server):
    page = opened()
    page.type("#message", f"one{SHIFT}{ENTER}{SHIFT}two{ENTER}")
    ended(page, 2)
    send(page, "three")
    ended(page, 4)
    contents = [message["content"] for message in server.requests[1][1]["messages"]]
    assert contents == ["one\ntwo", "Hello there.", "three"]


def test_events_are_read_however_their_bytes_are_cut(opened, server):
    page = opened()
    server.answers = [Answer(pieces=("é", "中文", "🦙"), cut=True)]
    send(page, "Hello.")
    ended(page, 2)
    assert said(page)[1] == "é中文🦙"
    assert page.text(".assistant .notes").startswith("3 tokens")


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_request_and_keeps_what_came(opened, server, how):
    page = opened()
    server.answers = [Answer(hangs=True)]
    send(page, "Go on.")
    page.until(lambda: "Hello there." in page.text(".assistant"))
    if how == "button":
        page.click("#send")
    else:
        page.press(ESCAPE)
    assert server.left.wait(30)
    ended(page, 2)
    assert said(page)[1] == "Hello there."
    assert page.text(".assistant .notes").startswith("stopped by you · about 2 tokens")


def test_stop_before_the_first_word(opened, server):
    page = opened()
    server.answers = [Answer(pieces=(), hangs=True)]
    send(page, "Go on.")
    page.until(lambda: page.text("#progress").startswith("reading, "))
    page.press(ESCAPE)
    assert server.left.wait(30)
    ended(page, 2)
    assert page.text(".failure") == ""


def test_retry_asks_again_for_the_same_turn(opened, server):
    page = opened()
    server.answers = [Answer(), Answer(pieces=("Better.",))]
    send(page, "Say it.")
    ended(page, 2)
    press_button(page, "Retry")
    page.until(lambda: said(page) == ["Say it.", "Better."])
    assert server.requests[0] == server.requests[1]


def test_an_edited_message_replaces_all_that_followed(opened, server):
    page = opened()
    send(page, "first")
    ended(page, 2)
    send(page, "second")
    ended(page, 4)
    press_button(page, "Edit", last=False)
    assert page.text(".editor .quiet") == "It replaces what follows."
    page.press(ESCAPE)
    assert said(page)[0] == "first"
    press_button(page, "Edit", last=False)
    page.type(".editor textarea", " of all" + ENTER)
    ended(page, 2)
    assert said(page) == ["first of all", "Hello there."]
    sent = server.requests[-1][1]["messages"]
    assert sent == [{"role": "user", "content": "first of all"}]


def test_a_message_edited_while_its_answer_is_written_is_answered_anew(opened, server):
    page = opened()
    server.answers = [Answer(hangs=True), Answer(pieces=("New ",), hangs=True)]
    send(page, "first")
    page.until(lambda: "Hello there." in page.text(".assistant"))
    press_button(page, "Edit")
    page.type(".editor textarea", ", again" + ENTER)
    assert server.left.wait(30)
    page.until(lambda: said(page) == ["first, again", "New "])
    assert page.text("#send") == "Stop"
    page.click("#send")
    ended(page, 2)
    assert page.text(".assistant .notes").startswith("stopped by you · about 1 token")


def test_of_several_models_one_is_chosen_and_stays_chosen(opened, server):
    page = opened(models=("first", "second"))
    page.run(
        "const models = document.querySelector('#models'); models.value = 'second';"
        "models.dispatchEvent(new Event('change'))"
    )
    page.until(lambda: page.text("#model") == "second")
    page.go(server.url)
    page.until(lambda: page.text("#model") == "second")
    send(page, "Hello.")
    ended(page, 2)
    assert server.requests[0][1]["model"] == "second"


def test_settings_go_into_the_request_and_empty_ones_do_not(opened, server):
    page = opened()
    page.click("#settings")
    fill = (
        "const field = document.querySelector(`#sheet [name=${arguments[0]}]`);"
        "field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }));"
        "return field.checkValidity()"
    )
    for name, value in [("top_p", ""), ("system", "Be brief."), ("seed", "7"), ("max_tokens", 12)]:
        assert page.run(fill, name, value)
    assert page.run(fill, "temperature", "0.5")
    assert not page.run(fill, "temperature", "3")  # above the largest: it is not taken
    assert page.run(fill, "temperature", "0.5")
    page.run("document.querySelector('#sheet .main').click()")
    assert not page.run("return document.querySelector('#sheet').open")
    send(page, "Hello.")
    ended(page, 2)
    body = server.requests[0][1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 7, 12)
    assert "top_p" not in body
    page.click("#new")
    send(page, "Again.")
    page.until(lambda: len(server.requests) == 2)
    assert server.requests[1][1] == body | {
        "messages": [body["messages"][0], {"role": "user", "content": "Again."}]
    }


@pytest.mark.parametrize(
    ("answer", "title", "words"),
    [
        (
            Answer(status=429, error="the queue is full", retry_after=30),
            "The server is busy: its queue is full.",
            r"the queue is full.*Retry in \d+ s",
        ),
        (
            Answer(status=400, error="the prompt is long", code="context_length_exceeded"),
            "The server does not take this request.",
            "the prompt is long.*Edit an earlier message",
        ),
        (
            Answer(pieces=("Half ",), error="the engine failed"),
            "The server failed in the midst of the answer.",
            "the engine failed.*Retry",
        ),
        (
            Answer(pieces=("Half ",), ends=False),
            "The connection broke before the answer ended.",
            "What came is kept",
        ),
    ],
    ids=["busy", "too long", "in the midst", "broken off"],
)
def test_an_error_says_what_happened_and_what_to_do(opened, server, answer, title, words):
    page = opened()
    server.answers = [answer, Answer(pieces=("Now.",))]
    send(page, "Hello.")
    ended(page, 2)
    assert page.text(".failure strong") == title
    assert re.search(words, page.text(".failure"))
    assert said(page)[1] == ("Half " if answer.status == 200 else "")
    press_button(page, "Retry")
    page.until(lambda: said(page)[1] == "Now.")
    assert page.text(".failure") == ""


def test_a_server_that_is_gone_is_said(opened, server):
    page = opened()
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    send(page, "Hello.")
    ended(page, 2)
    assert page.text(".failure strong") == "The server does not answer."
    assert said(page)[0] == "Hello."


def test_a_key_is_asked_for_and_the_message_goes_out_with_it(opened, server):
    page = opened()
    server.key = "secret"
    send(page, "Hello.")
    page.until(lambda: page.run("return document.querySelector('#lock').open"))
    page.type("#lock [name=key]", "wrong" + ENTER)
    page.until(lambda: "does not take the key" in page.text("#lock-why"))
    page.type("#lock [name=key]", "secret" + ENTER)
    page.until(lambda: said(page) == ["Hello.", "Hello there."])
    assert not page.run("return document.querySelector('#lock').open")
    kept = "return [localStorage, sessionStorage].map(s => s.getItem('llama-jax:key'))"
    assert page.run(kept) == [None, "secret"]


def test_a_reload_keeps_the_conversation_even_in_the_midst(opened, server):
    page = opened()
    server.answers = [Answer(hangs=True)]
    send(page, "Hello.")
    page.until(lambda: "Hello there." in page.text(".assistant"))
    page.go(server.url)
    page.until(lambda: page.text("#model") == "stand-in")
    assert said(page) == ["Hello.", "Hello there."]
    assert page.text(".assistant .notes").startswith("the page was closed before it ended")
    assert server.left.wait(30)


def test_conversations_are_listed_deleted_and_brought_back(opened, server):
    page = opened()
    for text in ("first", "second"):
        page.click("#new")
        send(page, text)
        ended(page, 2)
    assert page.text("#list .open") == "second\nfirst"
    assert page.text("#list [aria-current]") == "second"
    page.run("document.querySelector('#list .forget').click()")
    assert page.text("#list .open") == "first"
    assert page.text("article") == ""
    page.click("#deleted button")
    assert page.text("#list .open") == "second\nfirst"
    page.click("#list li:last-child .open")
    assert said(page)[0] == "first"


def test_a_conversation_deleted_while_its_answer_is_written_stays_deleted(opened, server):
    page = opened()
    server.answers = [Answer(hangs=True)]
    send(page, "Hello.")
    page.until(lambda: "Hello there." in page.text(".assistant"))
    page.run("document.querySelector('#list .forget').click()")
    assert server.left.wait(30)
    page.run("return new Promise((done) => setTimeout(done, 100))")
    assert page.text("#list") == ""
    page.click("#deleted button")
    assert said(page) == ["Hello.", "Hello there."]


def test_an_answer_is_written_on_while_another_conversation_is_shown(opened, server):
    page = opened()
    server.answers = [Answer(pieces=("a", "b", "c", "d"), gap=0.1)]
    send(page, "slow")
    page.until(lambda: page.text(".assistant .said"))
    page.click("#new")
    assert page.text("article") == ""
    page.until(lambda: page.run("return !document.querySelector('.dot')"))
    page.click("#list .open")
    assert said(page) == ["slow", "abcd"]


def test_an_export_is_imported_whole(opened, server):
    page = opened()
    page.chrome("Page.setDownloadBehavior", behavior="allow", downloadPath=str(page.downloads))
    send(page, HOSTILE)
    ended(page, 2)
    page.click("#export")
    page.until(lambda: list(page.downloads.glob("*.json")))
    file = next(page.downloads.glob("*.json"))
    assert json.loads(file.read_text())["conversations"][0]["turns"][0]["content"] == HOSTILE
    page = opened()
    page.run("document.querySelector('#file').hidden = false")
    page.type("#file", str(file))
    page.until(lambda: said(page)[0] == HOSTILE)
    other = file.with_name("other.txt")
    other.write_text('{"format": "another"}')
    page.type("#file", str(other))
    page.until(lambda: "has no conversations of this page's" in page.text("#notice"))
    assert page.text("#list .open") == HOSTILE[:80]


def test_what_a_model_or_a_user_writes_is_text_alone(opened, server):
    page = opened(models=(HOSTILE,))
    markdown = (
        f"# {HOSTILE}\n\n- **{HOSTILE}**\n\n```{'x' * 30}\n{HOSTILE}\n```\n\n[a](javascript:1)"
    )
    server.answers = [Answer(pieces=(markdown,)), Answer(status=500, error=HOSTILE)]
    send(page, HOSTILE)
    ended(page, 2)
    send(page, "again")
    ended(page, 4)
    assert page.text(".assistant figure code") == HOSTILE
    assert page.text(".assistant strong").startswith(HOSTILE)
    assert page.run("return document.querySelectorAll('img, article a, body script').length") == 0
    assert page.run("return window.owned === undefined")


def test_the_policy_lets_no_inline_script_run(opened, server):
    page = opened()
    page.run("document.body.append(document.createElement('script'))")
    page.run("document.querySelector('body > script').append('window.owned = 1')")
    assert page.run("return window.owned === undefined")
    assert "Content Security Policy" in page.log()[0]


MARKDOWN = """\
Two lines
in **one *paragraph***, `a*b*` 2 * 3, snake_case_name, *so* \\*.

1. first
   - inner
2. second

> quoted

| a | b |
|---|:-:|
| `1` | 2 | 3 |

```py
if a < b:
    print("*")
```
"""
ELEMENTS = (
    "<p>Two lines\nin <strong>one <em>paragraph</em></strong>, <code>a*b*</code> 2 * 3, "
    "snake_case_name, <em>so</em> *.</p>"
    "<ol><li>first<ul><li>inner</li></ul></li><li>second</li></ol>"
    "<blockquote><p>quoted</p></blockquote>"
    "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
    "<tbody><tr><td><code>1</code></td><td>2</td></tr></tbody></table></div>"
    "<figure><figcaption><span>py</span><button>Copy</button></figcaption>"
    '<pre><code>if a &lt; b:\n    print("*")</code></pre></figure>'
)


def test_markdown_becomes_elements_piece_by_piece(opened, server):
    page = opened()
    server.answers = [Answer(pieces=tuple(MARKDOWN))]
    send(page, "Write.")
    ended(page, 2)
    script = "return document.querySelector('.prose').innerHTML.replace(/ [a-z-]+=\"[^\"]*\"/g, '')"
    assert page.run(script) == ELEMENTS


GROWTH = """
const [unit, done] = arguments;
const { show } = await import("/markdown.js");
const cost = (n) => {
  const began = performance.now();
  show(document.createElement("div"), unit.repeat(n));
  return performance.now() - began;
};
const best = (n) => Math.min(...Array.from({ length: 8 }, () => cost(n)));
done([best(500), best(4000)]);
"""


def test_the_cost_of_hostile_markdown_grows_with_its_length_alone(opened):
    page = opened()
    for unit in ("*a ", "_a_ ", "**_", "> ", "`a", "1. ", "\n- ", "- a\n  ", "# ", "|a\n", "|-"):
        tries = []  # what grows with the square takes 64 times as long in each, whoever else works
        while len(tries) < 10 and not any(large < 24 * small + 50 for small, large in tries):
            tries.append(page.run_async(GROWTH, unit))
        small, large = tries[-1]
        assert large < 24 * small + 50, f"{unit!r}: ms of 500 and of 4,000: {tries}"


def test_a_code_block_is_copied_with_its_button(opened, server):
    page = opened()
    server.answers = [Answer(pieces=("```\nx = 1\ny = 2\n```",))]
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    send(page, "Write.")
    ended(page, 2)
    page.click("figcaption button")
    assert page.until(lambda: page.run("return window.copied")) == "x = 1\ny = 2"
    page.until(lambda: "Copied." in page.text("#voice"))


def test_a_model_without_a_chat_template_continues_a_text(opened, server):
    page = opened(chat=False)
    server.answers = [Answer(pieces=(", a fox", " ran."), finish="length"), Answer(), Answer()]
    send(page, "Once upon a time")
    ended(page, 1)
    assert page.text(".manuscript") == "Once upon a time, a fox ran."
    assert "Max tokens" in page.text(".notes")
    path, body = server.requests[0]
    assert path == "/v1/completions"
    assert (body["prompt"], body["max_tokens"]) == ("Once upon a time", 256)
    send(page, "It was late.")
    page.until(lambda: len(server.requests) == 2)
    ended(page, 1)
    assert server.requests[1][1]["prompt"] == "Once upon a time, a fox ran. It was late."
    press_button(page, "Take back")
    assert page.text(".manuscript") == "Once upon a time, a fox ran. It was late."
    page.click("#send")  # goes on without new words
    page.until(lambda: len(server.requests) == 3)
    ended(page, 1)
    assert server.requests[2] == server.requests[1]
    press_button(page, "Edit")
    page.run("document.querySelector('.editor textarea').value = 'Twice'")
    press_button(page, "Continue")
    page.until(lambda: page.text(".manuscript") == "TwiceHello there.")


def test_colours_follow_the_system_until_they_are_switched(opened):
    page = opened()
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    system = "Emulation.setEmulatedMedia"
    found = []
    for scheme in ("light", "dark"):
        page.chrome(system, features=[{"name": "prefers-color-scheme", "value": scheme}])
        found.append(page.run(paper))
    assert found[0] != found[1]
    page.click("#theme")
    assert page.run(paper) == found[0]  # light, under a dark system
    page.run("location.reload()")
    page.until(lambda: page.text("#model") == "stand-in")
    assert page.run(paper) == found[0]
    page.chrome(system, features=[])


def test_a_phone_scrolls_down_alone_and_its_drawer_holds_the_focus(opened, server):
    page = opened()
    page.chrome(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=844,
        deviceScaleFactor=2,
        mobile=True,
    )
    try:
        server.answers = [Answer(pieces=(f"```\n{'long ' * 200}\n```\n" + "word " * 900,))]
        send(page, "x" * 300)
        ended(page, 2)
        width = "return [document.documentElement.scrollWidth, innerWidth]"
        assert page.run(width) == [390, 390]
        assert page.run("return scrollY") > 100  # the page has followed the words
        page.click("#menu")
        assert page.run("return document.querySelector('#page').inert")
        assert page.run("return document.activeElement.id") == "close"
        role = "const drawer = document.querySelector('#drawer');"
        role += "return [drawer.getAttribute('role'), drawer.getAttribute('aria-modal')]"
        assert page.run(role) == ["dialog", "true"]
        page.press(ESCAPE)
        assert page.run("return document.activeElement.id") == "menu"
        assert page.run(role) == ["navigation", None]
    finally:
        page.chrome("Emulation.clearDeviceMetricsOverride")


def test_storage_that_is_full_or_closed_is_said_and_the_page_goes_on(opened, server):
    page = opened()
    page.run("Storage.prototype.setItem = () => { throw new DOMException('full') }")
    send(page, "Hello.")
    ended(page, 2)
    assert said(page) == ["Hello.", "Hello there."]
    assert page.text("#notice strong") == "This browser keeps no more."


def test_the_server_itself_serves_the_page_answers_it_and_hears_it_stop(chrome):
    from scripted import Scripted, delta
    from serving import served  # skips where the server's packages are not installed

    engine = Scripted()
    with served(engine) as (url, _):
        chrome.go(url)
        chrome.until(lambda: chrome.text("#model") == "stories")
        policy = "done((await fetch('/')).headers.get('content-security-policy'))"
        assert chrome.run_async("const [done] = arguments;" + policy) == POLICY
        send(chrome, "Hello.")
        engine.say(engine.wait_for_stream(), delta("Good "), delta("day.", "stop"))
        ended(chrome, 2)
        assert said(chrome) == ["Hello.", "Good day."]
        assert engine.asked[0][0] == [{"role": "user", "content": "Hello."}]
        send(chrome, "Go on.")
        engine.say(engine.wait_for_stream(), delta("Once"))
        chrome.until(lambda: said(chrome)[-1] == "Once")
        engine.cancelled.clear()
        chrome.press(ESCAPE)
        assert engine.cancelled.wait(30)
        ended(chrome, 4)
    assert chrome.log() == []
