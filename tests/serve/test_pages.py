"""Pages: free or held, and known as long as nobody took them for something else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.serve.pages import Pages, digest_of

A, B, C = digest_of(b"", [1]), digest_of(b"", [2]), digest_of(b"", [3])


def test_pages_are_taken_once_and_come_back():
    pages = Pages(3)
    assert pages.take(2) == [0, 1]
    assert (pages.free, pages.used) == (1, 2)
    pages.give([0, 1])
    assert (pages.free, pages.used) == (3, 0)


def test_too_few_pages_change_nothing():
    pages = Pages(3)
    pages.fill(pages.take(1)[0], A)
    pages.give([0])
    assert pages.take(4) is None
    assert (pages.free, pages.known([A])) == (3, [0])


def test_a_known_page_is_found_until_it_is_taken():
    pages = Pages(2)
    first, second = pages.take(2)
    pages.fill(first, A)
    pages.give([first])
    pages.give([second])
    assert pages.known([A, B]) == [first]
    assert pages.take(1) == [second]  # what is known is taken last
    assert pages.known([A]) == [first]
    assert pages.take(1) == [first]
    assert pages.known([A]) == []


def test_what_was_given_back_longest_ago_is_taken_first():
    pages = Pages(3)
    for page, digest in zip(pages.take(3), (A, B, C), strict=True):
        pages.fill(page, digest)
    pages.give([1])
    pages.give([0])
    pages.give([2])
    assert [pages.take(1), pages.take(1), pages.take(1)] == [[1], [0], [2]]


def test_a_use_makes_a_page_young_again():
    pages = Pages(2)
    for page, digest in zip(pages.take(2), (A, B), strict=True):
        pages.fill(page, digest)
    pages.give([0])
    pages.give([1])
    pages.hold([0])
    pages.give([0])
    assert pages.take(1) == [1]


def test_the_end_of_a_text_is_taken_before_its_beginning():
    pages = Pages(3)
    for page, digest in zip(pages.take(3), (A, B, C), strict=True):
        pages.fill(page, digest)
    pages.give([0, 1, 2])
    assert pages.take(2) == [2, 1]
    assert pages.known([A]) == [0]


def test_a_page_that_two_hold_is_free_when_both_gave_it_back():
    pages = Pages(1)
    pages.fill(pages.take(1)[0], A)
    pages.hold([0])
    pages.give([0])
    assert (pages.free, pages.holders(0)) == (0, 1)
    pages.give([0])
    assert pages.free == 1


def test_a_page_is_given_back_as_often_as_it_is_held():
    pages = Pages(1)
    pages.give(pages.take(1))
    with pytest.raises(ValueError, match="page 0 is free already; give each page back once"):
        pages.give([0])


def test_of_two_pages_with_one_digest_the_first_stays_known():
    pages = Pages(2)
    first, second = pages.take(2)
    pages.fill(first, A)
    pages.fill(second, A)
    assert pages.known([A]) == [first]
    pages.give([second])
    assert pages.take(1) == [second]
    assert pages.known([A]) == [first]  # the second's end does not forget the first


def test_forgotten_pages_stay_with_their_holder():
    pages = Pages(2)
    pages.fill(pages.take(1)[0], A)
    pages.forget([0, 1])
    assert (pages.known([A]), pages.holders(0)) == ([], 1)
    pages.fill(0, B)  # and may be known again
    assert pages.known([B]) == [0]


def test_a_digest_is_of_the_whole_text_and_of_the_salt():
    root = digest_of(b"", [])
    page = digest_of(root, [1, 2])
    assert digest_of(root, [1, 2]) == page
    others = [
        digest_of(root, [2, 1]),
        digest_of(page, [1, 2]),
        digest_of(digest_of(b"x", []), [1, 2]),
    ]
    assert len({page, *others}) == 4


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_pool_has_pages(count):
    with pytest.raises(ValueError, match=r"count=.* must be a positive integer"):
        Pages(count)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6), st.lists(st.tuples(st.sampled_from("tghff"), st.integers(0, 7)), max_size=40)
)
def test_free_and_held_pages_are_all_pages_and_known_ones_are_kept(count, events):
    pages, held, known = Pages(count), [], {}
    for event, n in events:
        if event == "t" and (taken := pages.take(n)) is not None:
            assert not set(taken) & {page for group in held for page in group}
            held.append(taken)
            known = {digest: page for digest, page in known.items() if page not in taken}
        elif event == "g" and held:
            pages.give(held.pop(n % len(held)))
        elif event == "h" and (found := pages.known([digest_of(b"", [n])])):
            pages.hold(found)
            held.append(found)
        elif event == "f" and held and (group := held[n % len(held)]):
            digest = digest_of(b"", [n])
            if digest not in known and group[0] not in known.values():
                known[digest] = group[0]
            pages.fill(group[0], digest)
        assert pages.free + pages.used == count
        flat = [page for group in held for page in group]
        assert pages.used == len(set(flat))
        assert all(pages.holders(page) == flat.count(page) for page in range(count))
        assert all(pages.known([digest]) == [page] for digest, page in known.items())
