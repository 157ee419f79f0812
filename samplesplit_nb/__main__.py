"`python -m samplesplit_nb` is the `samplesplit` command"
import os, sys
# Python puts the working folder first: a file torch.py there would stand in for torch
if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd(): sys.path.append(sys.path.pop(0))
from samplesplit_nb.cli import main
raise SystemExit(main())
