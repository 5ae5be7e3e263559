"""The Modelfile of an exported GGUF file, for Ollama: the file, how a conversation is written, where it ends."""

from collections.abc import Sequence

from pitcli.data.rows import Message
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ANY, ChatFormat

CONVERSATIONS = (  # in which the texts between the messages must be the same
    ("user",),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
TEMPERATURE = 0.5  # of pit improve
NO_TEMPLATE = "# the chat template in the file is used: this one cannot be written in Ollama's language"


def modelfile(file: str, chat: ChatFormat) -> str:
    """Return the text of the Modelfile."""
    template = ollama_template(chat)
    stop = chat.written([chat.stop_id])
    return "\n".join(
        [
            f"FROM ./{file}",
            f'TEMPLATE """{template}"""' if template else NO_TEMPLATE,
            f'PARAMETER stop "{stop}"',
            f"PARAMETER temperature {TEMPERATURE}",
            "",
        ]
    )


def ollama_template(chat: ChatFormat) -> str | None:
    """Return the chat template in the language of Go; None if it does more than put texts between the messages."""
    alternating = _between(chat, ["user", "assistant", "user"])
    system = _between(chat, ["system", "user"])
    if not alternating or not system:
        return None
    first, answer, next_turn, last = alternating
    begin, after_system, _ = system
    before = {("system", 0): begin, ("user", 0): first, ("system", "user"): after_system}
    before |= {("user", "assistant"): answer, ("assistant", "user"): next_turn}
    for roles in CONVERSATIONS:
        pairs = zip([0, *roles[:-1]], roles, strict=True)
        expected = [before[(role, 0) if earlier == 0 else (str(earlier), role)] for earlier, role in pairs]
        if _between(chat, roles) != [*expected, last]:
            return None
    # a date in the template would stay that of today
    texts = [first, answer, next_turn, last, begin, after_system]
    if "strftime_now" in chat.rendering.template or any(m in text for text in texts for m in ("{{", "}}", '"""')):
        return None
    user = '{{ if eq .Role "user" }}{{ if eq $i 0 }}' + first + "{{ end }}{{ .Content }}"
    assistant = '{{ else if eq .Role "assistant" }}' + answer + "{{ .Content }}" + next_turn
    of_system = '{{ else if eq .Role "system" }}' + begin + "{{ .Content }}" + after_system
    return "{{ range $i, $_ := .Messages }}" + user + assistant + of_system + "{{ end }}{{ end }}" + last


def _between(chat: ChatFormat, roles: Sequence[str]) -> list[str]:
    """Return the texts before, between and after the messages of a conversation; empty if they are not all shown."""
    try:
        parts = chat.rendering.parts(tuple(Message(role, ANY) for role in roles))
    except RowProblem:
        return []
    return [part.text for part in parts[::2]] if [part.message for part in parts[1::2]] == [*range(len(roles))] else []
