"""Texts for rehearsal: cut into query and answer, and compared with a test's prompts."""

from __future__ import annotations

from imsm.data.rehearsal import check_texts, cut_text, prompt_words

FORM = "Please answer the following question in a few words. Question: {} Answer:"
QUESTIONS = ["who wrote the long book about the sea", "where is the town", "what do they eat in the north of it"]
WORDS = prompt_words(FORM.format(question) for question in QUESTIONS)


def test_a_text_is_cut_at_a_random_place_after_its_prompt() -> None:
    texts = [cut_text((1, 5), tuple(range(10, 20)), index=i, seed=0, from_bos=False) for i in range(200)]
    places = {len(each.prompt_ids) - 2 for each in texts if each is not None}
    assert places == set(range(10))
    assert all(each and (*each.prompt_ids, *each.answer_ids) == (1, 5, *range(10, 20)) for each in texts)
    assert texts[0] == cut_text((1, 5), tuple(range(10, 20)), index=0, seed=0, from_bos=False)
    assert [each.prompt_ids for each in texts if each] != [
        each.prompt_ids
        for i in range(200)
        if (each := cut_text((1, 5), tuple(range(10, 20)), index=i, seed=1, from_bos=False))
    ]


def test_a_text_from_bos_has_a_token_before_the_cut_and_one_after_it() -> None:
    texts = [cut_text((1,), (7, 8), index=i, seed=0, from_bos=True) for i in range(20)]
    assert {each.prompt_ids for each in texts if each} == {(1, 7)}
    assert cut_text((1,), (2,), index=0, seed=0, from_bos=True) is None


def test_the_form_of_a_test_is_what_all_prompts_begin_and_end_with() -> None:
    assert " ".join(WORDS.before) == "please answer the following question in a few words question"
    assert WORDS.after == ("answer",)
    assert prompt_words(["one prompt"]).before == ()
    assert prompt_words([]).grams == frozenset()


def test_texts_that_share_eight_words_with_a_prompt_are_dropped() -> None:
    texts = [
        "He asked who wrote the long book about the sea, and left.",  # the question's own words
        "Question: where is the town? Answer: here. In a few words.",  # too few, and in another form
        FORM.format("where is the town").replace(":", " :").upper(),  # the short question in its form
        FORM.format("who is the mayor"),  # the form alone is not a question of the test
        "who wrote the long book about the hill",  # seven words
    ]
    check = check_texts(texts, {"test": WORDS})
    assert check.kept == [1, 3, 4] and check.dropped == 2
    assert check.warning() == "dropped 2 texts that share 8 words in a row with a test's prompt."
    assert check_texts(texts[3:], {"test": WORDS}).warning() is None


def test_texts_with_the_form_of_a_test_are_counted() -> None:
    texts = [FORM.format("who is the mayor"), "a text", FORM.format("what now").removesuffix("Answer:"), ""]
    formless = prompt_words(["how many are here", "where are they"])
    check = check_texts(texts, {"test": WORDS, "formless": formless})
    assert check.forms == {"test": 1, "formless": None}
