"""The scheduler's decisions, one by one: pages of 4 tokens, chunks of 4 unless said otherwise."""

import pytest

from llama_jax.serve.pages import Pages
from llama_jax.serve.scheduler import Line, Scheduler


def scheduler(pages=16, seats=4, *, chunk=4, lookahead=2, exact=False, width=16):
    return Scheduler(
        Pages(pages, 4), seats, chunk=chunk, width=width, lookahead=lookahead, exact=exact
    )


def added(made, prompt, max_new_tokens=8, **fields):
    line = Line(prompt, max_new_tokens, **fields)
    made.add(line)
    return line


def read(made, line, first=7):
    """Reads a line to the end of its prompt and takes the rounds, the last with a first token."""
    starts = []
    while line.state in ("waiting", "reading"):
        chunk = made.next_read()
        assert chunk.line is line
        starts.append(chunk.start)
        made.wrote(line, [first] if chunk.draws else [])
    return starts


def write(made, *tokens):
    """Rounds that give each line one of the tokens; returns what was new in the last round."""
    for token in tokens:
        lines = made.next_decode()
        new = [made.wrote(line, [token]) for line in lines]
    return new


def written(made, prompt, max_new_tokens=8, **fields):
    line = added(made, prompt, max_new_tokens, **fields)
    read(made, line)
    return line


def test_a_prompt_is_read_by_chunks_and_the_last_draws():
    made = scheduler()
    line = added(made, list(range(10)))
    reads = [made.next_read() for _ in range(3)]
    assert [one.start for one in reads] == [0, 4, 8]
    assert [one.tokens for one in reads] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [one.first for one in reads] == [True, False, False]
    assert [one.last for one in reads] == [one.draws for one in reads] == [False, False, True]
    assert made.next_read() is None
    assert made.next_decode() == [line]  # before its first token is known


def test_lines_are_read_one_after_another_in_order_of_arrival():
    made = scheduler(seats=2)
    first, second, third = [added(made, [i] * 6) for i in range(3)]
    assert [made.next_read().line for _ in range(4)] == [first, first, second, second]
    assert made.next_read() is None  # there is no seat
    made.ended(first)
    made.wrote(first, [])
    assert made.next_read() is None  # a round in flight has its seat
    made.wrote(first, [5])
    assert made.next_read().line is third
    assert third.seat == 0


def test_a_decoding_line_has_pages_for_its_lookahead_and_none_beyond_its_end():
    made = scheduler(lookahead=6)
    line = written(made, [1, 2, 3])
    assert len(line.pages) == 3  # for 3 + 6 tokens
    write(made, 4, 4, 4)
    assert made.next_decode() == [line]
    assert len(line.pages) == 3  # for all of its 11 tokens, and not for 6 + 6
    line = written(made, [1, 2], 20)
    write(made, 4)
    assert len(line.pages) == 2  # for 2 + 6
    write(made, 4)
    assert len(line.pages) == 3  # for 3 + 6


def test_the_youngest_gives_way_and_is_read_again_without_a_draw():
    made = scheduler(pages=6, lookahead=1)
    old, young = written(made, [1] * 8, 16), written(made, [2] * 6, 8)
    behind = added(made, [3] * 4)
    write(made, 4, 5, 6, 3)
    assert made.next_decode() == [old]
    assert (young.state, young.seat, young.pages) == ("waiting", None, [])
    assert (young.preempted, made.preemptions) == (1, 1)
    assert list(made.queue) == [young, behind]
    made.ended(old)
    made.wrote(old, [])
    again = made.next_read()
    assert (again.line, again.start, again.tokens) == (young, 8, [5, 6])  # not the newest
    assert (again.first, again.last, again.draws) == (True, True, False)
    assert young.written[: young.count] == young.written == [7, 4, 5, 6, 3]
    assert young.cached == 0
    made.wrote(young, [])
    assert write(made, 9) == [[9]]


def test_an_exact_engine_begins_again_and_gives_only_new_tokens():
    made = scheduler(pages=6, lookahead=1, exact=True)
    old, young = written(made, [1] * 8, 16), written(made, [2] * 6, 8)
    write(made, 4, 5, 6, 3)
    assert made.next_decode() == [old]
    made.ended(old)
    made.wrote(old, [])
    again = made.next_read()
    assert (again.line, again.start, again.tokens) == (young, 4, [2, 2])
    assert (again.draws, young.written[: young.count]) == (True, [])
    assert made.wrote(young, [7]) == []
    assert write(made, 4, 5, 6) == [[]]
    assert made.next_decode() == [young]
    assert made.wrote(young, [3, 9]) == [9]
    assert young.written == [7, 4, 5, 6, 3, 9]


def test_an_exact_engine_that_draws_another_token_ends_the_line():
    made = scheduler(pages=6, lookahead=1, exact=True)
    old, young = written(made, [1] * 8, 16), written(made, [2] * 6, 8)
    write(made, 4, 5, 6, 3)
    made.next_decode()
    made.ended(old)
    made.wrote(old, [])
    made.next_read()
    with pytest.raises(RuntimeError, match=r"a preempted line drew \[8\] where it had drawn \[7\]"):
        made.wrote(young, [8])
    assert (young.state, young.written) == ("ended", [7, 4, 5, 6, 3])
    assert made.pages.used == 0


