"""Train the embedded tiny base model from scratch: `python examples/train_tiny_base.py --out FOLDER`.

The corpus is plain text: it contains no oracle grades and no preferences. A document is a prompt of the synthetic task
with one or two answers. Half of the answers are followed by a remark: the author, the number of words, of words on the
topic and of repeated words, and whether certain words occur. Authors differ in skill, which the text never mentions. So
the base model learns to describe an answer, as language models can, but never learns which answer is better.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pitcli.data.synthetic import TOPICS, WORDS, WordListTask, draw_response, draw_task
from pitcli.data.templates import IMPROVE_INSTRUCTION
from pitcli.engine.models.batches import pad_right

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
AUTHORS = ["Ann", "Bob", "Cal", "Dee", "Eve", "Fay", "Gus", "Hal"]  # the skill of author i is i / 7
REMARK_SHARE = 0.5
REMARKS = [*"0123456789", "yes", "no"]
NAME_WEIGHT = 4.0  # weight of an author's name in the loss; any other token has weight 1
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: every word of the task is one token; other text is split into bytes."""
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
    corpus = (
        [draw_task(rng).prompt() for _ in range(2000)]
        + [IMPROVE_INSTRUCTION] * 2000
        + [*WORDS, *AUTHORS, *REMARKS] * 200
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def document(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[list[int], list[float]]:
    """Return the token ids of one document and each token's weight in the loss, which is 0 for prompts."""
    end, user, assistant = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>"])
    task, author = draw_task(rng), rng.randrange(len(AUTHORS))
    ids: list[int] = []
    weights: list[float] = []
    for turn in range(rng.choice([1, 2, 2])):
        instruction = task.prompt() if turn == 0 else IMPROVE_INSTRUCTION
        question = [user, *tokenizer.encode(instruction, add_special_tokens=False), end, assistant]
        response = draw_response(task, author / (len(AUTHORS) - 1), rng)
        answer = [*tokenizer.encode(response, add_special_tokens=False), end]
        ids += question + answer
        weights += [0.0] * len(question) + [1.0] * len(answer)
        if rng.random() < REMARK_SHARE:
            remarks = tokenizer.encode(remark(task, response, rng), add_special_tokens=False)
            ids += [*tokenizer.encode(AUTHORS[author], add_special_tokens=False), *remarks]
            weights += [NAME_WEIGHT] + [1.0] * len(remarks)
        if rng.random() < 0.5:
            author = rng.randrange(len(AUTHORS))
    return ids, weights


def remark(task: WordListTask, response: str, rng: random.Random) -> str:
    """Describe an answer, e.g. `5 4 0 fox yes red no`; says nothing about whether it follows the prompt."""
    words = response.split()
    counts = (len(words), sum(word in TOPICS[task.topic] for word in words), len(words) - len(set(words)))
    mentioned = [word for word in (task.first, task.include, task.avoid, task.last) if word] + rng.sample(WORDS, 2)
    rng.shuffle(mentioned)
    return " ".join([*map(str, counts), *(f"{word} {'yes' if word in words else 'no'}" for word in mentioned)])


def batch_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> tuple[Tensor, float]:
    """Return the weighted mean of -log p(token) over new documents, and its plain mean over the names."""
    documents = [document(tokenizer, rng) for _ in range(size)]
    input_ids_BT = pad_right([ids for ids, _ in documents], tokenizer.pad_token_id)
    mask_BT, weights_BT = torch.zeros_like(input_ids_BT), torch.zeros(input_ids_BT.shape)
    for row, (_, weights) in enumerate(documents):
        mask_BT[row, : len(weights)] = 1
        weights_BT[row, : len(weights)] = torch.tensor(weights)
    logits_BTV = model(input_ids=input_ids_BT, attention_mask=mask_BT).logits
    losses_N = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction="none")
    weights_N = weights_BT[:, 1:].flatten()
    name_loss = float(losses_N[weights_N == NAME_WEIGHT].mean().detach())
    return (losses_N * weights_N).sum() / weights_N.sum(), name_loss


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024) in fp32; torch's Muon computes in bf16, which CPUs emulate."""

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
    """Take five Newton-Schulz steps towards the nearest orthogonal matrix."""
    transposed = matrices_NRC.shape[1] > matrices_NRC.shape[2]  # so that the smaller side comes first
    x = matrices_NRC.mT if transposed else matrices_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if transposed else x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("src/pitcli/assets/tiny"), help="output folder")
    parser.add_argument("--steps", type=int, default=1800, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=64, help="documents per step")
    parser.add_argument("--lr", type=float, default=0.02, help="peak learning rate of Muon, for the weight matrices")
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = train_tokenizer()
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
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        Muon(matrices, lr=args.lr),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50, 2 * (1 - step / args.steps)))
        for optimizer in optimizers
    ]
    start = time.time()
    for step in range(args.steps):
        loss, name_loss = batch_loss(model, tokenizer, rng, args.batch_size)
        loss.backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if step % 50 == 0:
            seconds = time.time() - start
            print(f"step {step}: loss {loss:.4f}, of author names {name_loss:.4f}, {seconds:.0f} s", flush=True)
        if step % 300 == 299 or step == args.steps - 1:
            save(model, tokenizer, args.out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights in bf16, which is enough for a quantised base, and the tokenizer."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
