"""Asks a GGUF file on stdin's conversations in a process of its own: `python llama_cpp.py FILE TOKENS`, greedily."""

import json
import os
import sys

import xllamacpp


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # llama.cpp logs there
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 512, 1, False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    for line in sys.stdin:
        request = {"messages": json.loads(line), "temperature": 0, "max_tokens": int(sys.argv[2])}
        answer = server.handle_chat_completions(request)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        print(json.dumps(answer["choices"][0]["message"]["content"]), file=answers, flush=True)
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