def test_tokens_in_flight_count_though_their_line_was_preempted():
    made = scheduler(pages=6, lookahead=2)
    old, young = written(made, [1] * 6, 18), written(made, [2] * 6, 10)
    write(made, 4, 4, 4)
    assert made.next_decode() == [old, young]
    made.wrote(old, [4, 4])
    assert made.next_decode() == []  # the old line needs a page, and the young one's are in flight
    assert list(made.queue) == [young]
    assert len(young.pages) == 3
    assert made.next_read() is None
    assert made.wrote(young, [5]) == [5]
    assert (young.pages, young.written) == ([], [7, 4, 4, 4, 5])
    assert made.next_decode() == [old]
    assert len(old.pages) == 4


def test_the_youngest_waits_in_its_seat_where_there_are_no_pages():
    made = scheduler(pages=6, lookahead=1)
    old, young = written(made, [1] * 8, 4), written(made, [2] * 6, 10)
    behind = added(made, [3], 1)
    assert made.pages.free == 1
    write(made, 4, 4)
    assert made.pages.take(1)  # somebody else's
    assert made.next_decode() == [old]
    assert (young.state, made.preemptions) == ("writing", 0)
    assert made.next_read() is None  # the next free page is not for those behind
    made.ended(old)
    made.wrote(old, [])
    assert made.next_decode() == [young]
    assert made.next_read().line is behind


def test_a_younger_line_takes_no_page_that_an_older_one_waits_for():
    made = scheduler(pages=8, lookahead=5)
    old, young, last = (written(made, [i] * 3, 16) for i in range(3))
    assert made.pages.take(1)  # somebody else's, so that one is free
    assert made.next_decode() == [old, young, last]
    made.wrote(old, [4] * 5)  # it needs two pages
    made.wrote(young, [4])  # and this one
    assert made.next_decode() == []
    assert made.pages.free == 1
    made.wrote(last, [4])  # it was preempted, and its pages come back
    assert made.next_decode() == [old, young]


def test_a_line_gets_in_where_each_one_before_it_finds_another_page():
    made = scheduler(pages=4, lookahead=1)
    old = written(made, [1] * 3, 9)
    young = added(made, [2] * 8, 1)
    assert made.next_read() is None  # it needs 3, as many as are free
    made.ended(young)
    assert read(made, added(made, [2] * 7, 1)) == [0, 4]  # this one needs 2
    assert len(old.pages) == 1


def test_completions_of_one_prompt_share_its_whole_pages():
    made = scheduler()
    lines = [added(made, [1, 2, 3, 4, 5, 6, 7, 8, 9], index=index) for index in range(3)]
    assert read(made, lines[0]) == [0, 4, 8]
    assert read(made, lines[1]) == read(made, lines[2]) == [8]
    assert lines[0].pages[:2] == lines[1].pages[:2] == lines[2].pages[:2]
    assert len({line.pages[2] for line in lines}) == 3
    assert [line.cached for line in lines] == [0, 8, 8]


def test_who_could_share_a_page_in_flight_waits_for_it():
    made = scheduler()
    first, second = added(made, [1] * 4), added(made, [1] * 5)
    assert made.next_read().last
    assert made.next_read() is None
    made.wrote(first, [7])
    assert made.next_read().start == 4
    assert second.pages[0] == first.pages[0]


def test_the_last_token_is_always_read():
    made = scheduler()
    assert read(made, added(made, [1] * 8)) == [0, 4]
    assert read(made, added(made, [1] * 8)) == [4]


@pytest.mark.parametrize(("exact", "starts"), [(True, [8, 16]), (False, [12])])
def test_an_exact_engine_shares_up_to_where_a_chunk_begins(exact, starts):
    made = scheduler(chunk=8, exact=exact)
    assert read(made, added(made, [1] * 13)) == [0, 8]
    late = added(made, [1] * 17)
    assert read(made, late) == starts  # three pages are known
    assert late.cached == starts[0]


def test_a_chunk_may_be_smaller_than_a_page():
    made = scheduler(chunk=2)
    assert read(made, added(made, [1] * 5)) == [0, 2, 4]
    assert read(made, added(made, [1] * 7)) == [4, 6]


@pytest.mark.parametrize(("exact", "starts"), [(False, [8, 12]), (True, [4, 8, 12])])
def test_new_tokens_are_known_too_but_in_an_exact_engine(exact, starts):
    made = scheduler(exact=exact)
    line = written(made, [1, 2, 3, 4, 5])
    write(made, 8, 8, 8)
    made.ended(line)
    assert read(made, added(made, [1, 2, 3, 4, 5, 7, 8, 8, 8, 1, 1, 1, 1])) == starts


