"""`raylingvo` in the Ray cluster of the machine that this runs on: what `ray submit` and `ray job submit` start there.

Takes the arguments of the command line: `ray submit clusters/gcp.yaml clusters/run.py -- run EXPERIMENT --logdir DIR`.
Alone, `raylingvo run` would start a Ray of its own; here it joins the cluster unless told otherwise with --address.
"""

import sys

from raylingvo.cli import main
from raylingvo.cli_submit import joining

if __name__ == "__main__":
    sys.argv[1:] = joining(sys.argv[1:])
    main()
