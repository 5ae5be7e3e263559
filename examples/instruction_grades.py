"""Grade responses of the instruction task: rows on stdin, one number per line on stdout.

A verifier for `pit rl --reward "cmd:python instruction_grades.py"`: what RL learns from the truth itself.
"""

import json
import sys

from pitcli.data.instructions.grading import grade

for line in sys.stdin:
    row = json.loads(line)
    print(grade(row["response"], row["subject"], row["instructions"]))
