"""Chat templates like those of well-known models, for the embedded tokenizer.

They differ in what becomes of thoughts, system messages, dates and white space. `base_with` copies the embedded base
with one of them.
"""

import json
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

# Thoughts of earlier turns are cut; the last turn has a block of thoughts, an empty one in the prompt if switched off.
QWEN3 = r"""
{%- set ns = namespace(query=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- set text, thoughts = message.content, '' %}
    {%- if message.role == 'assistant' and '</think>' in text %}
        {%- set thoughts = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set text = text.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > ns.query %}
        {%- set text = '<think>\n' + thoughts + '\n</think>\n\n' + text.lstrip('\n') %}
    {%- endif %}
    {{- '<|' + message.role + '|>' + text + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
# A prompt ends within a thought; a finished response has none.
DEEPSEEK_R1 = r"""
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}{% set ns.system = message.content %}{% endfor %}
{{- '<|system|>' + ns.system }}
{%- for message in messages if message.role != 'system' %}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' %}{% set text = text.split('</think>')[-1] %}{% endif %}
    {{- '<|' + message.role + '|>' + text }}{% if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|><think>\n' }}{% endif %}"""
# The system message is in the last user turn.
MISTRAL = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {%- set before = system + '\n\n' if loop.last and system else '' %}
        {{- '<|user|> ' + before + message.content + '<|pad|>' }}
    {%- else %}
        {{- ' ' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}"""
# Today's date is in the system message, and texts are trimmed.
LLAMA3 = r"""
{%- set date_string = date_string if date_string is defined else strftime_now('%d %b %Y') %}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{{- '<|system|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|end|>' }}
{%- for message in turns %}
    {{- '<|' + message.role + '|>\n\n' + message.content | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n\n' }}{% endif %}"""
# No system messages; texts are trimmed, and line feeds are between the turns.
GEMMA = r"""
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content | trim + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}"""

TEMPLATES = {"qwen3": QWEN3, "deepseek-r1": DEEPSEEK_R1, "mistral": MISTRAL, "llama3": LLAMA3, "gemma": GEMMA}


def base_with(template: str, tiny_folder: Path, folder: Path, **files: dict[str, Any]) -> Path:
    """The embedded base with another chat template and other settings; files: the new fields of NAME.json."""
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(template)
    for name, fields in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def plain_ids(folder: Path, messages: Sequence[dict[str, str]], **options: Any) -> list[int]:
    """The token ids of a conversation as transformers alone gives them to a model that is asked for a response."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    options = {"add_generation_prompt": True, **options}
    return list(tokenizer.apply_chat_template(list(messages), return_dict=False, **options))


def set_clock(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Sets the date that chat templates see."""
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime.fromisoformat(day)))
