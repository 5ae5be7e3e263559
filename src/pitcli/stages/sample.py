"""pit sample: drafts from the policy, one for each prompt."""

from itertools import islice

from pitcli.config import SampleConfig
from pitcli.console import error, next_command, note, progress, samples
from pitcli.data.formats import iter_questions
from pitcli.data.records import RowError, write_row
from pitcli.data.streams import batched, open_output, row_seed
from pitcli.engine.models import POLICY
from pitcli.engine.sampling import Decoding, generate
from pitcli.inputs import find_run, open_base

SHOWN = 2


def run(config: SampleConfig) -> int:
    """Write each row with a sampled `response`; 1 where some rows could not be read."""
    policy = find_run(config.policy, "runs/policy", ("sft",), POLICY, "pit sft --role policy makes one")
    errors: list[RowError] = []

    def on_error(problem: RowError) -> None:
        errors.append(problem)
        error(str(problem))

    questions = iter_questions(config.data, on_error)
    base = open_base(config, [policy] if policy else [])
    decoding = Decoding(config.temperature, config.top_p, config.max_new_tokens, base.chat.stop_id, 1)
    model = base.load()
    if policy:
        model.load_role(POLICY, policy.adapter)
    count = 0
    shown: list[tuple[str, str, str]] = []
    with open_output(config.output) as stream, progress("sampling", config.max_rows, stream) as advance:
        for batch in batched(islice(questions, config.max_rows), config.sample_batch_size):
            rows = []
            for line, question in batch:
                prompt = base.chat.policy_prompt(question.prompt)
                if len(prompt) + config.max_new_tokens > base.max_length:
                    reason = f"takes {len(prompt)} tokens; with {config.max_new_tokens} new ones {base.max_length} fit"
                    on_error(RowError(config.data, line, "prompt", reason))
                else:
                    rows.append((question, prompt))
            seeds = [row_seed(config.seed, question, 0) for question, _ in rows]
            prompts = [prompt for _, prompt in rows]
            drawn = generate(model, POLICY if policy else None, prompts, seeds, decoding) if rows else []
            for (question, _), sample in zip(rows, drawn, strict=True):
                response = base.chat.decode(sample.token_ids)
                write_row({**question.row, "response": response}, stream)
                count += 1
                if len(shown) < SHOWN:
                    shown.append((question.prompt[-1].content, "", response))
            stream.flush()
            advance(len(rows))
    samples(shown)
    note(f"{count} drafts" + (f", {len(errors)} rows failed" if errors else ""))
    next_command("pit improve --input drafts.jsonl --max-iters 5")
    return 1 if errors else 0