def test_a_token_that_is_not_in_pages_makes_none_known():
    made = scheduler()
    line = written(made, [1, 2, 3, 4, 5, 6, 7])  # its newest token is the eighth
    made.ended(line)
    assert read(made, added(made, [1, 2, 3, 4, 5, 6, 7, 7, 7])) == [4, 8]


def test_texts_of_unlike_salts_share_nothing():
    made = scheduler()
    read(made, added(made, [1] * 8, salt=b"a"))
    assert read(made, added(made, [1] * 8, salt=b"b")) == [0, 4]


def test_a_line_may_ask_for_its_whole_prompt():
    made = scheduler()
    read(made, added(made, [1] * 8))
    assert read(made, added(made, [1] * 8, whole=True)) == [0, 4]


def test_a_line_that_waits_has_one_round_in_flight():
    made = scheduler()
    line = added(made, [1], waits=True)
    made.next_read()
    assert made.next_decode() == []
    made.wrote(line, [7])
    assert made.next_decode() == [line]
    assert made.next_decode() == []
    made.wrote(line, [7])
    assert made.next_decode() == [line]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_more_rounds_are_made_than_a_line_has_tokens(most):
    made = scheduler()
    line = added(made, [1], most)
    assert made.next_read().draws == (most > 0)
    rounds = 0
    while made.next_decode():
        rounds += 1
    assert rounds == max(most - 1, 0)
    assert len(line.pages) == 1


def test_a_cancelled_lines_pages_come_back_with_its_last_round():
    made = scheduler()
    line = added(made, [1] * 8)
    made.next_read()
    made.ended(line)
    made.ended(line)
    assert made.pages.used == len(line.pages) == 3
    assert made.next_read() is None
    assert made.wrote(line, []) == []
    assert (made.pages.used, line.pages, line.seat) == (0, [], None)
    assert made.pages.known(line.digests) == []


def test_a_spoiled_lines_own_pages_are_to_be_cleared_and_are_known_no_longer():
    made = scheduler()
    first = written(made, [1] * 9)
    second = written(made, [1] * 4 + [2] * 5)
    own = second.pages[1:]
    assert second.pages[0] == first.pages[0]
    made.next_decode()
    assert made.spoiled(second) == own
    assert second.state == "ended"
    assert made.pages.known(second.digests) == first.pages[:1]
    made.wrote(second, [])
    assert made.pages.used == len(first.pages)
    assert second.pages == []
    assert read(made, added(made, [1] * 4 + [2] * 5)) == [4, 8]


def test_a_line_is_spoiled_though_it_was_cancelled_or_preempted():
    made = scheduler()
    line = added(made, [1] * 8)
    made.next_read()
    made.ended(line)
    pages = line.pages
    assert made.spoiled(line) == pages
    made.wrote(line, [])
    assert made.spoiled(line) == []


def test_all_lines_wait_again_when_the_device_was_reset():
    made = scheduler()
    first, second, third = (added(made, [i] * 5) for i in range(3))
    read(made, first)
    made.next_decode()
    made.next_read()
    made.forget()
    assert list(made.queue) == [first, second, third]
    assert made.pages.used == 0
    assert read(made, first) == [0, 4]
    assert first.written == [7]
    assert read(made, second) == [0, 4]


def test_what_waits_is_counted_by_requests_and_their_tokens():
    made = scheduler(pages=6, seats=2, lookahead=1)
    old = added(made, [1] * 8, 16)
    young = added(made, [2] * 6)
    added(made, [2] * 6, index=1)
    gone = added(made, [3] * 3)
    assert (made.waiting, made.waiting_tokens) == (3, 17)
    read(made, old)
    read(made, young)
    assert (made.waiting, made.waiting_tokens) == (1, 3)
    write(made, 4, 4, 4, 4)
    assert made.next_decode() == [old]
    assert young.state == "waiting"
    assert (made.waiting, made.waiting_tokens) == (1, 3)  # it had a seat
    made.ended(gone)
    made.ended(young)
    assert (made.waiting, made.waiting_tokens) == (0, 0)


def test_a_line_that_can_never_fit_is_refused():
    made = scheduler(pages=6, width=8)
    with pytest.raises(ValueError, match="the prompt has no tokens; give at least one"):
        made.add(Line([], 3))
    told = (
        "a prompt of 30 tokens and max_new_tokens=3 make 33, and the context ends at 32; shorten "
        "the prompt, or lower max_new_tokens"
    )
    with pytest.raises(ValueError, match=told):
        made.add(Line([1] * 30, 3))
    told = (
        "a prompt of 20 tokens and max_new_tokens=5 need 7 pages of 4 tokens, and the cache has "
        "6; lower max_new_tokens, or give the engine a larger cache"
    )
    with pytest.raises(ValueError, match=told):
        made.add(Line([1] * 20, 5))
    assert not made.queue
    made.add(Line([1] * 20, 4))


def test_chunks_and_pages_begin_together():
    with pytest.raises(ValueError, match="chunk=6 must divide 4, or be a multiple of it"):
        scheduler(chunk=6)


@pytest.mark.parametrize("name", ["seats", "chunk", "width", "lookahead"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be a positive integer"):
        scheduler(**{name: 0})
