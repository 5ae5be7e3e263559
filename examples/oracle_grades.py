"""Grade responses of pit's own two tasks, word lists and instructions: rows on stdin, one number per line on stdout.

A verifier for `pit rl --reward "cmd:python oracle_grades.py"`: what RL learns from the truth itself.
"""

import json
import sys

from pitcli.data.instructions.grading import grade
from pitcli.data.synthetic import quality

for line in sys.stdin:
    row = json.loads(line)
    if "instructions" in row:
        print(grade(row["response"], row["subject"], row["instructions"]))
    else:
        print(quality(row["prompt"], row["response"]))
