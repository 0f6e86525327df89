"""Token ids of conversations, and which of them the loss counts: the assistant's turns with the special token after each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from train.config.option_groups import Turns
from train.data.example_types import ASSISTANT, Content, Dialogue, Message, Pair
from train.tokenizers.chat_template import ChatTemplate, Rendered
from train.tokenizers.text_borders import common_prefix_length
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


class CountedIds(NamedTuple):
    """A text as ids, and for each id whether it counts as a target."""

    ids: Int32[np.ndarray, " n"]
    counted: Bool[np.ndarray, " n"]
    differs: bool = False
    """True if the ids before the last response differ from the ids of the prompt alone, which a model reads to generate."""


class CompletionText(NamedTuple):
    """A prompt and a completion of it as texts."""

    prompt: str
    text: str
    """The completion without its end mark."""
    rendered: bool = False
    """True if a chat template has written the texts: names of special tokens in them are those tokens."""
    end: int | None = None
    """Id of the special token that the template writes after the completion; None: the model's usual one."""


def completion_text(
    origin: str, prompt: Content, completion: Content, tokenizer: Tokenizer, template: ChatTemplate | None
) -> CompletionText:
    """Return a prompt with one of its completions as texts; messages are rendered by the template.

    The text of the prompt ends with the beginning of an answer. What the template writes behind the completion's end mark, its
    last special token, is left out.

    Raises:
        BadInput: a message spells a special token, or the template cannot render the messages, or renders the prompt differently
            if the completion follows.
    """
    if isinstance(prompt, str) or isinstance(completion, str):
        assert isinstance(prompt, str) and isinstance(completion, str)
        return CompletionText(prompt, completion)
    assert template is not None, "conversations need a template"
    check_contents(Dialogue(origin=origin, messages=prompt + completion), tokenizer)
    before, text = _prompt_and_answer(prompt + completion, len(prompt), template, origin)
    answer, end = _split_end(text, tokenizer)
    return CompletionText(before, answer, rendered=True, end=end)


def encode_dialogues(
    dialogues: Sequence[Dialogue], tokenizer: Tokenizer, template: ChatTemplate, turns: Turns
) -> list[CountedIds]:
    """Return the ids of conversations up to the last id that counts.

    Raises:
        BadInput: a message spells a special token, the template does not show which text is the assistant's, or it writes no
            special token after an answer, so that a model would not learn to stop.
    """
    rendered = [_counted_text(dialogue, tokenizer, template, turns) for dialogue in dialogues]
    texts: list[str] = []
    for dialogue, (text, spans) in zip(dialogues, rendered, strict=True):
        prompt = template.render(dialogue.messages[:-1], dialogue.origin, generation_prompt=True)
        texts += [text, prompt, *(text[:end] for span in spans for end in span)]
    encoded = iter(tokenizer.encode_rendered(texts))
    special, results = np.array(sorted(tokenizer.special_names.values())), []
    for dialogue, (_, spans) in zip(dialogues, rendered, strict=True):
        ids, prompt_ids = next(encoded), next(encoded)
        counted, first = np.zeros(len(ids), bool), 0
        for _ in spans:
            first, behind = (common_prefix_length(next(encoded), ids) for _ in range(2))
            end = _end(ids, first, behind, np.isin(ids, special), tokenizer)
            if end is None:
                raise BadInput(missing_end(dialogue.origin, template))
            counted[first:end] = True
        size = int(np.flatnonzero(counted)[-1]) + 1
        results.append(CountedIds(ids[:size], counted[:size], not np.array_equal(ids[:first], prompt_ids)))
    return results


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, template: ChatTemplate) -> list[Int32[np.ndarray, " n"]]:
    """Return the ids of texts, each rendered as a user's first turn and followed by the beginning of an answer.

    Raises:
        BadInput: a text spells a special token.
    """
    conversations = [(f"prompt {number}", (Message("user", text),)) for number, text in enumerate(texts, 1)]
    return tokenizer.encode_rendered(rendered_prompts(conversations, tokenizer, template))


def rendered_prompts(
    conversations: Sequence[tuple[str, Sequence[Message]]], tokenizer: Tokenizer, template: ChatTemplate
) -> list[str]:
    """Return conversations that end with a turn of the user as texts, with the beginning of an answer.

    Args:
        conversations: the place of each, for messages, and its turns.

    Raises:
        BadInput: a message spells a special token, or the template cannot render it.
    """
    for origin, messages in conversations:
        check_contents(Dialogue(origin=origin, messages=tuple(messages)), tokenizer)
    return [template.render(messages, origin, generation_prompt=True) for origin, messages in conversations]


def rendered_pairs(
    examples: Sequence[Pair | Dialogue], tokenizer: Tokenizer, template: Callable[[], ChatTemplate], turns: Turns
) -> list[Pair]:
    """Return examples as pairs for an encoder-decoder: for each counted turn, the rendered text before it, and its text.

    Args:
        template: returns the chat template; it is called only if there are conversations.

    Raises:
        BadInput: a message spells a special token, or the template cannot render it.
    """
    pairs: list[Pair] = []
    for example in examples:
        if isinstance(example, Pair):
            pairs.append(example)
            continue
        check_contents(example, tokenizer)
        answers = [number for number, message in enumerate(example.messages, 1) if message.role == ASSISTANT]
        for number in answers if turns == "all" else answers[-1:]:
            source, target = _prompt_and_answer(example.messages[:number], number - 1, template(), example.origin)
            # Every row ends with the same special token, so the template's own is removed.
            target = _split_end(target, tokenizer)[0].strip()
            pairs.append(Pair(origin=example.origin, document=example.document, source=source, target=target, rendered=True))
    return pairs


