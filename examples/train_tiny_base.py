"""Train the embedded tiny base model from scratch: `python examples/train_tiny_base.py --out FOLDER`.

The corpus is text alone: no grade of the oracle and no preference enters it. A document is a prompt of the
synthetic task with one or two answers, and after half of the answers stands who wrote it. Authors differ in
skill, which the text never says; a model that predicts the names well comes to tell good answers from bad ones
without knowing which is which, as language models do from the web.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pitcli.data.synthetic import WORDS, draw_response, draw_task
from pitcli.data.templates import IMPROVE_INSTRUCTION
from pitcli.engine.batches import pad_right

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
AUTHORS = ["Ann", "Bob", "Cal", "Dee", "Eve", "Fay", "Gus", "Hal"]  # the skill of author i is i / 7
BYLINE_SHARE = 0.5
BYLINE_WEIGHT = 6.0  # of a name in the loss, where a word counts 1: there are many words to a name
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every word of the task is one token, any other text is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    corpus = [draw_task(rng).prompt() for _ in range(2000)] + [IMPROVE_INSTRUCTION] * 2000 + (WORDS + AUTHORS) * 200
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def document(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[list[int], list[float]]:
    """Token ids of one document and what each weighs in the loss: 0 where the author did not write."""
    end, user, assistant = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>"])
    task, author = draw_task(rng), rng.randrange(len(AUTHORS))
    ids: list[int] = []
    weights: list[float] = []
    for turn in range(rng.choice([1, 2, 2])):
        asked = task.prompt() if turn == 0 else IMPROVE_INSTRUCTION
        question = [user, *tokenizer.encode(asked, add_special_tokens=False), end, assistant]
        response = draw_response(task, author / (len(AUTHORS) - 1), rng)
        answer = [*tokenizer.encode(response, add_special_tokens=False), end]
        ids += question + answer
        weights += [0.0] * len(question) + [1.0] * len(answer)
        if rng.random() < BYLINE_SHARE:
            ids += tokenizer.encode(AUTHORS[author], add_special_tokens=False)
            weights.append(BYLINE_WEIGHT)
        if rng.random() < 0.5:
            author = rng.randrange(len(AUTHORS))
    return ids, weights


def batch_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int) -> Tensor:
    """Weighted mean of -log p(token) over fresh documents."""
    documents = [document(tokenizer, rng) for _ in range(size)]
    input_ids_BT, mask_BT = pad_right([ids for ids, _ in documents], tokenizer.pad_token_id)
    weights_BT = torch.zeros(input_ids_BT.shape)
    for row, (_, weights) in enumerate(documents):
        weights_BT[row, : len(weights)] = torch.tensor(weights)
    logits_BTV = model(input_ids=input_ids_BT, attention_mask=mask_BT).logits
    losses_N = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction="none")
    weights_N = weights_BT[:, 1:].flatten()
    return (losses_N * weights_N).sum() / weights_N.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("src/pitcli/assets/tiny"))
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = 100
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / args.steps)),
    )
    start = time.time()
    for step in range(args.steps):
        loss = batch_loss(model, tokenizer, rng, args.batch_size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
        if step % 300 == 299 or step == args.steps - 1:
            save(model, tokenizer, args.out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights in bf16 (a quantised base needs no more) with their tokenizer."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
