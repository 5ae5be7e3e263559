"""Train the embedded tiny base model from scratch: `python examples/train_tiny_base.py --out FOLDER`.

The corpus contains no oracle grades and no preferences. A document is a prompt of the synthetic task with an answer; in
three of four documents there is a second answer. Their authors differ in skill, which the text never mentions.

Two auxiliary heads, dropped after training, make the base represent what it reads, as large language models do. One
says of each word of an answer what it is there for. The other says after each answer which demands it meets, and which
the answer before it meets. Nothing says that it is better to meet a demand than to break it.

Takes about 9 minutes on one core. `python examples/tiny_gate.py --model FOLDER` checks the result.
"""

import argparse
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pitcli.data.synthetic import (
    GENERAL,
    REVISED_SHARE,
    SPECIAL,
    TOPICS,
    WORDS,
    WordListTask,
    draw_answer,
    draw_task,
    met,
    render,
    revise,
)
from pitcli.data.templates import IMPROVE_INSTRUCTION
from pitcli.engine.models.batches import pad_right

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PARTS = [*SPECIAL, "before", "apart", "on", "off", "twice"]  # what a word of an answer is there for
DEMANDS = [*GENERAL, *SPECIAL]
SECOND_SHARE = 0.75  # of the documents have a second answer
IGNORED = -100  # a label that the loss leaves out
BATCH_SIZE = 64  # documents
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every word of the task is one token; other text is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    corpus = [draw_task(rng).prompt() for _ in range(4000)] + [IMPROVE_INSTRUCTION] * 2000 + WORDS * 200
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


class Document(NamedTuple):
    """Token ids, which of them an author wrote, the part of each word (IGNORED elsewhere), and the facts at each end.

    facts: position of an end -> 0 or 1 for each demand of the answer that ends there, then of the answer before it;
    IGNORED for demands that the prompt does not have.
    """

    ids: list[int]
    written: list[bool]
    parts: list[int]
    facts: dict[int, list[int]]


def document(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Document:
    end, user, assistant = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>"])
    task = draw_task(rng)
    answers = [draw_answer(task, rng.random(), rng)]
    if rng.random() < SECOND_SHARE:
        revised = rng.random() < REVISED_SHARE
        answers.append(revise(task, answers[0], rng.random(), rng) if revised else draw_answer(task, rng.random(), rng))
    result = Document([], [], [], {})
    before = [IGNORED] * len(DEMANDS)
    for turn, answer in enumerate(answers):
        response = render(task, answer)
        asked = tokenizer.encode(IMPROVE_INSTRUCTION if turn else task.prompt(), add_special_tokens=False)
        question = [user, *asked, end, assistant]
        words = tokenizer.encode(response, add_special_tokens=False)
        result.ids.extend([*question, *words, end])
        result.written.extend([False] * len(question) + [True] * (len(words) + 1))
        result.parts.extend([IGNORED] * len(question) + parts(task, response) + [IGNORED])
        found = met(task, response)
        facts = [int(found[name]) if name in found else IGNORED for name in DEMANDS]
        result.facts[len(result.ids) - 1] = facts + before
        before = facts
    return result


def parts(task: WordListTask, response: str) -> list[int]:
    """What each word is there for: the demand that names it, on or off the topic, or twice if it occurred before.

    Of the two words of `after`, the first is `before`, and the second is `apart` if it does not follow the first.
    """
    words = response.split()
    name_of = {word: name for name, demanded in task.words.items() for word in demanded}
    before, after = task.words.get("after", ("", ""))
    found = []
    for index, word in enumerate(words):
        if word in words[:index]:
            name = "twice"
        elif word == before:
            name = "before"
        elif word == after and words[index - 1 : index] != [before]:
            name = "apart"
        else:
            name = name_of.get(word, "on" if word in TOPICS[task.topic] else "off")
        found.append(PARTS.index(name))
    return found


class AuxiliaryHeads(nn.Module):
    """Linear heads on hidden states: parts of words on the last layer but one, facts of answers on the last."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.parts = nn.Linear(hidden, len(PARTS))
        self.facts = nn.Linear(hidden, 2 * len(DEMANDS))


def batch_losses(
    model: LlamaForCausalLM, heads: AuxiliaryHeads, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean -log p of what authors wrote, of parts and of facts over fresh documents; share of right facts by demand."""
    documents = [document(tokenizer, rng) for _ in range(size)]
    input_ids_BT = pad_right([one.ids for one in documents], tokenizer.pad_token_id)
    written_BT = pad_right([one.written for one in documents], False).bool()
    parts_BT = pad_right([one.parts for one in documents], IGNORED)
    ends_N2 = torch.tensor([(row, at) for row, one in enumerate(documents) for at in one.facts])
    facts_NF = torch.tensor([facts for one in documents for facts in one.facts.values()])
    mask_BT = (input_ids_BT != tokenizer.pad_token_id).long()
    output = model(input_ids=input_ids_BT, attention_mask=mask_BT, output_hidden_states=True)
    text_loss = cross_entropy(output.logits[:, :-1][written_BT[:, 1:]], input_ids_BT[:, 1:][written_BT[:, 1:]])
    parts_logits = heads.parts(output.hidden_states[-2])
    parts_loss = cross_entropy(parts_logits.flatten(0, 1), parts_BT.flatten(), ignore_index=IGNORED)
    facts_logits_NF = heads.facts(output.hidden_states[-1][ends_N2[:, 0], ends_N2[:, 1]])
    known_NF = facts_NF != IGNORED
    facts_loss = binary_cross_entropy_with_logits(facts_logits_NF[known_NF], facts_NF[known_NF].float())
    right_NF = ((facts_logits_NF > 0) == (facts_NF > 0)) & known_NF
    return text_loss, parts_loss, facts_loss, right_NF.sum(0) / known_NF.sum(0)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024) in fp32; torch's own works in bf16, which CPUs emulate."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalised(torch.stack(updates)), strict=True):
                    parameter.sub_(update, alpha=scale)


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrix."""
    turned = matrices_NRC.shape[1] > matrices_NRC.shape[2]  # the smaller side first
    x = matrices_NRC.mT if turned else matrices_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if turned else x


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def new_optimizers(model: LlamaForCausalLM, heads: AuxiliaryHeads) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW([*others, *heads.parameters()], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("src/pitcli/assets/tiny"))
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = train_tokenizer()
    model = new_model(tokenizer)
    heads = AuxiliaryHeads(model.config.hidden_size)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    optimizers = new_optimizers(model, heads)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50, 2 * (1 - step / args.steps)))
        for optimizer in optimizers
    ]
    start = time.time()
    for step in range(args.steps):
        text, word_parts, facts, right = batch_losses(model, heads, tokenizer, rng, BATCH_SIZE)
        (text + word_parts + 2 * facts).backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if step % 50 == 0:
            print(f"step {step} text {text:.3f} parts {word_parts:.3f} facts {facts:.3f} {time.time() - start:.0f} s")
            print(*(f"{name} {share:.2f}" for name, share in zip(DEMANDS * 2, right.tolist(), strict=True)), flush=True)
    save(model, tokenizer, args.out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights in bf16 (a quantised base needs no more) with their tokenizer."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