def _split_end(text: str, tokenizer: Tokenizer) -> tuple[str, int | None]:
    """Return the text of an answer before its end mark, and the id of the mark; None if no special token ends the text."""
    text = text.rstrip()
    name = max((name for name in tokenizer.special_names if text.endswith(name)), key=len, default="")
    return text.removesuffix(name), tokenizer.special_names.get(name)


def _prompt_and_answer(messages: Sequence[Message], first: int, template: ChatTemplate, where: str) -> tuple[str, str]:
    """Return the text of the messages before number `first`, with the beginning of an answer, and the text of the others.

    Raises:
        BadInput: the template cannot render the messages, or renders those before an answer differently if the answer follows.
    """
    prompt, text = template.render(messages[:first], where, generation_prompt=True), template.render(messages, where)
    if not text.startswith(prompt):
        raise BadInput(
            f"{where}: {template.where} renders the messages before an answer differently when the answer is there; change the "
            "template so that an answer follows its generation prompt"
        )
    return prompt, text[len(prompt) :]


def missing_end(origin: str, template: ChatTemplate) -> str:
    """Return the message about a template that writes no special token after an answer."""
    what = "writes no special token after the assistant's turn, so that a model would not learn to stop"
    return f"{origin}: {template.where} {what}; write {{{{ eos_token }}}} there"


def end_mark(tokenizer: Tokenizer, template: ChatTemplate) -> int:
    """Return the id of the special token that the template writes after an answer.

    Raises:
        BadInput: the template writes no special token after an answer.
    """
    probe = Dialogue(origin="an answer", messages=(Message("user", "a"), Message(ASSISTANT, "b")))
    (encoded,) = encode_dialogues([probe], tokenizer, template, "last")
    return int(encoded.ids[-1])


def end_after_answer(tokenizer: Tokenizer, template: ChatTemplate, origin: str) -> int | None:
    """Return the id of the special token that ends a rendered conversation; None if it is end-of-text, or there is none.

    Raises:
        BadInput: the template cannot render a short conversation.
    """
    end = _split_end(template.render([Message("user", "a"), Message(ASSISTANT, "b")], origin), tokenizer)[1]
    return None if end == tokenizer.end_of_text else end


def check_contents(dialogue: Dialogue, tokenizer: Tokenizer) -> None:
    """Refuse a conversation with a message that spells a special token, which would become that token.

    Raises:
        BadInput: names the message and the token.
    """
    contents = [message.content for message in dialogue.messages]
    # Templates may strip the messages and write one directly after the other.
    for number, content in enumerate((*contents, "".join(map(str.strip, contents))), 1):
        if name := next((name for name in tokenizer.special_names if name in content), None):
            which = f"message {number}" if number <= len(contents) else "a message with the one after it"
            raise BadInput(f"{dialogue.origin}: {which} spells the special token {name}; write it differently, or leave it out")


def _counted_text(dialogue: Dialogue, tokenizer: Tokenizer, template: ChatTemplate, turns: Turns) -> Rendered:
    """Return a conversation as text, with the parts that count."""
    check_contents(dialogue, tokenizer)
    messages, where = dialogue.messages, dialogue.origin
    answers = sum(message.role == ASSISTANT for message in messages)
    if not template.has_generation:
        if answers > 1 and turns == "all":
            raise BadInput(
                f"{where}: {answers} turns of the assistant, and {template.where} has no {{% generation %}} around them; add "
                "the tag, or count the last turn alone with --chat.turns last"
            )
        prompt, answer = _prompt_and_answer(messages, len(messages) - 1, template, where)
        return Rendered(prompt + answer, ((len(prompt), len(prompt + answer)),))
    rendered = template.render_spans(messages, where)
    if len(rendered.spans) < answers or (turns == "last" and len(rendered.spans) != answers):
        raise BadInput(
            f"{where}: {template.where} encloses {len(rendered.spans)} parts in {{% generation %}}, and the assistant has "
            f"{answers} turns; put the tag around each turn"
        )
    return rendered if turns == "all" else rendered._replace(spans=rendered.spans[-1:])


def _end(ids: np.ndarray, first: int, behind: int, special: np.ndarray, tokenizer: Tokenizer) -> int | None:
    """Return the index after the end mark of a part that has the ids `first` to `behind` - 1; None if there is no end mark.

    It is the last special token of the part, unless other text follows it and a special token stands directly behind the part.
    """
    inside = first + np.flatnonzero(special[first:behind])
    last = int(inside[-1]) + 1 if inside.size else None
    if last is not None and not tokenizer.decode(ids[last:behind]).strip():
        return last
    return behind + 1 if special[behind : behind + 1].any() else last
